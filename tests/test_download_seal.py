import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from data_tools.download.download_seal import WITHOUT_EFFECT, fetch_identity, finished_rows, write_seal
from data_tools.network.image_fetch import FetchSetting
from leam_mm.data.ledger import LEDGER, LedgerWriter
from leam_mm.errors import UserError

SETTING = FetchSetting("a", "b", "Agent", "https://lab.example")


def test_the_fingerprint_covers_what_decides_which_bytes_come() -> None:
    identity = fetch_identity(SETTING, "digest")
    faster = replace(SETTING, threads=9, retries=7, delay_per_host=3.0, distributor="ray")
    assert fetch_identity(faster, "digest") == identity
    changes = {"max_bytes": 1, "image_seconds": 1.0, "part_bytes": 1, "max_hops": 0, "ask_origins": "none"}
    for name, value in changes.items():
        assert fetch_identity(replace(SETTING, **{name: value}), "digest") != identity
    assert fetch_identity(SETTING, "other") != identity
    assert set(asdict(SETTING)) - set(WITHOUT_EFFECT) == set(identity) - {"table"}


def test_a_finished_folder_is_opened_by_its_seal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without --retry-failed first"):
        list(finished_rows(tmp_path, {}))
    with LedgerWriter(tmp_path / LEDGER, "download_shards") as ledger:
        ledger.write([{"uid": "a", "kept": True}])
    write_seal(tmp_path, {"size": 5})
    assert [row["uid"] for row in finished_rows(tmp_path, {"size": 5})] == ["a"]
    assert json.loads((tmp_path / "download.json").read_text()) == {"size": 5}
    with pytest.raises(UserError, match=r"another size \(5, now 6\)"):
        list(finished_rows(tmp_path, {"size": 6}))

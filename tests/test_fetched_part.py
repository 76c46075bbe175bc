from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toys.published import ROWS, parts_of, write_part

from data_tools.download import fetched_part
from data_tools.download.fetched_part import fetch_parts
from data_tools.network.image_fetch import FetchSetting
from leam_mm.errors import UserError


def links() -> Iterator[tuple[int, str, str | None]]:
    return iter([(row, f"http://a.example/{row}", None) for row in ROWS])


def test_a_distributor_that_succeeds_without_parts_is_an_error(
    fetch_setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def do_nothing(*arguments: object) -> int:
        calls.append(arguments)
        return 0

    monkeypatch.setattr(fetched_part, "_run_child", do_nothing)
    with pytest.raises(UserError, match=r"exit code 0\) did not bring back 3 parts .*img2dataset\.0\.log"):
        fetch_parts(tmp_path, fetch_setting, links, len(ROWS))
    assert len(calls) == 3


def test_only_parts_that_are_not_whole_are_fetched_again(
    fetch_setting: FetchSetting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, parts = Path(fetch_setting.output), parts_of(ROWS)
    write_part(raw, 0, parts[0])
    write_part(raw, 1, parts[1][:-1])  # a row was lost on the way
    write_part(raw, 2, parts[2])
    (raw / "00002.parquet").write_bytes(b"PAR1")  # a disk that was full
    kept, waiting = (raw / "00000.parquet").read_bytes(), []

    def fetch(_setting: FetchSetting, _total: int, rows: int, _journal: Path) -> int:
        waiting.append(sorted(path.name for path in raw.iterdir()))
        asked = [pq.read_table(path).to_pylist() for path in sorted(Path(fetch_setting.links).iterdir())]
        assert [[row["row"] for row in part] for part in asked] == parts[1:] and rows == 4
        assert [part[0]["part"] for part in asked] == [1, 2]
        write_part(raw, 1, parts[1])
        write_part(raw, 2, parts[2])
        return 0

    monkeypatch.setattr(fetched_part, "_run_child", fetch)
    fetch_parts(tmp_path, fetch_setting, links, len(ROWS))
    assert waiting == [["00000.parquet"]] and (raw / "00000.parquet").read_bytes() == kept
    fetch_parts(tmp_path, fetch_setting, links, len(ROWS))
    assert len(waiting) == 1  # now all are there

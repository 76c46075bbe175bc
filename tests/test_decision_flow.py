"""data_tools/description/decision_flow.py: every link is kept or dropped exactly once, or the fault is named."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.description.decision_flow import account, identity, own_ledgers, read_flow
from data_tools.work.ledger import LedgerWriter, link_uid

UIDS = [link_uid(str(number), None, "") for number in range(20)]


def ledger(path: Path, stage: str, rows: list[tuple[int, str, bool]]) -> Path:
    """Rows of (link, rule, kept)."""
    with LedgerWriter(path, stage) as writer:
        writer.write(
            {
                "uid": UIDS[n],
                "rule": rule,
                "kept": kept,
                "bytes": 100 + n,
                "fetched_at": f"2026-0{1 + n % 3}-05T00:00:00",
            }
            | {"domain": "a.example" if n % 2 else ""}
            for n, rule, kept in rows
        )
    return path


def stages(folder: Path) -> dict[str, Path]:
    """Twenty links: four dropped by screening, two failed, three dropped by vetting, one withdrawn, ten left."""
    screen = [(n, "robots" if n < 3 else "duplicate_link" if n == 3 else "kept", n > 3) for n in range(20)]
    download = [(n, "download" if n in (4, 5) else "kept", n > 5) for n in range(4, 20)]
    vet: list[tuple[int, str, bool]] = []
    for n in range(6, 20):
        vet.append((n, "orientation", True))  # an answer on the way, no decision
        rule = "near_duplicates" if n in (6, 7) else "faces" if n == 8 else "withdrawn" if n == 9 else "kept"
        vet.append((n, rule, rule == "kept"))
    return {
        "vet_shards": ledger(folder / "vet.parquet", "vet_shards", vet),
        "screen_links": ledger(folder / "screen.parquet", "screen_links", screen),
        "download_shards": ledger(folder / "download.parquet", "download_shards", download),
        "withdraw_samples": ledger(folder / "gone.parquet", "withdraw_samples", [(9, "url", False)]),
    }


def test_everything_adds_up(tmp_path: Path) -> None:
    flow = read_flow(stages(tmp_path).values())
    assert list(flow.stages) == ["screen_links", "download_shards", "vet_shards"]
    assert [stage.given for stage in flow.stages.values()] == [20, 16, 14]
    found = account(flow, 10, np.array([identity(UIDS[n]) for n in range(10, 20)], np.uint64))
    assert found == {"links": 20, "dropped": 9, "withdrawn": 1, "kept": 10, "samples": 10, "faults": []}
    assert found["links"] == found["dropped"] + found["withdrawn"] + found["kept"]
    assert flow.stages["vet_shards"].dropped == {"near_duplicates": 2, "faces": 1}
    assert flow.bytes_of(UIDS[12]) == 112 and flow.bytes_of(UIDS[4]) is None and flow.bytes_of(None) is None
    assert set(flow.months) == {"2026-01", "2026-02", "2026-03"}
    assert (sum(flow.months.values()), sum(flow.crawl_months.values())) == (14, 7)


@pytest.mark.parametrize("fault", ["lost", "exchanged", "samples", "foreign", "twice"])
def test_what_does_not_add_up_is_named(fault: str, tmp_path: Path) -> None:
    found = stages(tmp_path)
    kept, samples = list(range(10, 20)), 10
    word = {"lost": "kept 16 links", "exchanged": "1 links that", "samples": "hold 9 samples", "foreign": "not among"}
    if fault == "lost":
        ledger(found["download_shards"], "download_shards", [(n, "kept", True) for n in range(6, 20)])
    elif fault == "exchanged":
        rows = [(n, "download" if n in (4, 5) else "kept", n > 5) for n in range(4, 20)]
        ledger(found["download_shards"], "download_shards", [(3, *rows[0][1:]), *rows[1:]])
    elif fault == "samples":
        kept, samples = kept[1:], 9
    elif fault == "foreign":
        kept[0] = 0
    else:
        found["again"] = ledger(tmp_path / "again.parquet", "vet_shards", [(19, "kept", True)])
        word["twice"] = "download_shards kept 14 links, vet_shards decided on 15"
    ids = np.array([identity(UIDS[n]) for n in kept], np.uint64)
    faults = account(read_flow(found.values()), samples, ids)["faults"]
    assert any(word[fault] in sentence for sentence in faults), faults


def test_without_ledgers_nothing_is_claimed(tmp_path: Path) -> None:
    found = account(read_flow([]), 5, np.empty(0, np.uint64))
    assert found["links"] is None and found["dropped"] is None and found["faults"] == []
    (tmp_path / "folder").mkdir()
    assert own_ledgers(tmp_path / "folder") == []

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_tools.links import robots_screen as origin_screen
from data_tools.links.disk_buckets import DiskBuckets
from data_tools.links.host_shuffle import even_positions, hashed
from data_tools.links.link_sources import LinkSources
from data_tools.links.robots_screen import LINKS, NOT_ASKED, RobotsScreen, decision_tables, slabs


@pytest.fixture
def links(tmp_path: Path) -> pa.Table:
    names = [f"https://h{number % 5}.example" for number in range(100)]
    columns = [np.arange(100), [f"{name}/{row}.jpg" for row, name in enumerate(names)], names, ["x"] * 100]
    columns += [["art4_general"] * 100, np.array([hashed(name) for name in names], np.uint64)]
    columns.append(np.array([hashed(str(row)) for row in range(100)], np.uint64))
    table = pa.table(columns, schema=LINKS)
    with DiskBuckets(tmp_path / "links", 1) as buckets:
        for start in range(0, 100, 30):
            part = table.slice(start, 30)
            buckets.write(part, np.zeros(part.num_rows, np.int64))
    return table


def rows(tables: Iterator[pa.Table]) -> list[dict[str, object]]:
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.parametrize("held", [1, 50, 1000])
def test_a_bucket_is_judged_in_slabs_and_placed_as_one(
    links: pa.Table, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin_screen, "ROWS", held)
    assert [table.num_rows for table in slabs(tmp_path / "links", 0)] == {
        1: [30, 30, 30, 10],
        50: [60, 40],
        1000: [100],
    }[held]
    screen = RobotsScreen(None, LinkSources(), 4, 0.5, 7)
    (tmp_path / "verdicts").mkdir()
    screen.screen_bucket(tmp_path / "links", 0, tmp_path / "verdicts")
    fates, places = map(rows, decision_tables(tmp_path / "verdicts", 0))
    assert [row["row"] for row in fates] == list(range(100))
    assert all(row["rule"] is None and row["consent"] == NOT_ASKED for row in fates)
    wanted = even_positions(links["origin_hash"].to_numpy(), links["link_hash"].to_numpy(), 7)
    assert {row["row"]: row["position"] for row in places} == dict(enumerate(wanted))
    origins = [json.loads(line) for line in (tmp_path / "verdicts/000000.jsonl").read_text().splitlines()]
    assert [entry["origin"] for entry in origins] == [f"https://h{number}.example" for number in range(5)]
    assert all((entry["links"], entry["kept"], entry["asked"]) == (20, 20, False) for entry in origins)
    assert origins[0]["least_seconds"] == 9.5
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "verdicts").iterdir()}
    screen.screen_bucket(tmp_path / "links", 0, tmp_path / "verdicts")  # done: left alone
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "verdicts").iterdir()}


def test_an_empty_bucket_is_no_trouble(tmp_path: Path) -> None:
    with DiskBuckets(tmp_path / "links"):
        pass
    RobotsScreen(None, LinkSources(), 4, 0.5, 7).screen_bucket(tmp_path / "links", 3, tmp_path)
    assert [rows(tables) for tables in decision_tables(tmp_path, 3)] == [[], []]

"""Stages of link screening: the same result however rows are grouped, and complete files only."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.links import link_duplicates, robots_screen, row_filters, screen_stages, screened_folder
from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from data_tools.links.host_shuffle import even_positions, hashed, mixed
from data_tools.links.link_duplicates import HASHES, LinkDuplicates, hash_pairs
from data_tools.links.link_rules import LinkRuleSettings
from data_tools.links.link_sources import LinkSources
from data_tools.links.link_table import read_links
from data_tools.links.robots_screen import LINKS, NOT_ASKED, RobotsScreen, decision_tables, slabs
from data_tools.links.row_filters import chunk_cost, filter_rows, read_chunk
from data_tools.links.screened_folder import largest_first
from data_tools.screen_links import main
from leam_mm.data.ledger import read_ledger
from leam_mm.errors import UserError


@pytest.mark.parametrize("held", [1, 5000, 1 << 20])
def test_buckets_return_their_rows_in_order(held: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    number = generator.integers(0, 7, 3000)
    words = pa.array([f"wörd {row % 11}" for row in range(3000)]).dictionary_encode()
    table = pa.table({"row": np.arange(3000), "word": words})
    with DiskBuckets(tmp_path / "parts", held) as buckets:
        for start in range(0, 3000, 100):
            buckets.write(table.slice(start, 100), number[start : start + 100])
    for bucket in range(8):
        found = [row for part in read_bucket(tmp_path / "parts", bucket) for row in part.to_pylist()]
        assert found == [row for row in table.to_pylist() if number[row["row"]] == bucket]


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    table = pa.table({"row": [1, 2]})
    with pytest.raises(RuntimeError), DiskBuckets(tmp_path / "parts", 1) as buckets:
        buckets.write(table, np.array([0, 1]))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with DiskBuckets(tmp_path / "parts") as buckets:
        buckets.write(table, np.array([3, 3]))
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["000003.arrows"]
    assert list(read_bucket(tmp_path / "parts", 0)) == []
    path = tmp_path / "parts" / "000003.arrows"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        list(read_bucket(tmp_path / "parts", 3))


def hashed_links(counts: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    names = np.array([hashed(f"https://h{number}.example") for number in range(len(counts))], np.uint64)
    origin = np.repeat(names, counts)
    link = np.random.default_rng(seed).integers(0, 2**63, sum(counts)).astype(np.uint64)
    return origin, link


def test_the_order_is_a_function_of_the_set_and_the_seed() -> None:
    origin, link = hashed_links([500, 100, 50, 1, 1, 1])
    position = even_positions(origin, link, 7)
    assert position.min() >= 0 and position.max() < 1 and len(set(position)) == len(position)
    shuffled = np.random.default_rng(1).permutation(len(link))
    assert (even_positions(origin[shuffled], link[shuffled], 7) == position[shuffled]).all()
    assert (even_positions(origin, link, 8) != position).mean() > 0.9
    assert len(even_positions(origin[:0], link[:0], 0)) == 0


def test_an_origins_links_are_spread_evenly() -> None:
    """In windows of 200 an origin's count stays within 25 % of its share; shuffled, it strays far more."""
    counts = [8000, 2000, 1000, *[100] * 60, *[1] * 3000]
    origin, link = hashed_links(counts)
    order = np.argsort(even_positions(origin, link, 0))
    shuffled = np.random.default_rng(0).permutation(len(link))

    def inside(ordered: np.ndarray, number: int, window: int = 200) -> np.ndarray:
        here = np.cumsum(np.r_[0, origin[ordered] == np.uint64(hashed(f"https://h{number}.example"))])
        return here[window:] - here[:-window]

    for number, count in enumerate(counts[:3]):
        expected = 200 * count / len(link)
        assert inside(order, number).max() <= 1.25 * expected + 1 and inside(order, number).min() >= 0.75 * expected - 1
        assert inside(order, number).std() < 0.7 * inside(shuffled, number).std()
    for number in range(3, 63):  # one in two hundred links: never three at once
        assert inside(order, number).max() <= 3 and inside(order, number).min() <= 1


def test_hashes_are_the_same_everywhere() -> None:
    assert hashed("https://a.example") == 14450428034382011267
    outputs = [16294208416658607535, 7960286522194355700, 487617019471545679]  # of SplitMix64 from state 0
    assert [int(mixed(np.array([0], np.uint64), seed)[0]) for seed in range(3)] == outputs


@pytest.mark.parametrize("rows_in_part", [50, 10_000])
def test_the_first_of_each_address_stays(rows_in_part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_duplicates, "ROWS", rows_in_part)
    address = np.random.default_rng(0).integers(0, 400, 1000)
    hashes = [hashlib.blake2b(bytes([number % 256, number // 256]), digest_size=16).digest() for number in address]
    table = pa.table(
        [np.arange(1000), pa.array(hashes, pa.binary(16)), [f"u{row}" for row in range(1000)]], schema=HASHES
    )
    duplicates = LinkDuplicates(tmp_path / "hashes", 1000)
    for start in range(0, 1000, 64):
        duplicates.add(table.slice(start, 64))
    with DiskBuckets(tmp_path / "found") as output:
        total = duplicates.find(output, 100)
    found = {
        row["row"]: row["first"]
        for part in range(10)
        for each in read_bucket(tmp_path / "found", part)
        for row in each.to_pylist()
    }
    first: dict[int, int] = {}
    wanted = {row: f"u{first[number]}" for row, number in enumerate(address) if first.setdefault(number, row) != row}
    assert found == wanted and total == len(wanted) > 500


def test_hashes_of_slices_are_read_at_their_offset() -> None:
    hashes = pa.array([bytes([number] * 16) for number in range(10)], pa.binary(16))
    assert (hash_pairs(hashes.slice(3, 4)) == hash_pairs(hashes)[3:7]).all() and hash_pairs(hashes[:0]).shape == (0, 2)


CAPTION = "Eine rote Katze schläft auf dem alten Sofa im Garten"


def write_links(path: Path, rows: int) -> Path:
    urls = [f"https://h{number % 7}.example/{number}.jpg" for number in range(rows)]
    pq.write_table(pa.table({"url": urls, "caption": [CAPTION] * rows}), path)
    return path


def test_chunks_are_filtered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_filters, "CHUNK", 40)
    tables = [write_links(tmp_path / "a.parquet", 100), write_links(tmp_path / "b.parquet", 10)]
    done: list[int] = []
    assert filter_rows(tables, tmp_path / "rows", LinkRuleSettings(), 1, done.append) == (4, 110)
    assert done == [40, 40, 20, 10] and [read_chunk(tmp_path / "rows", number).num_rows for number in range(4)] == done
    cost = chunk_cost(tmp_path / "rows", 4)
    assert cost["language"]["rows"] == 110 and cost["language"]["cpu_seconds"] > 0
    paths = sorted((tmp_path / "rows").iterdir())
    before = {path: path.read_bytes() for path in paths}
    paths[1].unlink()
    filter_rows(tables, tmp_path / "rows", LinkRuleSettings(), 1, done.append)
    kept = {path: path.read_bytes() for path in sorted((tmp_path / "rows").iterdir())}
    assert list(kept) == paths and all(kept[path] == before[path] for path in paths if path != paths[1])
    paths[2].write_bytes(b"torn")
    with pytest.raises(UserError, match="damaged"):
        read_chunk(tmp_path / "rows", 2)


@pytest.mark.slow
def test_several_processes_filter_as_one_does(tmp_path: Path) -> None:
    tables = [write_links(tmp_path / "a.parquet", 25_000)]
    for processes in (1, 2):
        assert filter_rows(tables, tmp_path / f"rows{processes}", LinkRuleSettings(), processes, lambda _: None) == (
            3,
            25_000,
        )
    for number in range(3):
        assert read_chunk(tmp_path / "rows1", number).equals(read_chunk(tmp_path / "rows2", number))


@pytest.fixture
def links(tmp_path: Path) -> pa.Table:
    names = [f"https://h{number % 5}.example" for number in range(100)]
    columns = [np.arange(100), [f"{name}/{row}.jpg" for row, name in enumerate(names)], names, ["x"] * 100]
    columns += [["art4_general"] * 100, [None] * 100, [None] * 100]
    columns.append(np.array([hashed(name) for name in names], np.uint64))
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
def test_a_bucket_is_decided_in_slabs_and_ordered_as_one(
    links: pa.Table, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robots_screen, "ROWS", held)
    assert [table.num_rows for table in slabs(tmp_path / "links", 0)] == {
        1: [30, 30, 30, 10],
        50: [60, 40],
        1000: [100],
    }[held]
    screen = RobotsScreen(None, LinkSources(), 4, 0.5, 7)
    (tmp_path / "verdicts").mkdir()
    screen.screen_bucket(tmp_path / "links", 0, tmp_path / "verdicts")
    decisions, positions = map(rows, decision_tables(tmp_path / "verdicts", 0))
    assert [row["row"] for row in decisions] == list(range(100))
    assert all(row["rule"] is None and row["consent"] == NOT_ASKED for row in decisions)
    wanted = even_positions(links["origin_hash"].to_numpy(), links["link_hash"].to_numpy(), 7)
    assert {row["row"]: row["position"] for row in positions} == dict(enumerate(wanted))
    origins = [json.loads(line) for line in (tmp_path / "verdicts/000000.jsonl").read_text().splitlines()]
    assert [entry["origin"] for entry in origins] == [f"https://h{number}.example" for number in range(5)]
    assert all((entry["links"], entry["kept"], entry["asked"]) == (20, 20, False) for entry in origins)
    assert origins[0]["least_seconds"] == 9.5
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "verdicts").iterdir()}
    screen.screen_bucket(tmp_path / "links", 0, tmp_path / "verdicts")  # done: not repeated
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "verdicts").iterdir()}


def test_an_empty_bucket_gives_empty_tables(tmp_path: Path) -> None:
    with DiskBuckets(tmp_path / "links"):
        pass
    RobotsScreen(None, LinkSources(), 4, 0.5, 7).screen_bucket(tmp_path / "links", 3, tmp_path)
    assert [rows(tables) for tables in decision_tables(tmp_path, 3)] == [[], []]


def test_every_row_has_one_decision_whatever_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tables whose last chunks are short, several chunks in a range, ranges without links."""
    tables = []
    for name, count in (("a", 35), ("b", 7), ("c", 22)):
        lines = []
        for number in range(count):
            url = f"https://h{number % 3}.example/{number}.jpg" if name != "b" else f"ftp://a.example/{number}"
            lines.append(
                {"url": url, "caption": CAPTION, "consent": json.dumps({"page_rights": [], "origin": "forged"})}
            )
        tables.append(tmp_path / f"{name}.jsonl")
        tables[-1].write_text("\n".join(map(json.dumps, lines)))
    found = []
    for number, (chunk, span, held) in enumerate([(10_000, 10, 100_000), (10, 1, 3), (4, 3, 1)]):
        for module in (row_filters, screen_stages, screened_folder):
            monkeypatch.setattr(module, "CHUNK", chunk)
        for module in (screen_stages, screened_folder):
            monkeypatch.setattr(module, "RANGE", chunk * span)
        monkeypatch.setattr(screened_folder, "SORTED", held)
        output = tmp_path / f"screened{number}"
        main(["--table", *map(str, tables), "--output", str(output), "--processes", "1", "--skip-origins"])
        ledger = pa.Table.from_batches(read_ledger(output / "ledger.parquet"))
        found.append((ledger.to_pylist(), read_links(output / "links.parquet").to_pylist()))
    assert found[0] == found[1] == found[2]
    rows, links = found[0]
    assert Counter(row["rule"] for row in rows) == {"kept": 35, "scheme": 7, "duplicate_link": 22}
    assert [row["rule"] for row in rows] == ["kept"] * 35 + ["scheme"] * 7 + ["duplicate_link"] * 22
    assert [row["value"] for row in rows[42:]] == [row["uid"] for row in rows[:22]]
    assert len(links) == 35 and {row["uid"] for row in links} == {row["uid"] for row in rows[:35]}
    assert all(json.loads(row["consent"]) == {"page_rights": [], "origin": "not asked"} for row in links)


def test_counts_are_ordered_by_size() -> None:
    assert list(largest_first(Counter({"b": 2, "a": 2, "c": 5, "d": 1}), 3)) == ["c", "a", "b"]

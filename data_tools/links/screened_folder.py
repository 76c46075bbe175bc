"""Write the results of screening: a ledger in table order, and the links that stay in download order.

Decisions of earlier stages are read in ranges of rows; links are grouped by their position in the download order and
sorted one group at a time. Memory therefore does not grow with the table.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_tools.links.disk_buckets import DiskBuckets, read_bucket
from data_tools.links.link_duplicates import DUPLICATES, hash_pairs
from data_tools.links.link_rules import COLUMNS
from data_tools.links.robots_screen import TEXTS
from data_tools.links.row_filters import CHUNK, read_chunk
from leam_mm.data.ledger import LEDGER, LedgerWriter

STAGE = "screen_links"
LINKS = "links.parquet"
RANGE = 10 * CHUNK  # rows whose decisions are in memory at a time
SORTED = 100_000  # average number of links sorted at a time
DECISION = ("uid", "url", "domain", "licence", "legal_basis", "language")
LINK = pa.schema([(name, pa.string()) for name in (*COLUMNS, "origin")])
ORDERED = pa.schema([*LINK, ("position", pa.float64()), ("link_hash", pa.binary(16))])


@dataclass
class Counts:
    """Numbers of links.

    Args:
        dropped: Dropped links by rule.
        kept: Kept links by ``language``, ``legal_basis`` and ``licence``.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("language", "legal_basis", "licence")}
    )


def write_decisions(
    output: Path, chunks: Path, number_of_chunks: int, duplicates: Path, by_row: Path, work: Path
) -> Counts:
    """Write ``ledger.parquet`` and ``links.parquet``.

    Args:
        output: Folder of both files.
        chunks: Folder of the rows that links/row_filters.py filtered.
        number_of_chunks: Number of chunks.
        duplicates: Folder of ``screen_stages.find_duplicates``.
        by_row: Folder of ``screen_stages.group_by_row``: the decisions and positions of robots_screen.py.
        work: Folder for the links while they are sorted.
    """
    counts = Counts()
    ranges = sum(1 for _ in (by_row / "positions").iterdir())
    parts = max(1, ranges * RANGE // SORTED)
    ordered = work / "ordered"
    decisions: _RangeDecisions | None = None
    with LedgerWriter(output / LEDGER, STAGE) as ledger, DiskBuckets(ordered) as buckets:
        for number in range(number_of_chunks):
            current = number * CHUNK // RANGE
            if decisions is None or decisions.number != current:
                decisions = _RangeDecisions(current, duplicates, by_row)
            decision, stays, links = decisions.decide(read_chunk(chunks, number), number * CHUNK)
            ledger.write_table(decision)
            buckets.write(links, (links["position"].to_numpy() * parts).astype(np.int64))
            _count(counts, decision, stays)
    with pq.ParquetWriter(output / LINKS, LINK, compression="zstd") as writer:
        for number in range(parts):
            found = list(read_bucket(ordered, number))
            if found:
                links = pa.concat_tables(found).combine_chunks()
                pairs = hash_pairs(links["link_hash"])
                order = np.lexsort((pairs[:, 1], pairs[:, 0], links["position"].to_numpy()))
                writer.write_table(links.select(LINK.names).take(pa.array(order)))
    return counts


class _RangeDecisions:
    """Decisions about the rows of one range, looked up by row."""

    def __init__(self, number: int, duplicates: Path, by_row: Path) -> None:
        self.number = number
        repeated = pa.concat_tables([DUPLICATES.empty_table(), *read_bucket(duplicates, number)])
        first = repeated["first"].combine_chunks()
        count = len(first)
        texts = {
            "rule": pa.array(["duplicate_link"] * count, pa.string()),
            "value": first,
            "reason": pa.array(["the same address as a link before it, of this uid"] * count, pa.string()),
            "evidence": pc.binary_join_element_wise('{"first": "', first, '"}', ""),
            "consent": pa.nulls(count, pa.string()),
        }
        schema = pa.schema([("row", pa.int64()), *((name, pa.string()) for name in TEXTS)])
        decided = [part.cast(schema) for part in read_bucket(by_row / "decisions", number)]
        table = pa.table({"row": repeated["row"], **texts}, schema=schema)
        self.table = pa.concat_tables([table, *decided]).combine_chunks()
        self.index = np.full(RANGE, -1, np.int64)
        self.index[self.table["row"].to_numpy() - number * RANGE] = np.arange(self.table.num_rows)
        self.position = np.full(RANGE, np.nan)
        for part in read_bucket(by_row / "positions", number):
            self.position[part["row"].to_numpy() - number * RANGE] = part["position"].to_numpy()

    def decide(self, table: pa.Table, first: int) -> tuple[pa.Table, np.ndarray, pa.Table]:
        """Return the ledger rows of a chunk, (N,) which of its rows stay, and the links that stay.

        Args:
            table: The chunk of N rows.
            first: Number of its first row.
        """
        begin = first - self.number * RANGE
        index = self.index[begin : begin + table.num_rows]
        later = self.table.take(pa.array(index, mask=index < 0))
        position = self.position[begin : begin + table.num_rows]
        stays = ~np.isnan(position)
        texts = {name: pc.coalesce(table[name], later[name]) for name in ("rule", "value", "reason")}
        texts["evidence"] = pc.coalesce(later["evidence"], table["evidence"])
        missing = int((pc.is_null(texts["rule"]).to_numpy() != stays).sum())
        assert not missing, f"{missing} rows are neither kept nor dropped"
        decision = {name: table[name] for name in DECISION} | texts
        decision |= {"rule": pc.fill_null(texts["rule"], "kept"), "kept": pa.array(stays)}
        mask = pa.array(stays)
        links = (
            table.select([*COLUMNS, "origin", "link_hash"]).append_column("position", pa.array(position)).filter(mask)
        )
        consent = _joined(links["consent"], later["consent"].filter(mask))
        links = links.set_column(links.column_names.index("consent"), "consent", consent)
        return pa.table(decision), stays, links.select(ORDERED.names)


def _joined(own: pa.ChunkedArray, origin: pa.ChunkedArray) -> pa.ChunkedArray:
    """Join two JSON objects into one; the page's has sorted keys and no key ``origin``."""
    empty = pc.or_kleene(pc.is_null(own), pc.equal(own, "{}"))
    both = pc.binary_join_element_wise(pc.utf8_slice_codeunits(own, 0, -1), pc.utf8_slice_codeunits(origin, 1), ", ")
    return pc.if_else(empty, origin, both)


def _count(counts: Counts, decision: pa.Table, stays: np.ndarray) -> None:
    for entry in pc.value_counts(decision["rule"]).to_pylist():
        if entry["values"] != "kept":
            counts.dropped[entry["values"]] += entry["counts"]
    kept = decision.filter(pa.array(stays))
    for name, totals in counts.kept.items():
        for entry in pc.value_counts(kept[name]).to_pylist():
            totals[entry["values"] or ""] += entry["counts"]


def largest_first(numbers: Counter[str], most: int = 1000) -> dict[str, Any]:
    """Return the most frequent entries, the largest first; ties are ordered by name."""
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:most])

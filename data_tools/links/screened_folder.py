"""Write what was decided of all links: a ledger in the order of the tables, the links that stay in the order to ask.

Decisions of the earlier stages lie parted by the place of the row in the table; links are parted by their place in the
order, and sorted a part at a time. Memory therefore does not grow with the table.
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
from data_tools.work.ledger import LEDGER, LedgerWriter

STAGE = "screen_links"
LINKS = "links.parquet"
RANGE = 10 * CHUNK  # rows whose fates are in memory at a time
SORTED = 100_000  # links sorted at a time, on average
DECISION = ("uid", "url", "domain", "licence", "legal_basis", "language")
LINK = pa.schema([(name, pa.string()) for name in (*COLUMNS, "origin")])
ORDERED = pa.schema([*LINK, ("position", pa.float64()), ("link_hash", pa.binary(16))])


@dataclass
class Counts:
    """What became of the links.

    Args:
        dropped: Links by the rule that dropped them.
        kept: Those that stay, by ``language``, ``legal_basis`` and ``licence``.
    """

    dropped: Counter[str] = field(default_factory=Counter)
    kept: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in ("language", "legal_basis", "licence")}
    )


def write_decisions(
    output: Path, chunks: Path, number_of_chunks: int, duplicates: Path, verdicts: Path, work: Path
) -> Counts:
    """Write ``ledger.parquet`` and ``links.parquet`` into ``output``.

    Args:
        output: The folder.
        chunks: Rows as data_tools/links/row_filters.py judged them.
        number_of_chunks: Of them.
        duplicates: Parted as in ``LinkDuplicates.find``.
        verdicts: Folder with ``fates`` and ``places`` of data_tools/links/robots_screen.py, parted by row // ``RANGE``.
        work: For the links on their way into order.
    """
    counts = Counts()
    places = sum(1 for _ in (verdicts / "places").iterdir())
    parts = max(1, places * RANGE // SORTED)
    ordered = work / "ordered"
    fates: _Fates | None = None
    with LedgerWriter(output / LEDGER, STAGE) as ledger, DiskBuckets(ordered) as buckets:
        for number in range(number_of_chunks):
            place = number * CHUNK // RANGE
            if fates is None or fates.place != place:
                fates = _Fates(place, duplicates, verdicts)
            table = read_chunk(chunks, number)
            decision, stays, links = fates.decide(table, number * CHUNK)
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


class _Fates:
    """Decisions about the rows of one range, found by row."""

    def __init__(self, place: int, duplicates: Path, verdicts: Path) -> None:
        self.place = place
        twice = pa.concat_tables([DUPLICATES.empty_table(), *read_bucket(duplicates, place)])
        first = twice["first"].combine_chunks()
        count = len(first)
        texts = {
            "rule": pa.array(["duplicate_link"] * count, pa.string()),
            "value": first,
            "reason": pa.array(["the same address as a link before it, of this uid"] * count, pa.string()),
            "evidence": pc.binary_join_element_wise('{"first": "', first, '"}', ""),
            "consent": pa.nulls(count, pa.string()),
        }
        schema = pa.schema([("row", pa.int64()), *((name, pa.string()) for name in TEXTS)])
        judged = [part.cast(schema) for part in read_bucket(verdicts / "fates", place)]
        table = pa.table({"row": twice["row"], **texts}, schema=schema)
        self.table = pa.concat_tables([table, *judged]).combine_chunks()
        self.index = np.full(RANGE, -1, np.int64)
        self.index[self.table["row"].to_numpy() - place * RANGE] = np.arange(self.table.num_rows)
        self.position = np.full(RANGE, np.nan)
        for part in read_bucket(verdicts / "places", place):
            self.position[part["row"].to_numpy() - place * RANGE] = part["position"].to_numpy()

    def decide(self, table: pa.Table, first: int) -> tuple[pa.Table, np.ndarray, pa.Table]:
        """Give the ledger's rows of a chunk, which of them stay, and the links that stay."""
        begin = first - self.place * RANGE
        index = self.index[begin : begin + table.num_rows]
        fate = self.table.take(pa.array(index, mask=index < 0))
        position = self.position[begin : begin + table.num_rows]
        stays = ~np.isnan(position)
        texts = {name: pc.coalesce(table[name], fate[name]) for name in ("rule", "value", "reason")}
        texts["evidence"] = pc.coalesce(fate["evidence"], table["evidence"])
        missing = int((pc.is_null(texts["rule"]).to_numpy() != stays).sum())
        assert not missing, f"{missing} rows are neither kept nor dropped"
        decision = {name: table[name] for name in DECISION} | texts
        decision |= {"rule": pc.fill_null(texts["rule"], "kept"), "kept": pa.array(stays)}
        mask = pa.array(stays)
        links = (
            table.select([*COLUMNS, "origin", "link_hash"]).append_column("position", pa.array(position)).filter(mask)
        )
        consent = _joined(links["consent"], fate["consent"].filter(mask))
        links = links.set_column(links.column_names.index("consent"), "consent", consent)
        return pa.table(decision), stays, links.select(ORDERED.names)


def _joined(own: pa.ChunkedArray, origin: pa.ChunkedArray) -> pa.ChunkedArray:
    """One JSON object of the page's and the origin's; the page's has no key ``origin`` and stands in sorted form."""
    empty = pc.or_kleene(pc.is_null(own), pc.equal(own, "{}"))
    both = pc.binary_join_element_wise(pc.utf8_slice_codeunits(own, 0, -1), pc.utf8_slice_codeunits(origin, 1), ", ")
    return pc.if_else(empty, origin, both)


def _count(counts: Counts, decision: pa.Table, stays: np.ndarray) -> None:
    for entry in pc.value_counts(decision["rule"]).to_pylist():
        if entry["values"] != "kept":
            counts.dropped[entry["values"]] += entry["counts"]
    kept = decision.filter(pa.array(stays))
    for name, known in counts.kept.items():
        for entry in pc.value_counts(kept[name]).to_pylist():
            known[entry["values"] or ""] += entry["counts"]


def counted(numbers: Counter[str], most: int = 1000) -> dict[str, Any]:
    """The most frequent first; ties by name."""
    return dict(sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:most])

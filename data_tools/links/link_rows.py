"""Iterate over the rows of a table of links of any length: which may be fetched, and why the others are refused.

The table is read again in batches for every iteration, so memory does not grow with it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.links.blocklists import DigestList
from data_tools.links.link_table import folder_links, link_batches
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.samples.sample_record import json_fault
from data_tools.work.ledger import link_uid
from leam_mm.errors import UserError

BATCH = 5000  # rows in memory at a time


@dataclass
class LinkRow:
    """One row of the table.

    Args:
        number: Its number in the table, from 0.
        source: The row as it is in the table.
        decision: Its row of the ledger, as far as it is decided before anything is fetched.
        fetch: Address to fetch, or None if the row is already refused.
    """

    number: int
    source: dict[str, str | None]
    decision: dict[str, Any]
    fetch: str | None


@dataclass(frozen=True)
class Survey:
    """Summary of a whole table.

    Args:
        rows: Number of rows.
        fetch: Number of rows that may be fetched.
        foreign_host: A host among them that is not in ``allow_private``, or None.
        digest: SHA-256 over all values, independent of the file's format.
    """

    rows: int
    fetch: int
    foreign_host: str | None
    digest: str


class LinkRows:
    """A table of links, or a folder of images, whose rows are checked one by one.

    Args:
        table: Parquet, csv or jsonl file.
        folder: In place of a table, a folder of images with captions beside them.
        allow_file: Whether files of this machine may be read; those of ``folder`` always may.
        allow_private: Hosts that are trusted although their addresses are private.
        blocked: Addresses that are never fetched: those of withdrawn samples.
    """

    def __init__(
        self,
        table: Path | None,
        folder: Path | None,
        allow_file: bool,
        allow_private: list[str],
        blocked: DigestList | None = None,
    ) -> None:
        """Read the whole table once; see the class for the arguments."""
        self.table, self.allow_file, self.allow_private = table, allow_file or folder is not None, allow_private
        self.blocked = blocked
        self.base = folder or (table or Path()).parent
        self._images = folder_links(folder) if folder else None
        self._width = 7
        self.survey = self._survey()
        self._width = max(7, len(str(self.survey.rows - 1)))

    def _batches(self) -> Iterator[pa.Table]:
        if self._images is None:
            assert self.table is not None
            yield from link_batches(self.table, BATCH)
            return
        for start in range(0, self._images.num_rows, BATCH):
            yield self._images.slice(start, BATCH)

    def _survey(self) -> Survey:
        digests: dict[str, Any] = {}
        rows = fetch = 0
        foreign_host = None
        for row in self:
            rows += 1
            for name, value in row.source.items():
                raw = b"" if value is None else value.encode("utf-8", "surrogatepass")
                digest = digests.setdefault(name, hashlib.sha256(name.encode() + b"\0"))
                digest.update(b"-" if value is None else len(raw).to_bytes(8, "big") + raw)
            if row.fetch:
                fetch += 1
                if row.decision["domain"] not in ("", *self.allow_private):
                    foreign_host = foreign_host or row.decision["domain"]
        if not rows:
            raise UserError(f"{self.table} holds no row; give a table with at least one link")
        whole = hashlib.sha256(b"".join(digests[name].digest() for name in sorted(digests)))
        return Survey(rows, fetch, foreign_host, whole.hexdigest())

    def __iter__(self) -> Iterator[LinkRow]:
        """Iterate over the table once."""
        number = 0
        for batch in self._batches():
            for source in batch.to_pylist():
                yield self._check(number, source)
                number += 1

    def _check(self, number: int, source: dict[str, str | None]) -> LinkRow:
        url = source["url"]
        decision: dict[str, Any] = {
            "uid": source.get("uid") or link_uid(url, source.get("page_url"), source["caption"]),
            "key": f"{number:0{self._width}d}",
            "url": url,
            "kept": False,
            "licence": source.get("licence"),
            "legal_basis": source.get("legal_basis"),
            "language": source.get("language"),
        }
        row = LinkRow(number, source, decision, None)
        try:
            fetch, decision["url"], decision["domain"] = check_link(url, self.base, self.allow_file, self.allow_private)
            if self.blocked and (hit := self.blocked.find({url or "", decision["url"], fetch})):
                raise LinkRefused(hit.rule, hit.value, f"on the list {hit.list_name} of withdrawn addresses")
            for column in ("captions", "metadata", "consent"):
                if fault := json_fault(column, source.get(column)):
                    raise LinkRefused(column, str(source[column])[:80], fault)
            if not (source["caption"] or "").strip() and (source.get("captions") or "[]").strip() == "[]":
                raise LinkRefused("caption", "", "the caption is empty")
        except LinkRefused as refused:
            decision.update(rule=refused.rule, value=refused.value, reason=refused.reason)
            return row
        row.fetch = fetch
        return row

"""Walk a table of links row by row, however long it is: which may be fetched, and what the ledger says of the rest.

The table is read again for every walk, some thousand rows at a time, so that memory does not grow with it.
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
        number: Its place in the table, from 0.
        source: The row as it stands there.
        decision: Its row of the ledger, as far as it is known before anything is fetched.
        fetch: Address to ask for, or None where the row is refused already.
    """

    number: int
    source: dict[str, str | None]
    decision: dict[str, Any]
    fetch: str | None


@dataclass(frozen=True)
class Survey:
    """What one walk over the whole table tells.

    Args:
        rows: How many there are.
        fetch: How many of them may be fetched.
        stranger: A host among them that is not one of ours, or None.
        digest: SHA-256 over all values, independent of the file's format.
    """

    rows: int
    fetch: int
    stranger: str | None
    digest: str


class LinkRows:
    """A table of links, or a folder of images, judged row by row.

    Args:
        table: Parquet, csv or jsonl file.
        folder: Instead of it, a folder of images with captions beside them.
        allow_file: Whether files of this machine may be read; those of ``folder`` always may.
        allow_private: Hosts that are trusted although their addresses are not public.
        blocked: Addresses that are not fetched whatever the table says: those of withdrawn samples.
    """

    def __init__(
        self,
        table: Path | None,
        folder: Path | None,
        allow_file: bool,
        allow_private: list[str],
        blocked: DigestList | None = None,
    ) -> None:
        """Look at nothing yet; see the class for the arguments."""
        self.table, self.allow_file, self.allow_private = table, allow_file or folder is not None, allow_private
        self.blocked = blocked
        self.base = folder or (table or Path()).parent
        self._pictures = folder_links(folder) if folder else None
        self._width = 7
        self.survey = self._survey()
        self._width = max(7, len(str(self.survey.rows - 1)))

    def _batches(self) -> Iterator[pa.Table]:
        if self._pictures is None:
            assert self.table is not None
            yield from link_batches(self.table, BATCH)
            return
        for start in range(0, self._pictures.num_rows, BATCH):
            yield self._pictures.slice(start, BATCH)

    def _survey(self) -> Survey:
        digests: dict[str, Any] = {}
        rows = fetch = 0
        stranger = None
        for row in self:
            rows += 1
            for name, value in row.source.items():
                raw = b"" if value is None else value.encode("utf-8", "surrogatepass")
                digest = digests.setdefault(name, hashlib.sha256(name.encode() + b"\0"))
                digest.update(b"-" if value is None else len(raw).to_bytes(8, "big") + raw)
            if row.fetch:
                fetch += 1
                if row.decision["domain"] not in ("", *self.allow_private):
                    stranger = stranger or row.decision["domain"]
        if not rows:
            raise UserError(f"{self.table} holds no row; give a table with at least one link")
        whole = hashlib.sha256(b"".join(digests[name].digest() for name in sorted(digests)))
        return Survey(rows, fetch, stranger, whole.hexdigest())

    def __iter__(self) -> Iterator[LinkRow]:
        """Walk the table once."""
        number = 0
        for batch in self._batches():
            for source in batch.to_pylist():
                yield self._judge(number, source)
                number += 1

    def _judge(self, number: int, source: dict[str, str | None]) -> LinkRow:
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

"""Iterate over the rows of a table of links of any length: which may be fetched, and why the others are refused.

The table is read again in batches for every iteration, so memory does not grow with it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_tools.links.image_folder import REFUSED, Fault, FolderColumns, read_image_folder
from data_tools.links.link_rules import page_signals, page_terms, with_claim
from data_tools.links.link_sources import LinkSources
from data_tools.links.link_table import describe_table, link_batches
from data_tools.links.withdrawn_lists import WithdrawnLists
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.reservations import decide
from data_tools.samples.sample_record import json_fault
from data_tools.work.text_tables import TOO_LONG
from leam_mm.data.ledger import link_uid
from leam_mm.data.legal_basis import basis_of
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
        agreed: Whether an entry of the sources names its host for a licence or consent.
        claimed: Whether the table states another legal basis than the one that holds.
    """

    number: int
    source: dict[str, str | None]
    decision: dict[str, Any]
    fetch: str | None
    agreed: bool = False
    claimed: bool = False


@dataclass(frozen=True)
class Survey:
    """Summary of a whole table.

    Args:
        rows: Number of rows.
        fetch: Number of rows that may be fetched.
        foreign_host: A host among them that is not in ``allow_private``, or None.
        agreed: Hosts that a licence or consent of the sources names.
        claims: Number of rows whose own legal basis does not count.
        digest: SHA-256 over all values, independent of the file's format.
    """

    rows: int
    fetch: int
    foreign_host: str | None
    digest: str
    agreed: tuple[str, ...] = ()
    claims: int = 0


class LinkRows:
    """A table of links, or a folder of images, whose rows are checked one by one.

    Args:
        table: A table of links, or a folder of its parts; see link_table.py.
        folder: In place of a table, a folder of images with captions beside them.
        allow_file: Whether files of this machine may be read; those of ``folder`` always may.
        allow_private: Hosts that are trusted although their addresses are private.
        withdrawn: What was withdrawn from shards, and is never fetched again.
        sources: Legal bases by host and source, which override the table.
        trusted: Whether the table's own ``legal_basis`` counts; otherwise it is a claim, kept in ``consent``.
        refused: Faults by address of rows that are refused, whatever they hold.
        columns: Which columns of the table are read, and where captions of a folder are; by default what is
            recognised.
    """

    def __init__(
        self,
        table: Path | None,
        folder: Path | None,
        allow_file: bool,
        allow_private: list[str],
        withdrawn: WithdrawnLists | None = None,
        sources: LinkSources | None = None,
        trusted: bool = False,
        refused: Mapping[str, Fault] | None = None,
        columns: FolderColumns | None = None,
    ) -> None:
        """Read the whole table once; see the class for the arguments."""
        self.table, self.allow_file, self.allow_private = table, allow_file or folder is not None, allow_private
        self.withdrawn, self.sources, self.trusted = withdrawn, sources or LinkSources(), trusted
        self.refused = refused or {}
        self.columns = columns or FolderColumns()
        self.base = folder or (table if table and table.is_dir() else (table or Path()).parent)
        images = read_image_folder(folder, self.columns) if folder else None
        self._images = images.table(lenient=True) if images else None
        self.description = images.describe() if images else describe_table(table or Path(), self.columns)
        self._width = 7
        self.survey = self._survey()
        self._width = max(7, len(str(self.survey.rows - 1)))

    def _batches(self) -> Iterator[pa.Table]:
        if self._images is None:
            assert self.table is not None
            yield from link_batches(self.table, BATCH, self.columns, self.allow_file)
            return
        for start in range(0, self._images.num_rows, BATCH):
            yield self._images.slice(start, BATCH)

    def _survey(self) -> Survey:
        digests: dict[str, Any] = {}
        rows = fetch = claims = 0
        foreign_host = None
        agreed: set[str] = set()
        for row in self:
            rows += 1
            claims += row.claimed
            for name, value in row.source.items():
                raw = b"" if value is None else value.encode("utf-8", "surrogatepass")
                digest = digests.setdefault(name, hashlib.sha256(name.encode() + b"\0"))
                digest.update(b"-" if value is None else len(raw).to_bytes(8, "big") + raw)
            if row.fetch:
                fetch += 1
                if row.decision["domain"] not in ("", *self.allow_private):
                    foreign_host = foreign_host or row.decision["domain"]
                if row.agreed:
                    agreed.add(row.decision["domain"])
        if not rows:
            raise UserError(f"{self.table} holds no row; give a table with at least one link")
        whole = hashlib.sha256(b"".join(digests[name].digest() for name in sorted(digests)))
        return Survey(rows, fetch, foreign_host, whole.hexdigest(), tuple(sorted(agreed)), claims)

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
        if fault := source.pop(TOO_LONG, None):
            decision.update(rule="table", value=fault, reason="a limit of tables is broken")
            return row
        left_out = source.pop(REFUSED, None)
        try:
            if known := self.refused.get(url or ""):
                raise LinkRefused(*known)
            if left_out:
                raise LinkRefused(*json.loads(left_out))
            fetch, decision["url"], decision["domain"] = check_link(url, self.base, self.allow_file, self.allow_private)
            addresses = (url or "", decision["url"], fetch)
            if self.withdrawn and (hit := self.withdrawn.find_address(addresses, source.get("page_url"))):
                raise LinkRefused(hit.rule, hit.value, f"on the list {hit.list_name} of withdrawals")
            for column in ("captions", "metadata", "consent"):
                if wrong := json_fault(column, source.get(column)):
                    raise LinkRefused(column, str(source[column])[:80], wrong)
            self._apply_basis(row)
            basis = basis_of(row.source.get("legal_basis"))
            if refusal := decide(page_signals(row.source.get("consent")), basis):
                value = f"{refusal.kind}: {refusal.value}"
                raise LinkRefused("page_rights", value, "the page that shows it reserves rights")
            if not self.trusted and page_terms(row.source.get("consent")) and basis.honours_reservations:
                raise LinkRefused("page_rights", "page:rsl", "the page links to terms that only screen_links reads")
            if not (source["caption"] or "").strip() and (source.get("captions") or "[]").strip() == "[]":
                raise LinkRefused("caption", "", "the caption is empty")
        except LinkRefused as refused:
            decision.update(rule=refused.rule, value=refused.value, reason=refused.reason)
            return row
        row.fetch = fetch
        return row

    def _apply_basis(self, row: LinkRow) -> None:
        """Replace the table's legal basis by the one that holds, and keep the other as a claim."""
        cells, host = row.source, row.decision["domain"]
        stated = cells.get("legal_basis")
        if self.sources.given or (stated and not self.trusted):
            try:
                standing = self.sources.standing(host, cells.get("source"), stated, self.trusted)
            except UserError:
                return  # a word of the table's own, which lifts nothing
            claim = with_claim(cells.get("consent"), stated, standing.basis)
            row.source = cells | {"legal_basis": standing.basis.value, "consent": claim}
            row.claimed = (stated or "").strip() not in ("", standing.basis.value)
            row.source["licence"] = standing.licence or cells.get("licence")
            row.decision |= {name: row.source[name] for name in ("legal_basis", "licence")}
            row.agreed = standing.basis.may_be_agreed and self.sources.names_host(host, cells.get("source"))

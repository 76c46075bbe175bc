"""Rules that decide about a link from its row in the table alone, without network, one batch of rows at a time.

Rules are ordered by cost; each sees only the rows that the previous ones kept, and its CPU time is measured. The first
rule that drops a row gives the reason. Evidence contains no personal data, only its kinds.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from data_tools.links import language_vote
from data_tools.links.blocklists import Blocked, DigestList, DomainList, PhraseList, text_words
from data_tools.links.link_columns import OPTIONAL, REQUIRED
from data_tools.links.link_sources import LinkSources
from data_tools.links.personal_data_rule import PersonalDataRule
from data_tools.network.link_address import MAX_ADDRESS, LinkRefused, check_link, normal_url
from data_tools.rights.reservations import Signal, decide
from data_tools.rights.rsl_terms import MOST_DOCUMENTS
from data_tools.samples.sample_record import json_fault
from data_tools.work.foreign_error import first_line
from data_tools.work.text_tables import TOO_LONG
from leam_mm.data.ledger import evidence_text, link_uid
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

COLUMNS = (*REQUIRED, *OPTIONAL)
FILTERED = pa.schema(
    [(name, pa.string()) for name in (*COLUMNS, "fetch", "domain", "origin", "terms")]
    + [("link_hash", pa.binary(16))]
    + [(name, pa.string()) for name in ("rule", "value", "reason", "evidence")]
)
_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class LinkRuleSettings:
    """Settings of the rules; all of them are part of the fingerprint.

    Args:
        sources: YAML file of legal bases, "" for none.
        domain_lists: Files of blocked domains.
        digest_lists: Files of digests of blocked addresses.
        phrase_lists: Files of blocked phrases.
        personal_data: Kind of personal data -> action.
        strict_personal_data: Also act on text that only has the form of personal data.
        keep_languages: Languages to keep, "und" for undetermined; empty for all.
        max_caption: Longest caption, in characters.
        allow_private: Hosts whose private addresses are trusted.
        seed: Seed of the order of links.
    """

    sources: str = ""
    domain_lists: list[str] = field(default_factory=list)
    digest_lists: list[str] = field(default_factory=list)
    phrase_lists: list[str] = field(default_factory=list)
    personal_data: dict[str, str] = field(default_factory=dict)
    strict_personal_data: bool = False
    keep_languages: list[str] = field(default_factory=list)
    max_caption: int = 5000
    allow_private: list[str] = field(default_factory=list)
    seed: int = 0

    def identity(self) -> dict[str, Any]:
        """Return the settings with the digest of each file in place of its name."""
        lists = ("domain_lists", "digest_lists", "phrase_lists")
        files = {name: [file_sha256(path) for path in getattr(self, name)] for name in lists}
        return asdict(self) | files | {"sources": file_sha256(self.sources) if self.sources else ""}


@dataclass
class _Row:
    """A link while the rules are applied."""

    cells: dict[str, str | None]
    captions: list[dict[str, Any]]
    evidence: dict[str, Any] = field(default_factory=dict)
    refused: LinkRefused | None = None
    words: list[str] = field(default_factory=list)
    trusted: bool = False
    fetch: str | None = None
    domain: str | None = None

    def texts(self) -> list[str]:
        """Return caption and captions."""
        return [self.cells["caption"] or "", *(entry["text"] for entry in self.captions)]


class LinkRules:
    """The rules with their lists loaded; one instance per process.

    Args:
        settings: Settings of the rules.
    """

    def __init__(self, settings: LinkRuleSettings) -> None:
        """Load the lists; see the class for the arguments."""
        self.settings = settings
        self.sources = LinkSources(Path(settings.sources) if settings.sources else None)
        self.domains = [DomainList(Path(path)) for path in settings.domain_lists]
        self.digests = [DigestList(Path(path)) for path in settings.digest_lists]
        self.phrases = [PhraseList(Path(path)) for path in settings.phrase_lists]
        self.personal = PersonalDataRule(settings.personal_data, settings.strict_personal_data)
        self.keep = frozenset(settings.keep_languages)
        self.rules: list[tuple[str, Callable[[list[_Row]], None]]] = [
            ("table", self._each(self._table)),
            ("address", self._each(self._address)),
            ("blocked_domain", self._each(self._blocked_domain)),
            ("blocked_url", self._each(self._blocked_url)),
            ("legal_basis", self._each(self._legal_basis)),
            ("page_rights", self._each(self._page_rights)),
            ("blocked_phrase", self._each(self._blocked_phrase)),
            ("personal_data", self._each(self._personal_data)),
            ("language", self._language),
        ]

    def apply(self, table: pa.Table, trusted: bool = False) -> tuple[pa.Table, dict[str, dict[str, float]]]:
        """Apply all rules to a batch.

        Args:
            table: Strings; columns of ``COLUMNS``, of which ``url`` and ``caption`` are required.
            trusted: Whether the table's own ``legal_basis`` counts; otherwise it is a claim, kept in ``consent``.

        Returns:
            The rows in the same order, as in ``FILTERED`` (``rule`` is empty where the row stays), and the
            number of rows that each rule saw and dropped, and its CPU seconds.
        """
        columns = {name: table[name].to_pylist() for name in table.column_names}
        cells = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [_Row(dict.fromkeys(COLUMNS) | row, [], trusted=trusted) for row in cells]
        kept, cost = rows, {}
        for name, rule in self.rules:
            begin, seen = time.process_time(), len(kept)
            rule(kept)
            kept = [row for row in kept if row.refused is None]
            seconds = time.process_time() - begin
            cost[name] = {"rows": seen, "dropped": seen - len(kept), "cpu_seconds": seconds}
        return pa.Table.from_pylist([_filtered(row) for row in rows], FILTERED), cost

    def _each(self, rule: Callable[[_Row], None]) -> Callable[[list[_Row]], None]:
        def apply(rows: list[_Row]) -> None:
            for row in rows:
                try:
                    rule(row)
                except LinkRefused as refused:
                    row.refused = refused
                except RecursionError:
                    row.refused = LinkRefused("table", "", "JSON in a column is nested too deeply")

        return apply

    def _table(self, row: _Row) -> None:
        cells = row.cells
        if not _UID.fullmatch(cells["uid"] or ""):
            cells["uid"] = link_uid(cells["url"], cells["page_url"], cells["caption"])
        if fault := cells.get(TOO_LONG):
            cells |= dict.fromkeys(("captions", "metadata", "consent"))  # cut off, so no JSON
            raise LinkRefused("table", fault, "a limit of tables is broken")
        for name in ("captions", "metadata", "consent"):
            if "\\u" in (cells[name] or ""):  # half of a surrogate pair cannot be written as UTF-8
                with suppress(ValueError, RecursionError):  # what is no JSON is refused next
                    whole = json.dumps(json.loads(cells[name] or ""), ensure_ascii=False)
                    cells[name] = whole.encode("utf-8", "replace").decode()
            if cells[name] and (fault := json_fault(name, cells[name])):
                raise LinkRefused(name, str(cells[name])[:80], fault)
        row.captions = json.loads(cells["captions"] or "[]")
        if cells["consent"]:  # with sorted keys, and without the key that later holds the origin's signals
            kept = {name: value for name, value in json.loads(cells["consent"]).items() if name != "origin"}
            cells["consent"] = evidence_text(kept)
        if not any(text.strip() for text in row.texts()):
            raise LinkRefused("caption", "", "the caption is empty")
        longest = max(map(len, row.texts()))
        if longest > self.settings.max_caption:
            raise LinkRefused("caption", f"{longest} characters", f"longer than {self.settings.max_caption} characters")

    def _address(self, row: _Row) -> None:
        if len(row.cells["url"] or "") > MAX_ADDRESS:
            raise LinkRefused(
                "url", f"{len(row.cells['url'] or '')} characters", f"longer than {MAX_ADDRESS} characters"
            )
        row.fetch, row.cells["url"], row.domain = check_link(
            row.cells["url"], Path("/"), False, self.settings.allow_private
        )

    def _blocked_domain(self, row: _Row) -> None:
        for domains in self.domains:
            _refuse(domains.find(row.domain or ""))

    def _blocked_url(self, row: _Row) -> None:
        for digests in self.digests:
            _refuse(digests.find({str(row.fetch), str(row.cells["url"])}))

    def _legal_basis(self, row: _Row) -> None:
        cells = row.cells
        try:
            standing = self.sources.standing(row.domain or "", cells["source"], cells["legal_basis"], row.trusted)
        except UserError as error:
            raise LinkRefused("legal_basis", str(cells["legal_basis"])[:80], str(error)) from None
        cells["consent"] = with_claim(cells["consent"], cells["legal_basis"], standing.basis)
        cells["legal_basis"] = standing.basis.value
        cells["licence"] = standing.licence or cells["licence"]
        row.evidence["legal_basis"] = standing.said_by

    def _page_rights(self, row: _Row) -> None:
        if not row.cells["consent"]:
            return
        signals = page_signals(row.cells["consent"])
        if refusal := decide(signals, LegalBasis.of(row.cells["legal_basis"])):
            row.evidence["signal"] = asdict(refusal)
            raise LinkRefused(
                "page_rights", f"{refusal.kind}: {refusal.value}", "the page that shows it reserves rights"
            )

    def _blocked_phrase(self, row: _Row) -> None:
        if self.phrases:
            for text in row.texts():
                words = text_words(text)
                for phrases in self.phrases:
                    _refuse(phrases.find(words))

    def _personal_data(self, row: _Row) -> None:
        cleaned = [self.personal.clean(text) for text in row.texts()]
        found = [item for _, items in cleaned for item in items]
        if not found:
            return
        row.evidence["personal_data"] = [
            {"kind": item.kind, "validated": item.validated, "detail": item.detail} for item in found
        ]
        if item := self.personal.dropping(found):
            raise LinkRefused("personal_data", item.kind, f"a caption holds personal data ({item.kind}: {item.detail})")
        row.cells["caption"] = cleaned[0][0]
        row.captions = [entry | {"text": text} for entry, (text, _) in zip(row.captions, cleaned[1:], strict=True)]
        row.cells["captions"] = json.dumps(row.captions, ensure_ascii=False) if row.captions else row.cells["captions"]
        if not any(re.search(r"[^\W\d_]", re.sub(r"<\w+>", "", text)) for text in row.texts()):
            raise LinkRefused("caption", found[0].kind, "nothing is left of the caption beside personal data")

    def _language(self, rows: list[_Row]) -> None:
        pages = [row.cells["language"] for row in rows]
        pairs = [(row.cells["caption"] or "", page) for row, page in zip(rows, pages, strict=True)]
        distinct = list(dict.fromkeys(pairs))  # alt texts such as "logo" repeat
        votes = language_vote.vote([text for text, _ in distinct], [page for _, page in distinct])
        vote_of = dict(zip(distinct, votes, strict=True))
        for row, pair in zip(rows, pairs, strict=True):
            found, page = vote_of[pair], pair[1]
            row.cells["language"] = found.language
            row.evidence["language"] = {"confidence": found.confidence, **found.votes}
            undetermined = [entry for entry in row.captions if entry["language"] == language_vote.UNDETERMINED]
            others = language_vote.vote([entry["text"] for entry in undetermined], [page] * len(undetermined))
            for entry, other in zip(undetermined, others, strict=True):
                entry["language"] = other.language
            if self.keep:
                kept = [entry for entry in row.captions if entry["language"] in self.keep]
                if not kept and (row.captions or found.language not in self.keep):
                    named = ", ".join(sorted({entry["language"] for entry in row.captions})) or found.language
                    row.refused = LinkRefused("language", named, "not among the languages to keep")
                    continue
                row.captions = kept
            if row.captions:
                row.cells["captions"] = json.dumps(row.captions, ensure_ascii=False)


def with_claim(consent: str | None, stated: str | None, basis: LegalBasis) -> str | None:
    """Return the column ``consent`` with the legal basis that a table claims, if it is not the one that holds."""
    if not stated or stated.strip() == basis.value:
        return consent
    return evidence_text(json.loads(consent or "{}") | {"claims": {"legal_basis": stated.strip()}})


def page_signals(consent: str | None) -> list[Signal]:
    """Return the signals of the page that shows the image: ``page_rights`` of the column ``consent``.

    Raises:
        LinkRefused: They cannot be read, and may therefore hold a reservation.
    """
    found = json.loads(consent or "{}").get("page_rights") or []
    try:
        return [
            Signal(str(row["kind"]), str(row["value"]), str(row["source"]), row["reserved"] is not False)
            for row in found
        ]
    except (TypeError, KeyError) as error:
        raise LinkRefused(
            "page_rights", str(consent)[:80], f"the page's rights cannot be read ({first_line(error)})"
        ) from None


def page_terms(consent: str | None) -> str | None:
    """Return the addresses of RSL documents to which the page links (``page_terms`` of ``consent``), as JSON."""
    found = json.loads(consent or "{}").get("page_terms")
    terms = [str(address)[:MAX_ADDRESS] for address in found] if isinstance(found, list) else []
    return json.dumps(terms[:MOST_DOCUMENTS]) if terms else None


def _refuse(blocked: Blocked | None) -> None:
    if blocked:
        reason = f"entry of {blocked.list_name} (sha256 {blocked.list_sha256[:16]})"
        raise LinkRefused(blocked.rule, blocked.value, reason)


def _filtered(row: _Row) -> dict[str, Any]:
    cells: dict[str, Any] = dict(row.cells)
    if row.fetch and row.refused is None:
        parts = urlsplit(row.fetch)
        cells["origin"] = f"{parts.scheme}://{parts.netloc}"
        cells["link_hash"] = hashlib.blake2b(normal_url(row.fetch).encode(), digest_size=16).digest()
    cells["terms"] = page_terms(row.cells["consent"]) if row.refused is None else None
    cells |= {"fetch": row.fetch, "domain": row.domain, "evidence": evidence_text(row.evidence)}
    if row.refused is not None:
        cells |= {"rule": row.refused.rule, "value": row.refused.value, "reason": row.refused.reason}
    return cells

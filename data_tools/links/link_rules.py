"""All that is decided of a link from its row in the table alone, before anybody is asked: a batch of rows at a time.

Rules stand in the order of their cost, each sees what the ones before it left, and the time each takes is counted. The
first rule that drops a row names the reason. Nothing personal is written into evidence: kinds and places only.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from data_tools.links import language_vote
from data_tools.links.blocklists import Blocked, DigestList, DomainList, PhraseList, text_words
from data_tools.links.link_sources import LinkSources
from data_tools.links.link_table import OPTIONAL, REQUIRED
from data_tools.links.personal_data import PersonalDataRule
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.reservations import Signal, decide
from data_tools.samples.sample_record import json_fault
from data_tools.work.ledger import evidence_text, link_uid
from leam_mm.errors import UserError

COLUMNS = (*REQUIRED, *OPTIONAL)
FILTERED = pa.schema(
    [(name, pa.string()) for name in (*COLUMNS, "fetch", "domain", "origin")]
    + [("link_hash", pa.binary(16))]
    + [(name, pa.string()) for name in ("rule", "value", "reason", "evidence")]
)
MAX_ADDRESS = 8000  # characters (RFC 9110, 4.1, asks servers to support that many)
_UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class LinkRuleSettings:
    """What decides; all of it goes into the fingerprint.

    Args:
        sources: YAML file of legal bases, "" for none.
        domain_lists: Files of blocked domains.
        digest_lists: Files of blocked addresses' digests.
        phrase_lists: Files of blocked phrases.
        personal_data: Kind of personal data to what is done with it.
        strict_personal_data: Act also on what is only written like personal data.
        keep_languages: Languages that stay; empty for all. "und" stands for those that cannot be told.
        max_caption: Longest caption, in characters.
        allow_private: Hosts whose private addresses are trusted.
        seed: Of the order.
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
        """Settings with the content of each file instead of its name."""
        files = {name: [_content(path) for path in getattr(self, name)] for name in ("domain_lists", "digest_lists")}
        files |= {"phrase_lists": [_content(path) for path in self.phrase_lists]}
        return asdict(self) | files | {"sources": _content(self.sources) if self.sources else ""}


def _content(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); give an existing file") from None


@dataclass
class _Row:
    """A link on its way through the rules."""

    cells: dict[str, str | None]
    captions: list[dict[str, Any]]
    evidence: dict[str, Any] = field(default_factory=dict)
    refused: LinkRefused | None = None
    words: list[str] = field(default_factory=list)
    fetch: str | None = None
    domain: str | None = None

    def texts(self) -> list[str]:
        """Caption and captions."""
        return [self.cells["caption"] or "", *(entry["text"] for entry in self.captions)]


class LinkRules:
    """The rules, with their lists opened; one in each process."""

    def __init__(self, setting: LinkRuleSettings) -> None:
        """Open the lists."""
        self.setting = setting
        self.sources = LinkSources(Path(setting.sources) if setting.sources else None)
        self.domains = [DomainList(Path(path)) for path in setting.domain_lists]
        self.digests = [DigestList(Path(path)) for path in setting.digest_lists]
        self.phrases = [PhraseList(Path(path)) for path in setting.phrase_lists]
        self.personal = PersonalDataRule(setting.personal_data, setting.strict_personal_data)
        self.keep = frozenset(setting.keep_languages)
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

    def apply(self, table: pa.Table) -> tuple[pa.Table, dict[str, dict[str, float]]]:
        """Judge a batch.

        Args:
            table: Strings; columns of ``COLUMNS``, of which ``url`` and ``caption`` must be there.

        Returns:
            The rows in the same order, as in ``FILTERED`` (``rule`` is empty where the row stays), and the
            number of rows that each rule saw and dropped, and its CPU seconds.
        """
        columns = {name: table[name].to_pylist() for name in table.column_names}
        cells = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [_Row(dict.fromkeys(COLUMNS) | row, []) for row in cells]
        alive, spent = rows, {}
        for name, rule in self.rules:
            begin, seen = time.process_time(), len(alive)
            rule(alive)
            alive = [row for row in alive if row.refused is None]
            seconds = time.process_time() - begin
            spent[name] = {"rows": seen, "dropped": seen - len(alive), "cpu_seconds": seconds}
        return pa.Table.from_pylist([_filtered(row) for row in rows], FILTERED), spent

    def _each(self, rule: Callable[[_Row], None]) -> Callable[[list[_Row]], None]:
        def judge(rows: list[_Row]) -> None:
            for row in rows:
                try:
                    rule(row)
                except LinkRefused as refused:
                    row.refused = refused
                except RecursionError:
                    row.refused = LinkRefused("table", "", "JSON in a column is nested too deeply")

        return judge

    def _table(self, row: _Row) -> None:
        cells = row.cells
        if not _UID.fullmatch(cells["uid"] or ""):
            cells["uid"] = link_uid(cells["url"], cells["page_url"], cells["caption"])
        for name in ("captions", "metadata", "consent"):
            if cells[name] and (fault := json_fault(name, cells[name])):
                raise LinkRefused(name, str(cells[name])[:80], fault)
            if "\\u" in (cells[name] or ""):  # half a character, which no file of ours could hold
                whole = json.dumps(json.loads(cells[name] or ""), ensure_ascii=False)
                cells[name] = whole.encode("utf-8", "replace").decode()
        row.captions = json.loads(cells["captions"] or "[]")
        if cells["consent"]:  # sorted, and without the place where the origin's word will stand
            kept = {name: value for name, value in json.loads(cells["consent"]).items() if name != "origin"}
            cells["consent"] = evidence_text(kept)
        if not any(text.strip() for text in row.texts()):
            raise LinkRefused("caption", "", "the caption is empty")
        longest = max(map(len, row.texts()))
        if longest > self.setting.max_caption:
            raise LinkRefused("caption", f"{longest} characters", f"longer than {self.setting.max_caption} characters")

    def _address(self, row: _Row) -> None:
        if len(row.cells["url"] or "") > MAX_ADDRESS:
            raise LinkRefused(
                "url", f"{len(row.cells['url'] or '')} characters", f"longer than {MAX_ADDRESS} characters"
            )
        row.fetch, row.cells["url"], row.domain = check_link(
            row.cells["url"], Path("/"), False, self.setting.allow_private
        )

    def _blocked_domain(self, row: _Row) -> None:
        for known in self.domains:
            _refuse(known.find(row.domain or ""))

    def _blocked_url(self, row: _Row) -> None:
        for known in self.digests:
            _refuse(known.find({str(row.fetch), str(row.cells["url"])}))

    def _legal_basis(self, row: _Row) -> None:
        cells = row.cells
        try:
            standing = self.sources.standing(row.domain or "", cells["source"], cells["legal_basis"])
        except UserError as error:
            raise LinkRefused("legal_basis", str(cells["legal_basis"])[:80], str(error)) from None
        cells["legal_basis"] = standing.basis.value
        cells["licence"] = standing.licence or cells["licence"]
        row.evidence["legal_basis"] = standing.said_by

    def _page_rights(self, row: _Row) -> None:
        if not row.cells["consent"]:
            return
        signals = page_signals(row.cells["consent"])
        standing = self.sources.standing(row.domain or "", row.cells["source"], row.cells["legal_basis"])
        if refusal := decide(signals, standing.basis):
            row.evidence["signal"] = asdict(refusal)
            raise LinkRefused(
                "page_rights", f"{refusal.kind}: {refusal.value}", "the page that shows it reserves rights"
            )

    def _blocked_phrase(self, row: _Row) -> None:
        if self.phrases:
            for text in row.texts():
                words = text_words(text)
                for known in self.phrases:
                    _refuse(known.find(words))

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
        asked = [(row.cells["caption"] or "", page) for row, page in zip(rows, pages, strict=True)]
        distinct = list(dict.fromkeys(asked))  # alt texts repeat: "logo"
        known = language_vote.vote([text for text, _ in distinct], [page for _, page in distinct])
        told = dict(zip(distinct, known, strict=True))
        votes = [told[pair] for pair in asked]
        for row, page, found in zip(rows, pages, votes, strict=True):
            row.cells["language"] = found.language
            row.evidence["language"] = {"confidence": found.confidence, **found.votes}
            unknown = [entry for entry in row.captions if entry["language"] == language_vote.UNDETERMINED]
            others = language_vote.vote([entry["text"] for entry in unknown], [page] * len(unknown))
            for entry, other in zip(unknown, others, strict=True):
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


def page_signals(consent: str) -> list[Signal]:
    """Signals of the page that shows the image, as ``page_rights`` of the column ``consent`` holds them.

    Raises:
        LinkRefused: They cannot be read; what may be a reservation is not passed over.
    """
    found = json.loads(consent).get("page_rights") or []
    try:
        return [
            Signal(str(row["kind"]), str(row["value"]), str(row["source"]), row["reserved"] is not False)
            for row in found
        ]
    except (TypeError, KeyError) as error:
        raise LinkRefused("page_rights", consent[:80], f"the page's rights cannot be read ({error!r})") from None


def _refuse(blocked: Blocked | None) -> None:
    if blocked:
        told = f"entry of {blocked.list_name} (sha256 {blocked.list_sha256[:16]})"
        raise LinkRefused(blocked.rule, blocked.value, told)


def _filtered(row: _Row) -> dict[str, Any]:
    made: dict[str, Any] = dict(row.cells)
    if row.fetch and row.refused is None:
        parts = urlsplit(row.fetch)
        made["origin"] = f"{parts.scheme}://{parts.netloc}"
        made["link_hash"] = hashlib.blake2b(row.fetch.encode(), digest_size=16).digest()
    made |= {"fetch": row.fetch, "domain": row.domain, "evidence": evidence_text(row.evidence)}
    if row.refused is not None:
        made |= {"rule": row.refused.rule, "value": row.refused.value, "reason": row.refused.reason}
    return made

"""Legal bases of links by host and source, from a YAML file for which a person is responsible.

    default: art4_general
    sources:
      - domain: "*.museum.example"       # a glob over hosts; "museum.example" matches that host alone
        basis: public_domain
        licence: CC0-1.0
      - source: city_archive             # value of the table's column ``source``
        basis: licensed
        licence: contract 2026-17
    trust_tables: [contributed.parquet]  # path, file name or glob of tables whose column ``legal_basis`` counts

The first matching entry decides and overrides the table itself, which may come from anywhere. An entry with both keys
must match both. A basis other than article 4 lifts reservations and is therefore recorded in ledger and samples. What a
table states that is not trusted is a claim: it may only be stricter than the default.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from data_tools.links.blocklists import ascii_domain
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError

KEYS = {"domain", "source", "basis", "licence"}


@dataclass(frozen=True)
class Standing:
    """Legal basis of one link.

    Args:
        basis: The legal basis.
        licence: Name or address of the licence, or None if the entry has none.
        said_by: Where the basis is stated: an entry of the file, the table, or the default.
    """

    basis: LegalBasis
    licence: str | None
    said_by: str


@dataclass(frozen=True)
class _Entry:
    number: int
    host: re.Pattern[str] | None
    source: str | None
    basis: LegalBasis
    licence: str | None


class LinkSources:
    """The entries of a sources file.

    Args:
        path: The file; None for no entries and article 4 as the default.

    Raises:
        UserError: The file is unreadable or an entry is invalid.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Read and check the file."""
        self.given = path is not None
        content = _read(path) if path else {}
        self.default = _basis(content.get("default", LegalBasis.art4_general.value), f"{path}, default")
        self._trusted = _texts(content.get("trust_tables") or [], f"{path}, trust_tables")
        self._entries = [_entry(row, number, path) for number, row in enumerate(content.get("sources") or [], 1)]
        self._find = lru_cache(maxsize=100_000)(self._first)

    def trusts(self, table: Path) -> bool:
        """Whether ``trust_tables`` names a table, by its path or its file name."""
        names = (str(table), str(table.resolve()), table.name)
        return any(fnmatchcase(name, wanted) for name in names for wanted in self._trusted)

    def standing(self, host: str, source: str | None, stated: str | None, trusted: bool = False) -> Standing:
        """Return the legal basis of a link.

        Args:
            host: Host of the link, in ASCII.
            source: The table's column ``source``.
            stated: The table's column ``legal_basis``.
            trusted: Whether the table is trusted; otherwise only a basis that honours reservations counts.

        Raises:
            UserError: The table names an unknown basis.
        """
        entry = self._find(host, source or "")
        if entry:
            return Standing(entry.basis, entry.licence, f"entry {entry.number} of the sources")
        claim = LegalBasis.of(stated, self.default)
        if stated and stated.strip() and (trusted or claim.honours_reservations):
            return Standing(claim, None, "table")
        return Standing(self.default, None, "default")

    def names_host(self, host: str, source: str | None) -> bool:
        """Whether an entry names a link's host itself, so that its licence or consent comes from the host's owner."""
        entry = self._find(host, source or "")
        return entry is not None and entry.host is not None

    def _first(self, host: str, source: str) -> _Entry | None:
        for entry in self._entries:
            if (entry.host is None or entry.host.match(host)) and entry.source in (None, source):
                return entry
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); see data_tools/links/link_sources.py"
        ) from None
    if not isinstance(content, dict) or set(content) - {"default", "sources", "trust_tables"}:
        raise UserError(
            f"{path}: only the keys default, sources and trust_tables are allowed; see data_tools/links/link_sources.py"
        )
    if not isinstance(content.get("sources") or [], list):
        raise UserError(f"{path}: sources must be a list of entries; see data_tools/links/link_sources.py")
    return content


def _texts(words: Any, where: str) -> list[str]:
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise UserError(f"{where}: give a list of file names, in quotes")
    return words


def _entry(row: Any, number: int, path: Path | None) -> _Entry:
    where = f"{path}, entry {number}"
    if not isinstance(row, dict) or set(row) - KEYS or not {"domain", "source"} & set(row):
        raise UserError(f"{where}: give domain or source (or both), basis, and licence if there is one")
    wrong = next((key for key, value in row.items() if not isinstance(value, str)), None)
    if wrong:
        raise UserError(f"{where}: {wrong} is not text; put it in quotes")
    host = None
    if "domain" in row:
        glob = row["domain"].lower()
        plain = ascii_domain(glob.replace("*", "x").replace("?", "x"))
        if plain is None:
            raise UserError(f"{where}: {glob!r} is not a domain; write one such as museum.example or *.museum.example")
        host = re.compile(translate(_ascii_glob(glob, where) if set("*?") & set(glob) else plain))
    return _Entry(number, host, row.get("source"), _basis(row.get("basis"), where), row.get("licence"))


def _ascii_glob(glob: str, where: str) -> str:
    dots = re.sub("[\u3002\uff0e\uff61]", ".", glob).strip(".")  # those of UTS 46
    labels = [label if label.isascii() else ascii_domain(label) for label in dots.split(".")]
    if any(label is None for label in labels):
        raise UserError(f"{where}: {glob!r} mixes * with letters beyond ASCII; write that part in its xn-- form")
    return ".".join(str(label) for label in labels)


def _basis(word: Any, where: str) -> LegalBasis:
    try:
        return LegalBasis.of(None if word is None else str(word))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None

"""Lists of what must not be fetched: domains with all below them, digests of addresses, phrases in captions.

Text files of one entry a line; ``#`` begins a comment. Lists of digests are exchanged where the addresses themselves
must not be: md5, sha1 or sha256 in hexadecimal, of the address as it is published or as it is asked for.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from publicsuffixlist import PublicSuffixList

from leam_mm.errors import UserError
from leam_mm.files import file_sha256

DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}  # by their length in hexadecimal
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Blocked:
    """Which list blocks something.

    Args:
        rule: ``blocked_domain``, ``blocked_url`` or ``blocked_phrase``.
        value: The entry: of a digest its first characters.
        list_name: File name of the list.
        list_sha256: Of the list's content, so that the decision can be checked later.
    """

    rule: str
    value: str
    list_name: str
    list_sha256: str


class DomainList:
    """Domains that are blocked with all their subdomains.

    Raises:
        UserError: An entry is no domain, or one under which strangers register (``co.uk``): it would block a country.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        self.domains: set[str] = set()
        for number, line in _lines(path):
            domain = ascii_domain(line.split()[-1].removeprefix("*."))  # a hosts file has the address before it
            if domain is None or "." not in domain:
                raise UserError(
                    f"{path}, line {number}: {line[:80]!r} is no domain; write one a line, such as example.org"
                )
            if registrable_domain(domain) is None:
                raise UserError(
                    f"{path}, line {number}: {domain} is a public suffix; name the domains below it instead"
                )
            self.domains.add(domain)

    def find(self, host: str) -> Blocked | None:
        """Look a host up, with all domains above it."""
        while host:
            if host in self.domains:
                return Blocked("blocked_domain", host, self.name, self.sha256)
            host = host.partition(".")[2]
        return None


class DigestList:
    """Digests of addresses; a million take 40 MB at most.

    Raises:
        UserError: A line is no md5, sha1 or sha256.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        found: dict[str, list[bytes]] = {}
        for number, line in _lines(path):
            if len(line) not in DIGESTS or re.search("[^0-9A-Fa-f]", line):
                raise UserError(f"{path}, line {number}: {line[:80]!r} is no md5, sha1 or sha256 in hexadecimal")
            found.setdefault(DIGESTS[len(line)], []).append(bytes.fromhex(line))
        self.digests = {name: _sorted(values) for name, values in sorted(found.items())}

    def find(self, addresses: set[str]) -> Blocked | None:
        """Look up all ways to write one address."""
        for name, known in self.digests.items():
            for address in sorted(addresses):
                raw = hashlib.new(name, address.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
                begin = np.frombuffer(raw[:8], ">u8")[0]
                first, last = np.searchsorted(known[:, 0], begin), np.searchsorted(known[:, 0], begin, "right")
                if any(known[place].tobytes()[: len(raw)] == raw for place in range(first, last)):
                    return Blocked("blocked_url", f"{name} {raw.hex()[:16]}", self.name, self.sha256)
        return None


class PhraseList:
    """Words and phrases, compared without regard to case, width and compatibility forms, as whole words.

    A phrase is found by its first word, so that a caption costs the same with ten phrases and with a million.

    Raises:
        UserError: A line has no letter or digit.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        self.phrases: dict[str, list[tuple[str, ...]]] = {}
        for number, line in _lines(path):
            words = tuple(text_words(line))
            if not words:
                raise UserError(f"{path}, line {number}: {line[:80]!r} has no letter; write one phrase a line")
            self.phrases.setdefault(words[0], []).append(words)

    def find(self, words: list[str]) -> Blocked | None:
        """Look a caption's ``text_words`` up."""
        for place, word in enumerate(words):
            for phrase in self.phrases.get(word, ()):
                if tuple(words[place : place + len(phrase)]) == phrase:
                    return Blocked("blocked_phrase", " ".join(phrase), self.name, self.sha256)
        return None


def text_words(text: str) -> list[str]:
    """Words of a caption as lists compare them."""
    if not text.isascii():
        # Invisible characters between letters are a way around a list.
        text = "".join(mark for mark in unicodedata.normalize("NFKC", text) if unicodedata.category(mark) != "Cf")
        text = unicodedata.normalize("NFKC", text.casefold())
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=100_000)
def registrable_domain(host: str) -> str | None:
    """The domain that somebody registered (``example.co.uk`` of ``img.example.co.uk``); None for suffixes and IPs."""
    if re.fullmatch(r"[0-9.]+|\[?[0-9a-f:.]*:[0-9a-f:.]*\]?", host):
        return None
    return _suffixes().privatesuffix(host)


def ascii_domain(text: str) -> str | None:
    """A domain in lower case and ASCII, or nothing where it is none."""
    try:
        domain = text.strip(".").lower().encode("idna").decode()
    except UnicodeError:
        return None
    return domain if re.fullmatch(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", domain) else None


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                text = line.partition("#")[0].strip()
                if text:
                    yield number, text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a UTF-8 text file of one entry a line") from None


def _sorted(values: list[bytes]) -> np.ndarray:
    width = -(-len(values[0]) // 8) * 8  # a sha1 is filled up with zeros
    content = b"".join(value.ljust(width, b"\0") for value in sorted(set(values)))
    return np.frombuffer(content, ">u8").reshape(-1, width // 8)

"""Blocklists of what must not be fetched: domains with their subdomains, digests of addresses, phrases in captions.

Text files with one entry per line; ``#`` starts a comment. Digests (md5, sha1 or sha256 in hexadecimal, of the address
as published or as fetched) are used where the addresses themselves must not be shared.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.network.link_address import address_forms, normal_host
from data_tools.work.text_tables import text_entries
from leam_mm.data.registered_domain import is_address, registrable_domain
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

DIGESTS = {32: "md5", 40: "sha1", 64: "sha256"}  # by length in hexadecimal
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Blocked:
    """A match in a blocklist.

    Args:
        rule: ``blocked_domain``, ``blocked_url`` or ``blocked_phrase``.
        value: The entry, or the first characters of a digest.
        list_name: File name of the list.
        list_sha256: SHA-256 of the list's content, so that the decision can be checked later.
    """

    rule: str
    value: str
    list_name: str
    list_sha256: str


class DomainList:
    """Domains that are blocked with all their subdomains, and IP addresses, in any spelling.

    Raises:
        UserError: An entry is neither, or is a public suffix (``co.uk``), which would block a whole country.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        self.domains: set[str] = set()
        for number, line in text_entries(path):
            domain = ascii_domain(line.split()[-1].removeprefix("*."))  # lines of a hosts file start with an address
            if domain is None or not ("." in domain or is_address(domain)):
                raise UserError(
                    f"{path}, line {number}: {line[:80]!r} is not a domain; write one a line, such as example.org"
                )
            if not is_address(domain) and registrable_domain(domain) is None:
                raise UserError(
                    f"{path}, line {number}: {domain} is a public suffix; name the domains below it instead"
                )
            self.domains.add(domain)

    def find(self, host: str) -> Blocked | None:
        """Look up a host, in any spelling, and all its parent domains."""
        host = ascii_domain(host) or ""
        while host:
            if host in self.domains:
                return Blocked("blocked_domain", host, self.name, self.sha256)
            host = "" if is_address(host) else host.partition(".")[2]
        return None


class DigestList:
    """Digests of addresses; a million take 40 MB at most.

    Raises:
        UserError: A line is not an md5, sha1 or sha256.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        found: dict[str, list[bytes]] = {}
        for number, line in text_entries(path):
            if len(line) not in DIGESTS or re.search("[^0-9A-Fa-f]", line):
                raise UserError(f"{path}, line {number}: {line[:80]!r} is not an md5, sha1 or sha256 in hexadecimal")
            found.setdefault(DIGESTS[len(line)], []).append(bytes.fromhex(line))
        self.digests = {name: _sorted(values) for name, values in sorted(found.items())}

    def find(self, addresses: set[str]) -> Blocked | None:
        """Look up addresses of one image, in all their ``address_forms``."""
        addresses = set().union(*map(address_forms, addresses))
        for name, digests in self.digests.items():
            for address in sorted(addresses):
                raw = hashlib.new(name, address.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
                begin = np.frombuffer(raw[:8], ">u8")[0]
                first, last = np.searchsorted(digests[:, 0], begin), np.searchsorted(digests[:, 0], begin, "right")
                if any(digests[row].tobytes()[: len(raw)] == raw for row in range(first, last)):
                    return Blocked("blocked_url", f"{name} {raw.hex()[:16]}", self.name, self.sha256)
        return None


class PhraseList:
    """Words and phrases, matched as whole words regardless of case, width and compatibility forms.

    Phrases are indexed by their first word, so the time per caption does not depend on the length of the list.

    Raises:
        UserError: A line has no letter or digit.
    """

    def __init__(self, path: Path) -> None:
        """Read the list."""
        self.name, self.sha256 = path.name, file_sha256(path)
        self.phrases: dict[str, list[tuple[str, ...]]] = {}
        for number, line in text_entries(path):
            words = tuple(text_words(line))
            if not words:
                raise UserError(f"{path}, line {number}: {line[:80]!r} has no letter; write one phrase a line")
            self.phrases.setdefault(words[0], []).append(words)

    def find(self, words: list[str]) -> Blocked | None:
        """Look up the ``text_words`` of a caption."""
        for start, word in enumerate(words):
            for phrase in self.phrases.get(word, ()):
                if tuple(words[start : start + len(phrase)]) == phrase:
                    return Blocked("blocked_phrase", " ".join(phrase), self.name, self.sha256)
        return None


def text_words(text: str) -> list[str]:
    """Return the words of a caption in comparable form."""
    if not text.isascii():
        # Invisible characters between letters would defeat a list.
        text = "".join(mark for mark in unicodedata.normalize("NFKC", text) if unicodedata.category(mark) != "Cf")
        text = unicodedata.normalize("NFKC", text.casefold())
    return _WORD.findall(text.casefold())


def ascii_domain(text: str) -> str | None:
    """Return a domain or IP address in its normal form, or None if the text is neither."""
    try:
        return normal_host(text.strip("."))
    except ValueError:
        return None


def _sorted(values: list[bytes]) -> np.ndarray:
    width = -(-len(values[0]) // 8) * 8  # a sha1 is padded with zeros
    content = b"".join(value.ljust(width, b"\0") for value in sorted(set(values)))
    return np.frombuffer(content, ">u8").reshape(-1, width // 8)

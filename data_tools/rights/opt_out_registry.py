"""Opt-out registries: lists of domains, addresses and hashes of addresses whose right holders refuse training.

A registry is a local file; nothing is looked up over the network. ``.txt`` holds one entry per line; of ``.csv`` and
``.parquet`` tables the columns ``entry``, ``domain``, ``url``, ``sha256`` and ``md5`` are read. The form of an entry
tells its kind: 64 or 32 hex digits are the SHA-256 or MD5 of an address, text with ``://`` is a prefix of addresses,
anything else a domain with all its subdomains, or an IP address. Hosts and addresses are compared in their normal form,
so that every spelling of them is covered.
"""

import hashlib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from data_tools.network.link_address import address_forms, host_of, normal_host, normal_url, spellings
from data_tools.work.text_tables import TOO_LONG, text_batches, text_entries
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

COLUMNS = ("entry", "domain", "url", "sha256", "md5")
HASH = re.compile(r"[0-9a-fA-F]{32}(?:[0-9a-fA-F]{32})?")
ROWS = 10_000  # read at a time
KEPT = 16  # bytes of a hash: enough to distinguish 10^9 addresses


class OptOutRegistry:
    """A registry held in memory; ten million hashes take 160 MB.

    Args:
        path: The ``.txt``, ``.csv`` or ``.parquet`` file.

    Raises:
        UserError: The file cannot be read, is empty, or has an entry of another form.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; see the class for the arguments."""
        self.path = path
        self.domains: set[str] = set()
        self.prefixes: dict[str, list[str]] = {}  # host -> prefixes of path and query
        hashes = bytearray()
        for number, entry in enumerate(_entries(path), 1):
            if HASH.fullmatch(entry):
                hashes += bytes.fromhex(entry)[:KEPT]
            elif "://" in entry:
                host, rest = _split(entry)
                self.prefixes.setdefault(host, []).append(rest)
            elif domain := _domain(entry):
                self.domains.add(domain)
            else:
                raise UserError(
                    f"{path}: entry {number} is {entry[:80]!r}: write a domain, the beginning of an address, or the "
                    "SHA-256 or MD5 of an address"
                )
        self.hashes = np.sort(np.frombuffer(bytes(hashes), dtype=f"S{KEPT}"))
        if not (self.domains or self.prefixes or len(self.hashes)):
            raise UserError(f"{path} holds no entry: give an opt-out registry that is not empty")
        self.name = f"{path.name} sha256:{file_sha256(path)}"

    def find(self, url: str) -> str | None:
        """Return the entry that covers an address, or None."""
        host, _ = _split(url)
        labels = [host] if ":" in host else host.split(".")
        for number in range(len(labels)):
            if (domain := ".".join(labels[number:])) in self.domains:
                return f"domain {domain}"
        for prefix in self.prefixes.get(host, ()):
            if any(_split(each)[1].startswith(prefix) for each in spellings(url)):
                return f"address {host}{prefix}"
        if len(self.hashes):
            for kind in ("sha256", "md5"):
                for form in sorted(address_forms(url)):
                    digest = hashlib.new(kind, form.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
                    wanted = np.array([digest[:KEPT]], dtype=self.hashes.dtype)
                    index = int(np.searchsorted(self.hashes, wanted)[0])
                    if index < len(self.hashes) and self.hashes[index] == wanted[0]:
                        return f"{kind} {digest.hex()}"
        return None


def _split(url: str) -> tuple[str, str]:
    """Return the host, and path with query, in their normal form; the scheme is ignored."""
    if not (host := host_of(url)):
        return "", ""
    parts = urlsplit(normal_url(url))
    return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _domain(entry: str) -> str | None:
    """Return the normal form of a domain or IP address, or None if the entry is neither."""
    try:
        host = normal_host(entry.removeprefix("*."))
    except ValueError:
        return None
    return host if "." in host or ":" in host else None


def _entries(path: Path) -> Iterator[str]:
    """Yield all entries, with some thousand in memory at a time."""

    def choose(found: Collection[str]) -> list[str]:
        if columns := [name for name in found if name in COLUMNS]:
            return columns
        raise UserError(f"{path} has none of the columns {', '.join(COLUMNS)}; rename the column of entries")

    if path.suffix == ".txt":
        yield from (entry for _, entry in text_entries(path))
        return
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path}: the ending {path.suffix!r} is not supported; use .txt, .csv or .parquet")
    for batch in text_batches(path, ROWS, choose):
        if TOO_LONG in batch.column_names:
            fault = next(fault for fault in batch[TOO_LONG].to_pylist() if fault)
            raise UserError(f"{path}: an entry cannot be read: {fault}; correct it")
        for name in batch.column_names:
            yield from filter(None, ((value or "").strip() for value in batch[name].to_pylist()))

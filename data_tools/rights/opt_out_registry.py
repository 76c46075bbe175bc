"""Opt-out registries: lists of domains, addresses and hashes of addresses whose right holders refuse training.

A registry is a file of yours (nothing is asked over the network while screening): one entry a line in ``.txt``, or a
``.csv`` or ``.parquet`` table, of which the columns ``entry``, ``domain``, ``url``, ``sha256`` and ``md5`` are read.
What an entry is shows in its shape: 64 or 32 hex digits are the SHA-256 or MD5 of an address, something with ``://``
the beginning of addresses, anything else a domain with all its subdomains.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from leam_mm.errors import UserError

COLUMNS = ("entry", "domain", "url", "sha256", "md5")
HASH = re.compile(r"[0-9a-fA-F]{32}(?:[0-9a-fA-F]{32})?")
DOMAIN = re.compile(r"(?:[^\s/:.]{1,63}\.)+[^\s/:.]{1,63}")
KEPT = 16  # bytes of a hash: enough to tell 10^9 addresses apart


class OptOutRegistry:
    """A list that was read once; ten million hashes take 160 MB.

    Args:
        path: The ``.txt``, ``.csv`` or ``.parquet`` file.

    Raises:
        UserError: It cannot be read, holds no entry, or one that is nothing of the above.
    """

    def __init__(self, path: Path) -> None:
        """Read the file; see the class for the arguments."""
        self.path = path
        self.domains: set[str] = set()
        self.prefixes: dict[str, list[str]] = {}  # host -> beginnings of path and query
        hashes = bytearray()
        for number, entry in enumerate(_entries(path), 1):
            if HASH.fullmatch(entry):
                hashes += bytes.fromhex(entry)[:KEPT]
            elif "://" in entry:
                host, rest = _split(entry)
                self.prefixes.setdefault(host, []).append(rest)
            elif DOMAIN.fullmatch(domain := entry.casefold().removeprefix("*.").rstrip(".")):
                self.domains.add(_ascii(domain))
            else:
                raise UserError(
                    f"{path}: entry {number} is {entry[:80]!r}: write a domain, the beginning of an address, or the "
                    "SHA-256 or MD5 of an address"
                )
        self.hashes = np.sort(np.frombuffer(bytes(hashes), dtype=f"S{KEPT}"))
        if not (self.domains or self.prefixes or len(self.hashes)):
            raise UserError(f"{path} holds no entry: give an opt-out registry that is not empty")
        with open(path, "rb") as file:
            self.name = f"{path.name} sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def find(self, url: str) -> str | None:
        """Give the entry that covers an address, or nothing."""
        host, rest = _split(url)
        labels = host.split(".")
        for number in range(len(labels)):
            if (domain := ".".join(labels[number:])) in self.domains:
                return f"domain {domain}"
        for prefix in self.prefixes.get(host, ()):
            if rest.startswith(prefix):
                return f"address {host}{prefix}"
        if len(self.hashes):
            for kind in ("sha256", "md5"):
                digest = hashlib.new(kind, url.encode("utf-8", "surrogatepass"), usedforsecurity=False).digest()
                wanted = np.array([digest[:KEPT]], dtype=self.hashes.dtype)
                place = int(np.searchsorted(self.hashes, wanted)[0])
                if place < len(self.hashes) and self.hashes[place] == wanted[0]:
                    return f"{kind} {digest.hex()}"
        return None


def _split(url: str) -> tuple[str, str]:
    """Host, and all that comes behind it; http and https are the same right holder."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "", ""
    return _ascii(host), (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _ascii(host: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return host


def _entries(path: Path) -> Iterator[str]:
    """All entries, some thousand in memory at a time."""
    try:
        if path.suffix == ".txt":
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    if entry := line.partition("#")[0].strip():
                        yield entry
            return
        if path.suffix not in (".csv", ".parquet"):
            raise UserError(f"{path}: the ending {path.suffix!r} is not known; use .txt, .csv or .parquet")
        with (pq.ParquetFile if path.suffix == ".parquet" else pyarrow.csv.open_csv)(path) as file:
            names = file.schema_arrow.names if path.suffix == ".parquet" else file.schema.names
            columns = [name for name in names if name in COLUMNS]
            if not columns:
                raise UserError(f"{path} has none of the columns {', '.join(COLUMNS)}; rename the one that counts")
            batches = file.iter_batches(columns=columns) if path.suffix == ".parquet" else file
            for batch in batches:
                for name in columns:
                    for value in batch.column(batch.schema.get_field_index(name)).to_pylist():
                        if entry := str("" if value is None else value).strip():
                            yield entry
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({str(error).splitlines()[0]}): give the registry's file again"
        ) from None

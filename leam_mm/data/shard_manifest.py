"""The manifest of a shard folder: one line of JSON for each tar, and the Merkle root that names the data set."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.json_text import parse_lines

BLOCK = 512  # bytes of a block of a tar
MAX_BLOCKS = 1 << 50  # of a tar: offsets stay within 64 bits


@dataclass(frozen=True)
class ShardEntry:
    """One line of the manifest.

    Args:
        shard: File name of the tar inside the folder.
        sha256: Digest of the whole tar file.
        bytes: Size of the tar file.
        samples: Number of samples in it.
        records: For a tar that others made: digest of ``NAME.records.jsonl`` beside it, which holds key, place and
            record of each sample; None for a tar of ours, whose samples hold their records.
    """

    shard: str
    sha256: str
    bytes: int
    samples: int
    records: str | None = None

    @property
    def identity(self) -> str:
        """Digests of all that the shard holds, as a name of files."""
        return self.sha256 if self.records is None else f"{self.sha256}-{self.records[:32]}"

    def line(self) -> dict[str, Any]:
        """Return the entry as in the manifest."""
        found: dict[str, Any] = {
            "shard": self.shard,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "samples": self.samples,
        }
        return found if self.records is None else found | {"records": self.records}


def merkle_root(entries: list[ShardEntry]) -> str:
    """Hash the shards' digests pairwise up to one root (RFC 6962: leaves and nodes carry different prefixes).

    The leaf of a tar that others made holds the digest of its records as well.
    """
    level = [
        hashlib.sha256(b"\x00" + bytes.fromhex(entry.sha256 + (entry.records or ""))).digest() for entry in entries
    ]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        paired = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + ([level[-1]] if len(level) % 2 else [])
    return level[0].hex()


def _entry(shard: str, sha256: str, bytes: int, samples: int, records: str | None = None) -> ShardEntry:
    """Check the values of one line of a manifest."""
    for digest in (sha256, "0" * 64 if records is None else records):
        if not isinstance(shard, str) or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"a shard name or digest is {str(digest)[:80]!r}")
    # A sample takes a block at least. Not bool, which is an int.
    if not all(type(number) is int for number in (bytes, samples)) or not 1 <= samples <= bytes // BLOCK <= MAX_BLOCKS:
        raise ValueError(f"{str(shard)[:80]!r} cannot have {str(samples)[:20]} samples in {str(bytes)[:20]} bytes")
    return ShardEntry(shard, sha256, bytes, samples, records)


def parse_manifest(content: str | bytes, where: str) -> list[ShardEntry]:
    """Parse a manifest, which may be hostile; ``where`` names it in messages."""
    try:
        entries = [_entry(**row) for _, row in parse_lines(content)]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a line is not a shard entry ({error}); rebuild the folder") from None
    for entry in entries:
        name = entry.shard
        if Path(name).name != name or not name.endswith(".tar") or not name.isprintable() or len(name.encode()) > 200:
            raise UserError(f"{where}: shard name {name[:80]!r} leaves the folder; do not use this data set")
    if not entries:
        raise UserError(f"{where} names no sample; rebuild the folder")
    return entries

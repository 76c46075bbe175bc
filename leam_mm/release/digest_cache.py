"""Digests of large files, kept outside the release, so that a second check of the same weights takes no minutes.

A digest is kept by path, device, inode, size, and the times of the last change of content and of the inode. Every write
through the file system changes the last of these. A fault of the disk below the file system changes none: for that,
check without the cache.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.files import file_sha256, write_json
from leam_mm.json_text import parse_object

LARGE = 1 << 24  # bytes; smaller files are read each time
RECENT = 2_000_000_000  # nanoseconds in which a second write may leave the times as they are
MAX_CACHE, MAX_ENTRIES = 1 << 26, 100_000  # bytes; files


def cache_file() -> Path:
    """Return the file of the cache: ``leam_mm/digests.json`` in the user's cache folder (XDG Base Directory)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leam_mm" / "digests.json"


@dataclass
class DigestCache:
    """Digests of files by what the file system says about them.

    Args:
        path: The file of the cache; None reads every file.
        large: Smallest size in bytes that is kept.
    """

    path: Path | None
    large: int = LARGE
    hits: int = field(default=0, init=False)
    _known: dict[str, Any] = field(default_factory=dict, init=False)
    _new: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Read the cache; one that cannot be read is empty."""
        try:
            if self.path is not None and self.path.stat().st_size <= MAX_CACHE:
                self._known = parse_object(self.path.read_bytes())
        except (OSError, ValueError):
            self._known = {}

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file.

        Raises:
            UserError: It cannot be read.
        """
        before = os.stat(file)
        if self.path is None or before.st_size < self.large:
            return file_sha256(file)
        key = _key(file, before)
        known = self._known.get(key)
        if isinstance(known, str):
            self.hits += 1
            self._new[key] = known
            return known
        digest = file_sha256(file)
        if _key(file, os.stat(file)) == key and time.time_ns() - before.st_ctime_ns > RECENT:
            self._new[key] = digest
        return digest

    def save(self) -> None:
        """Write the digests of this process into the cache; a cache that cannot be written is not used."""
        if self.path is None or not self._new.items() - self._known.items():
            return
        older = {key: value for key, value in self._known.items() if key not in self._new}
        kept = dict(list((older | self._new).items())[-MAX_ENTRIES:])
        try:
            write_json(self.path, kept)
        except OSError:
            self.path = None


def _key(file: Path, facts: os.stat_result) -> str:
    values = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    return json.dumps([str(file.resolve()), *values])

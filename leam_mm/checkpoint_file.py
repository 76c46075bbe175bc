"""Checkpoint files with a digest at their end, which is compared before anything in them is used.

torch writes a ZIP archive and checks none of its sums when it reads one. The comment at the end of the archive, which
readers skip, holds the SHA-256 of the archive without it: one file, so that digest and content cannot be separated.
"""

import hashlib
import logging
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from leam_mm.errors import UserError

MARK = b"leam_mm sha256:"
COMMENT = len(MARK) + 64  # bytes
NO_COMMENT = b"\0\0"  # the last bytes of a ZIP archive without a comment: its length
TAIL = len(NO_COMMENT) + COMMENT
CHUNK = 1 << 20  # bytes
log = logging.getLogger(__name__)


class _HashedWriter:
    """A binary file that computes the SHA-256 of what passes, while it is in the processor's cache."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, content: Any) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


def write_with_digest(content: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint and its digest to an empty file.

    Args:
        content: What torch.save takes.
        file: Opened for reading and writing.
    """
    writer, sums = _HashedWriter(file), get_crc32_options()
    set_crc32_options(False)  # torch.load does not compare them, and the digest stands for them
    try:
        # torch.save names the archive inside after a path it is given: a file keeps the bytes independent of it.
        torch.save(content, writer)  # type: ignore[arg-type]
    finally:
        set_crc32_options(sums)
    file.seek(-len(NO_COMMENT), 2)
    if file.read() != NO_COMMENT:
        raise RuntimeError("torch.save wrote no archive that ends without a comment")
    file.seek(-len(NO_COMMENT), 2)
    file.write(COMMENT.to_bytes(2, "little") + MARK + writer.digest.hexdigest().encode())


def check_archive(file: BinaryIO) -> None:
    """Check that the parts of a checkpoint take no more bytes than its file: torch allocates what each claims.

    Raises:
        ValueError: They take more, or are compressed.
        zipfile.BadZipFile: The file is no archive.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("a part of it is compressed")
    if sum(part.file_size for part in parts) > file.seek(0, 2):
        raise ValueError("its parts claim more bytes than the file has")


def compare_digest(file: BinaryIO, name: Path) -> str:
    """Compare the digest at the end of a file with its content, and return the SHA-256 of the whole file.

    Args:
        file: A checkpoint, opened for reading.
        name: Its name, for messages.

    Raises:
        UserError: The file is damaged.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - TAIL))
    tail = file.read()
    marked = tail[len(NO_COMMENT) :].startswith(MARK)
    file.seek(0)
    digest, left = hashlib.sha256(), size - len(tail)
    while left and (chunk := file.read(min(CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    archive = digest.copy()
    archive.update(NO_COMMENT)
    if not marked and not tail.endswith(NO_COMMENT):  # torch ends its archives so, and a cut digest does not
        raise UserError(
            f"{name} cannot be read as a checkpoint: it is damaged, its end is missing or changed; copy it again, or "
            "take an older one beside it"
        )
    if not marked:
        log.warning("%s has no digest, as files of older versions have none: damage to it would pass unseen", name)
    elif tail != COMMENT.to_bytes(2, "little") + MARK + archive.hexdigest().encode():
        raise UserError(
            f"{name} cannot be read as a checkpoint: it is damaged, its content does not have the digest at its end; "
            "copy it again, or take an older one beside it"
        )
    digest.update(tail)
    return digest.hexdigest()


def has_sound_digest(path: Path) -> bool:
    """Return whether a file can be read, has a digest, and agrees with it."""
    try:
        with open(path, "rb") as file:
            return recorded_digest(file) is not None and bool(compare_digest(file, path))
    except (OSError, UserError):
        return False


def recorded_digest(file: BinaryIO) -> str | None:
    """Return the digest at the end of a file without comparing it, or None if it has none."""
    file.seek(max(0, file.seek(0, 2) - TAIL))
    tail = file.read()[len(NO_COMMENT) :]
    return tail[len(MARK) :].decode("ascii", "replace") if len(tail) == COMMENT and tail.startswith(MARK) else None

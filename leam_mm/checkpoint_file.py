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
END, LOCATOR, END64 = 22, 20, 56  # bytes of the records at the end of an archive
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
        ValueError: They take more, are compressed, or torch would find another list of them than this check.
        zipfile.BadZipFile: The file is no archive.
    """
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        end = file.seek(0, 2) - END - len(archive.comment)
        if archive.start_dir != _stated_list(file, end):
            raise ValueError("its list of parts is not where the archive says")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError("a part of it is compressed")
    if sum(part.file_size for part in parts) > file.seek(0, 2):
        raise ValueError("its parts claim more bytes than the file has")


def _stated_list(file: BinaryIO, end: int) -> int:
    """Return where an archive says that the list of its parts begins, or -1 if that is no place.

    zipfile ignores what an archive says and takes the list before its end, with any bytes before the archive; torch
    looks at the place. A file with two lists would be checked by one and read by the other.

    Args:
        file: The archive.
        end: Position of its end record (APPNOTE.TXT 6.3.10, sections 4.3.14 to 4.3.16).
    """
    start = max(0, end - LOCATOR - END64)
    file.seek(start)
    tail = file.read(end - start + END)
    record, locator = tail[-END - LOCATOR - END64 :], tail[-END - LOCATOR :]
    if not tail[-END:].startswith(b"PK\x05\x06"):
        return -1
    if not locator.startswith(b"PK\x06\x07"):
        return int.from_bytes(tail[-END:][16:20], "little")
    if not record.startswith(b"PK\x06\x06") or int.from_bytes(locator[8:16], "little") != start:
        return -1
    return int.from_bytes(record[48:56], "little")


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

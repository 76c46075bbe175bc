"""One shard, opened to read its samples in any order: a tar of ours, or a tar of others with its file of records."""

import hashlib
import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import BinaryIO

from leam_mm.data.index_file import ShardIndex
from leam_mm.data.tar_members import parse_sample, tar_member
from leam_mm.errors import UserError


class OpenShard(AbstractContextManager["OpenShard"]):
    """Reads the samples of one shard; every sample has the form of ours, whoever made the tar.

    Args:
        tar: The tar, opened without a buffer.
        index: Its index.
        records: The file of records of a tar that others made, opened without a buffer.
    """

    def __init__(self, tar: BinaryIO, index: ShardIndex, records: BinaryIO | None = None) -> None:
        """See the class for the arguments."""
        self.tar, self.index, self.records = tar, index, records

    @property
    def keys(self) -> list[str]:
        """Keys of the samples."""
        return self.index.keys

    def members(self, row: int) -> dict[str, bytes]:
        """Return the members of a sample by extension (``{"png": ..., "json": ...}``).

        Raises:
            UserError: The files end before the sample does, or a tar header is broken.
        """
        content = read_range(self.tar, int(self.index.offset[row]), int(self.index.size[row]), "tar")
        ranges = self.index.records
        if ranges is None or self.records is None:
            return parse_sample(content)
        record = read_range(self.records, int(ranges.offset[row]), int(ranges.size[row]), "file of records")
        return {ranges.suffix[row]: content, "json": record}

    def raw(self, row: int) -> bytes:
        """Return a sample as it lies in a tar of ours: all members with their headers.

        Raises:
            UserError: As ``members``; or the key is too long for a tar.
        """
        if self.index.records is None:
            return read_range(self.tar, int(self.index.offset[row]), int(self.index.size[row]), "tar")
        key = self.keys[row]
        try:
            return b"".join(tar_member(f"{key}.{name}", content) for name, content in self.members(row).items())
        except ValueError as error:  # of tarfile, for names that do not fit into a header
            raise UserError(f"sample key {key[:80]!r} fits no tar ({error}): index the tars again") from None

    def is_intact(self, row: int, raw: bytes) -> bool:
        """Return whether the bytes of a sample, from ``raw``, have the digest in the index."""
        parts = [raw] if self.index.records is None else parse_sample(raw).values()
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        return digest.hexdigest() == self.index.sha256[row]

    def close(self) -> None:
        """Close the files."""
        self.tar.close()
        if self.records is not None:
            self.records.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()


def read_range(file: BinaryIO, start: int, size: int, what: str) -> bytes:
    """Read a byte range, in one call if possible; mmap would crash on a file that is truncated meanwhile."""
    if hasattr(os, "pread"):
        content = os.pread(file.fileno(), size, start)
    else:
        file.seek(start)
        content = file.read(size)
    if len(content) != size:
        raise UserError(f"its {what} ends at byte {start + len(content)}, the sample at {start + size}: copy it again")
    return content

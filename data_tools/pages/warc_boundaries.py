"""Find where the next record of a WARC file begins, after one whose stated length is wrong (ISO 28500, section 4)."""

import re
from collections.abc import Iterator
from pathlib import Path

RECORD = b"\r\n\r\nWARC/1."  # end of a record, and beginning of the next
MARKS = {b"\x1f\x8b": b"\x1f\x8b\x08", b"\x28\xb5": b"\x28\xb5\x2f\xfd"}  # gzip members, zstandard frames
MOST_TRIES = 1000  # a mark may also occur by chance within compressed data
PIECE = 1 << 20


def next_records(path: Path, position: int) -> Iterator[int]:
    """Yield the positions after ``position`` at which a record may begin, in order.

    Args:
        path: The file: plain, or with one gzip member or zstandard frame for each record.
        position: Beginning of the record whose length is wrong.
    """
    with path.open("rb") as file:
        mark = MARKS.get(file.read(2), RECORD)
        skipped = len(mark) - len(b"WARC/1.") if mark == RECORD else 0
        start, rest, found = position + 1, b"", 0
        file.seek(start)
        while piece := file.read(PIECE):
            block = rest + piece
            for match in re.finditer(re.escape(mark), block):
                yield start + match.start() + skipped
                found += 1
                if found == MOST_TRIES:
                    return
            rest = block[-(len(mark) - 1) :]
            start += len(block) - len(rest)

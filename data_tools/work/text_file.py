"""Open a text file of a stranger as UTF-8: compressed by gzip or not, in UTF-16 or UTF-32 with a mark, or as stated."""

import codecs
import gzip
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from leam_mm.errors import UserError

MAX_LINE = 1 << 20  # bytes of a line
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # those of UTF-32 first, one of which begins as that of UTF-16
SUFFIXES = {".ndjson": ".jsonl", ".tab": ".tsv"}
PIECE = 1 << 16  # bytes that are decoded at a time


def table_suffix(path: Path) -> str:
    """Return the ending that names a file's format, in lower case and without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    return SUFFIXES.get(suffix, suffix)


def check_encoding(encoding: str) -> str:
    """Return the name of an encoding, or an empty text for UTF-8.

    Raises:
        UserError: Python knows no such encoding of text.
    """
    try:
        name = codecs.lookup(encoding or "utf-8").name
        " ".encode(name)
    except LookupError:
        raise UserError(f"--encoding is {encoding!r}: give one such as latin-1, cp1252 or utf-16") from None
    return "" if name in ("utf-8", "ascii") else name


def decode_text(content: bytes, encoding: str = "") -> str:
    """Decode a whole text: by its mark, else by the encoding.

    Raises:
        ValueError: It is not in that encoding.
    """
    name = next((name for mark, name in MARKS.items() if content.startswith(mark)), encoding)
    return content.decode(check_encoding(name) or "utf-8-sig").removeprefix("\ufeff")


@contextmanager
def open_text(path: Path, encoding: str = "") -> Iterator[BinaryIO]:
    """Open a file as bytes in UTF-8; its mark, if it has one, may still be there.

    Args:
        path: The file.
        encoding: Encoding of a file without a mark; empty for UTF-8.

    Raises:
        OSError: It cannot be opened, or is no gzip although its name ends in ``.gz``.
        ValueError: While it is read: it is not in its encoding.
    """
    packed = path.name.lower().endswith(".gz")
    with cast(BinaryIO, gzip.open(path) if packed else path.open("rb")) as file:
        start = file.read(4)
        file.seek(0)
        name = next((name for mark, name in MARKS.items() if start.startswith(mark)), check_encoding(encoding))
        yield cast(BinaryIO, io.BufferedReader(_AsUtf8(file, name), PIECE)) if name else file


class _AsUtf8(io.RawIOBase):
    """A file in another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self.file, self.waiting = file, b""
        self.decode: Callable[..., str] = codecs.getincrementaldecoder(encoding)().decode

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.waiting:
            piece = self.file.read(PIECE)
            self.waiting = self.decode(piece, final=not piece).encode("utf-8", "replace")
            if not piece:
                break
        count = min(len(buffer), len(self.waiting))
        buffer[:count] = self.waiting[:count]
        self.waiting = self.waiting[count:]
        return count


def rest_of_line(readline: Callable[[int], bytes], end: bytes = b"\n") -> Iterator[bytes]:
    """Yield the pieces of the current line that are not read yet."""
    while piece := readline(MAX_LINE):
        yield piece
        if piece.endswith(end):
            return

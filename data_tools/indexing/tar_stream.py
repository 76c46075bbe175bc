"""Members of a tar that others made, read once from start to end, and the digest of all its bytes.

Plain, ustar, GNU and pax headers are read (POSIX.1-2017, pax; GNU tar manual, "Basic Tar Format"). Names are data:
none is used as a path. Links, devices and folders have no content, and that of sparse files is not read, because their
bytes do not lie in one piece.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from leam_mm.data.shard_manifest import BLOCK
from leam_mm.errors import UserError

READ = 4 << 20  # bytes read at a time
END = bytes(BLOCK)
MAX_NAME = 1 << 16  # bytes of a long name, or of a pax header
REGULAR, WITHOUT_CONTENT = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")
COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\0", "xz", "unxz"),
    (b"PK\x03\x04", "zip", "unzip, and pack them with tar"),
)


@dataclass(slots=True)
class Member:
    """One member.

    Args:
        name: Its name.
        offset: Position of its content in the tar.
        size: Bytes of its content.
        plain: Whether it is a file whose content lies in one piece.
        content: Its content, if it was wanted.
    """

    name: str
    offset: int
    size: int
    plain: bool
    content: bytes | memoryview | None = None


class TarStream:
    """Reads a tar; ``members`` must be read to its end, then digest and size are those of the whole file.

    Args:
        file: The tar, of any length, without its name.
        name: For messages.
        block: Bytes read at a time.
    """

    def __init__(self, file: BinaryIO, name: str, block: int = READ) -> None:
        """See the class for the arguments."""
        self.file, self.name, self.block = file, name, max(block, 1 << 14)
        self.digest, self.size = hashlib.sha256(), 0
        self.fault: str | None = None
        self._block, self._at = b"", 0

    @property
    def position(self) -> int:
        """Position in the tar of the next byte."""
        return self.size - len(self._block) + self._at

    def _fill(self, count: int = 0) -> bool:
        self._block, self._at = self.file.read(max(count, self.block)), 0
        self.digest.update(self._block)
        self.size += len(self._block)
        return bool(self._block)

    def read(self, count: int) -> bytes | memoryview:
        """Return the next bytes; fewer at the end of the file. What lies in one block is not copied."""
        if self._at + count <= len(self._block):
            self._at += count
            found = memoryview(self._block)[self._at - count : self._at]
            return bytes(found) if count <= BLOCK else found
        parts, missing = [self._block[self._at :]], count - (len(self._block) - self._at)
        while missing > 0 and self._fill():
            parts.append(self._block[:missing])
            self._at = len(parts[-1])
            missing -= self._at
        if missing > 0:
            self._at = len(self._block)
        return b"".join(parts)

    def skip(self, count: int) -> bool:
        """Pass over bytes, which are hashed as well; return whether there were as many."""
        while count > len(self._block) - self._at:
            count -= len(self._block) - self._at
            if not self._fill():
                return False
        self._at += count
        return True

    def members(self, wanted: Callable[[str, int], bool]) -> Iterator[Member]:
        """Yield the members up to the end mark or the first fault, which is then in ``fault``.

        Args:
            wanted: From name and size of a file whether its content is read.

        Raises:
            UserError: The file is compressed.
        """
        name: str | None = None  # of extended headers, for the next member
        size, sparse, first = None, False, True
        while True:
            start = self.position
            block = bytes(self.read(BLOCK))
            if not block and not first:
                self.fault = "ends without the end mark of a tar"
            elif first and (packed := next((each for each in COMPRESSED if block.startswith(each[0])), None)):
                raise UserError(
                    f"{self.name} is compressed ({packed[1]}), which allows no random access: unpack the files first "
                    f"({packed[2]}), then index them"
                )
            elif len(block) < BLOCK:
                self.fault = "is empty" if not block else f"is cut in a header at byte {start}"
            if self.fault:
                break
            if block == END:
                break
            try:
                own, own_size, kind = parse_header(block)
            except ValueError as error:
                self.fault = f"is no tar ({error})" if first else f"has a damaged header at byte {start} ({error})"
                break
            first = False
            if kind in (b"L", b"K", b"x", b"X", b"g"):
                text = self._extended(own_size, start)
                if text is None:
                    break
                if kind == b"L":
                    name = text.rstrip(b"\0").decode("utf-8", "surrogateescape")
                elif kind in (b"x", b"X") and any(word in text for word in (b"path=", b"size=", b"GNU.sparse")):
                    try:
                        fields = parse_pax(text)
                        name = fields.get("path", name)
                        size = int(fields["size"]) if "size" in fields else size
                    except ValueError:
                        self.fault = f"has a damaged pax header at byte {start}"
                        break
                    sparse = sparse or any(field.startswith("GNU.sparse") for field in fields)
                continue
            if kind == b"S" and not self._sparse_blocks(block):
                self.fault = f"is cut in a header at byte {start}"
                break
            regular = kind in REGULAR and not (own if name is None else name).endswith("/")
            length = 0 if kind in WITHOUT_CONTENT else own_size if size is None else size
            member = Member(own if name is None else name, self.position, length, regular and not sparse)
            name, size, sparse = None, None, False
            if length < 0:
                self.fault = f"has a damaged header at byte {start} (a negative size)"
                break
            if member.plain and wanted(member.name, length):
                member.content = self.read(length)
                whole = len(member.content) == length
            else:
                whole = self.skip(length)
            if not whole:
                self.fault = f"is cut in {ascii(member.name)[1:-1][:80]} at byte {self.size}"
                break
            yield member
            if not self.skip(-length % BLOCK):
                self.fault = "ends without the end mark of a tar"
                break
        while self._fill():
            pass

    def _extended(self, size: int, start: int) -> bytes | None:
        """Return the content of an extended header."""
        if not 0 <= size <= MAX_NAME:
            self.fault = f"has a name or pax header of {size} bytes at byte {start}"
            return None
        text = bytes(self.read(size))
        if len(text) < size or not self.skip(-size % BLOCK):
            self.fault = f"is cut in a header at byte {start}"
            return None
        return text

    def _sparse_blocks(self, block: bytes) -> bool:
        """Pass over the further headers of an old GNU sparse file."""
        more = block[482]
        while more:
            block = bytes(self.read(BLOCK))
            if len(block) < BLOCK:
                return False
            more = block[504]
        return True


def parse_header(block: bytes) -> tuple[str, int, bytes]:
    """Return name, size and kind from a header of 512 bytes, several times as fast as tarfile.

    Raises:
        ValueError: The checksum is wrong, or a number cannot be read.
    """
    check = sum(block) - sum(block[148:156]) + 8 * 32
    try:
        said = _octal(block[148:156])
    except ValueError:
        raise ValueError("no checksum") from None
    if check != said and check - 256 * sum(byte > 127 for byte in (*block[:148], *block[156:])) != said:
        raise ValueError("wrong checksum")  # tars of old systems sum signed bytes
    raw = block[:100]
    name = raw[: raw.index(0)] if 0 in raw else raw
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    field = block[124:136]
    if field[0] in (0x80, 0xFF):  # GNU: base 256, in two's complement
        size = int.from_bytes(field[1:]) - (256**11 if field[0] == 0xFF else 0)
    else:
        try:
            size = _octal(field)
        except ValueError:
            raise ValueError("no size") from None
    return name.decode("utf-8", "surrogateescape"), size, block[156:157]


def _octal(field: bytes) -> int:
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def parse_pax(text: bytes) -> dict[str, str]:
    """Return the fields of a pax header.

    Raises:
        ValueError: It is damaged.
    """
    fields, position = {}, 0
    while position < len(text) and text[position]:
        length = int(text[position : text.index(b" ", position)])
        line = text[position : position + length]
        if length < 5 or len(line) < length or not line.endswith(b"\n"):
            raise ValueError("a field is cut")
        name, mark, value = line[:-1].partition(b" ")[2].partition(b"=")
        if not mark:
            raise ValueError("a field has no value")
        fields[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        position += length
    return fields

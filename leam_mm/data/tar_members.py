"""Members of a sample in a tar, in the plain ustar form: written without clock or user, and parsed quickly."""

import tarfile
from collections.abc import Iterator
from contextlib import suppress

from leam_mm.data.shard_manifest import BLOCK
from leam_mm.errors import UserError

# Constant parts of `tar_member`'s headers, by offset: mode and owner, ends of size, time and digest, kind, version.
PLAIN = (
    (100, b"0000644\x000000000\x000000000\0"),
    (135, b"\x0000000000000\0"),
    (154, b"\0 0"),
    (257, b"ustar\x0000"),
    (329, bytes(17)),
)


def tar_member(name: str, content: bytes) -> bytes:
    """Return one tar member with header and padding; no byte depends on clock or user."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + content + b"\0" * (-len(content) % BLOCK)


def member_header(block: bytes) -> tuple[str, int, bool]:
    """Return name, size and whether it is a plain file, from a member's header.

    Headers as written by `tar_member` are parsed here, in a fraction of tarfile's time; tarfile parses all others.
    """
    if all(block.startswith(part, at) for at, part in PLAIN):
        size, digest, name = block[124:135], block[148:154], block[: block.index(b"\0")]
        if size.isdigit() and digest.isdigit() and len(name) < 100:
            with suppress(ValueError):  # an 8 or a 9, or letters beyond ASCII
                if sum(block) - sum(block[148:156]) + 8 * 32 == int(digest, 8):
                    return name.decode("ascii"), int(size, 8), True
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    return header.name, header.size, header.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


def walk_sample(raw: bytes) -> Iterator[tuple[str, int, int, bool]]:
    """Yield name, offset of the content, size, and whether it is a plain file, of each member of a sample's bytes.

    Raises:
        UserError: A header is broken, or a member longer than the sample.
    """
    position = 0
    while position + BLOCK <= len(raw):
        try:
            name, size, plain = member_header(raw[position : position + BLOCK])
        except tarfile.HeaderError as error:
            raise UserError(
                f"broken tar header at byte {position} of the sample: {error}; download the shard again"
            ) from None
        start = position + BLOCK
        # A header can hold a negative size, which would make this loop endless.
        if size < 0 or start + size > len(raw):
            raise UserError(f"member {name!r} is longer than its sample; download the shard again")
        yield name, start, size, plain
        position = start + size + (-size % BLOCK)


def parse_sample(raw: bytes) -> dict[str, bytes]:
    """Split the byte range of one sample into its members, by extension (``{"png": ..., "json": ...}``)."""
    found = walk_sample(raw)
    return {name.rpartition("/")[2].partition(".")[2]: raw[at : at + size] for name, at, size, plain in found if plain}


def checked_members(key: str, raw: bytes) -> dict[str, bytes]:
    """Split the byte range of one sample as `parse_sample`, if every reader of tars finds the same members in it.

    Raises:
        UserError: As `walk_sample`.
        ValueError: A member is no plain file, has not the name of its sample, or occurs twice.
    """
    members: dict[str, bytes] = {}
    for name, start, size, plain in walk_sample(raw):
        stem, _, extension = name.partition(".")
        shown = ascii(name[:80])
        if not plain:
            raise ValueError(f"member {shown} is a link, a folder or a device, or is sparse")
        if stem != key or not extension or "/" in extension:
            raise ValueError(f"member {shown} has another name than its sample")
        if extension in members:
            raise ValueError(f"member {shown} occurs twice")
        members[extension] = raw[start : start + size]
    return members

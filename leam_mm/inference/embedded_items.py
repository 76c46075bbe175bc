"""What an encoder embeds: the images of a folder or of shards, or the lines of a text file, in a fixed order."""

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError

MAX_BYTES = 50_000_000  # of an image file
MAX_TEXT = 1 << 16  # letters of a line
SKIPPED = ("__MACOSX", "Thumbs.db")


@dataclass(frozen=True)
class Item:
    """One image or text.

    Args:
        key: Key of a sample, path of a file relative to its folder, or number of a line.
        text: The line, or the first caption of a sample; empty if there is none.
        url: Address of a sample's image, or empty.
        content: The image file; None for a text, or if it cannot be read.
        fault: Why it cannot be read, or empty.
    """

    key: str
    text: str = ""
    url: str = ""
    content: bytes | None = None
    fault: str = ""

    @property
    def sha256(self) -> str:
        """Digest of the image file, or of the text."""
        return hashlib.sha256(self.content if self.content is not None else self.text.encode()).hexdigest()


class Items(Protocol):
    """A sequence of items that is read in parts.

    Attributes:
        kind: ``image`` or ``text``.
        identity: Digest of what is read; a changed folder has another.
    """

    kind: str
    identity: str

    def __len__(self) -> int:
        """Return the number of items."""

    def part(self, start: int, stop: int) -> Iterator[Item]:
        """Yield the items from ``start`` to before ``stop``."""

    def pixels(self, item: Item, size: int) -> np.ndarray:
        """Return the centre square of an image: (size, size, 3) uint8."""


class FolderImages:
    """Images of a folder and of its sub-folders, by name; hidden files are left out.

    Args:
        folder: The folder.
    """

    kind = "image"

    def __init__(self, folder: Path) -> None:
        """List the files; see the class for the arguments."""
        self.folder = folder
        self.names = sorted(self._names())
        if not self.names:
            raise UserError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}) and no shards: give another folder")
        state = [(name, os.stat(folder / name)) for name in self.names]
        facts = "\n".join(f"{name}\t{info.st_size}\t{info.st_mtime_ns}" for name, info in state)
        self.identity = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()

    def _names(self) -> Iterator[str]:
        for place, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
            for name in files:
                path = Path(place, name)
                if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                    yield path.relative_to(self.folder).as_posix()

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    def part(self, start: int, stop: int) -> Iterator[Item]:
        """Yield the images from ``start`` to before ``stop``."""
        for name in self.names[start:stop]:
            key = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            try:
                with (self.folder / name).open("rb") as file:
                    content = file.read(MAX_BYTES + 1)
            except OSError as error:
                yield Item(key, fault=error.strerror or "it cannot be read")
                continue
            large = len(content) > MAX_BYTES
            yield Item(key, fault=f"more than {MAX_BYTES} bytes") if large else Item(key, content=content)

    def find(self, keys: Collection[str]) -> Iterator[Item]:
        """Yield the images with some keys."""
        for number, name in enumerate(self.names):
            if name in keys:
                yield from self.part(number, number + 1)

    def pixels(self, item: Item, size: int) -> np.ndarray:
        """Return the upright centre square of an image in any format that is read: (size, size, 3) uint8."""
        return ImageDecoding(size).centre_square(read_upright(item.content or b""))


class ShardImages:
    """Images of a shard folder, in its order.

    Args:
        shards: A shard folder, or a folder with a keep-list.
    """

    kind = "image"

    def __init__(self, shards: Path) -> None:
        """Open the folder; see the class for the arguments."""
        self.folder = ShardFolder(shards)
        self.identity = self.folder.merkle_root
        self._starts = list(accumulate((entry.samples for entry in self.folder.shards), initial=0))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.folder.samples

    def part(self, start: int, stop: int) -> Iterator[Item]:
        """Yield the samples from ``start`` to before ``stop``."""
        for number, first in enumerate(self._starts[:-1]):
            rows = range(max(start, first) - first, min(stop, self._starts[number + 1]) - first)
            if not rows:
                continue
            with self.folder.open_shard(number) as shard:
                for row in rows:
                    yield _item(shard.keys[row], shard.members(row))

    def find(self, keys: Collection[str]) -> Iterator[Item]:
        """Yield the samples with some keys."""
        for number in range(len(self._starts) - 1):
            with self.folder.open_shard(number) as shard:
                for row, key in enumerate(shard.keys):
                    if key in keys:
                        yield _item(key, shard.members(row))

    def pixels(self, item: Item, size: int) -> np.ndarray:
        """Return the centre square as in evaluation: (size, size, 3) uint8."""
        decoded = ImageDecoding(size)(item.content or b"", np.random.default_rng(0))
        return decoded.permute(1, 2, 0).numpy()


def _item(key: str, members: dict[str, bytes]) -> Item:
    try:
        record, content = read_sample_json(members), image_member(members)
        captions = record.get("captions") or [{}]
        return Item(key, str(captions[0].get("text") or ""), str(record.get("url") or ""), content)
    except UserError as error:
        return Item(key, fault=str(error))


class TextLines:
    """Lines of a text file; empty ones are left out.

    Args:
        file: Text in UTF-8.
    """

    kind = "text"

    def __init__(self, file: Path) -> None:
        """Read the file; see the class for the arguments."""
        try:
            content = file.read_bytes()
            lines = content.decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error}): give a text file in UTF-8, one text a line") from None
        self.lines = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
        if not self.lines or max(len(line) for _, line in self.lines) > MAX_TEXT:
            raise UserError(f"{file} has no text, or a line of more than {MAX_TEXT} letters: give one text a line")
        self.identity = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lines)

    def part(self, start: int, stop: int) -> Iterator[Item]:
        """Yield the texts from ``start`` to before ``stop``."""
        return (Item(str(number), line) for number, line in self.lines[start:stop])

    def pixels(self, item: Item, size: int) -> np.ndarray:
        """Raise: a text has no pixels."""
        raise UserError(f"{item.key} is a text, not an image")


def open_images(path: Path) -> FolderImages | ShardImages:
    """Return the images of a folder, which may hold shards.

    Raises:
        UserError: There are none.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder: give a folder of images or of shards")
    shards = any((path / name).is_file() for name in ("manifest.jsonl", "keep.parquet"))
    return ShardImages(path) if shards else FolderImages(path)

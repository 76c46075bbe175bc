"""Sets of images to be compared: folders of image files of any size, and shard folders, read as published tools do.

An image is converted to RGB by Pillow; EXIF orientation and colour profiles are ignored, as by pytorch-fid, clean-fid
and torch-fidelity. Transparency is composited on a stated background, where those drop it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageColor
from torch import Tensor

from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import IMAGE_SUFFIXES, WEB_FORMATS
from leam_mm.data.keep_list import PLACE
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.errors import UserError
from leam_mm.evaluators.class_folder import image_files
from leam_mm.evaluators.embedding import read_image_samples
from leam_mm.evaluators.stored_image import StoredImage


def read_background(name: str) -> tuple[int, int, int]:
    """Return the RGB of a colour by its CSS name or #rrggbb.

    Raises:
        UserError: There is no such colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UserError(f"--background {name}: is no colour; give a name such as white, or #rrggbb") from None
    return red, green, blue


def read_rgb(content: bytes, background: tuple[int, int, int]) -> tuple[Tensor, bool]:
    """Decode an image file of a stranger.

    Args:
        content: The file, in a format of ``WEB_FORMATS``.
        background: RGB below transparent pixels.

    Returns:
        (3, H, W) uint8, and whether it had transparency.

    Raises:
        UserError: It has another format, is broken or exceeds a limit.
    """
    try:
        image = open_image(content, WEB_FORMATS)
        image.load()
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"Pillow's mode {image.mode} has more than 8 bits; save it with 8 bits a channel")
        transparent = image.has_transparency_data
        if transparent:
            cover = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", cover.size, (*background, 255)), cover)
        pixels = numpy.array(image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
        raise UserError(f"unreadable image ({(str(error) or type(error).__name__).splitlines()[0][:200]})") from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), transparent


@dataclass
class ComparedImages:
    """A folder of images, or a shard folder; what was read is counted while the images are read.

    Args:
        path: The folder.
        background: RGB below transparent pixels.
        limit: Upper bound of the images, which are then spread evenly over the set; None takes all.
        skip_unreadable: Whether an unreadable image is counted, in place of an error.
    """

    path: Path
    background: tuple[int, int, int] = (255, 255, 255)
    limit: int | None = None
    skip_unreadable: bool = False
    count: int = 0
    transparent: int = 0
    unreadable: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count the files."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: is no folder of images; give a folder, a shard folder or an .npz file")
        self.shards = any((self.path / name).is_file() for name in (MANIFEST, PLACE))
        self.files = [] if self.shards else sorted(image_files(self.path))
        self.total = ShardFolder(self.path).samples if self.shards else len(self.files)
        if not self.total:
            raise UserError(f"{self.path}: holds no image ({', '.join(IMAGE_SUFFIXES)}); give another folder")

    def images(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and pixels (3, H, W) uint8 of every image, always in the same order.

        Raises:
            UserError: An image cannot be read; the message names it.
        """
        for name, stored in self._stored():
            try:
                content = stored.content()
                pixels, transparent = read_rgb(content, self.background)
            except UserError as error:
                if not self.skip_unreadable:
                    raise UserError(
                        f"{self.path}: {name}: {error}; remove it, or count such images with --skip-unreadable"
                    ) from None
                self.unreadable.append(name)
                continue
            self.count += 1
            self.transparent += transparent
            self.digests.append(hashlib.sha256(content).hexdigest())
            yield name, pixels

    def _stored(self) -> Iterator[tuple[str, StoredImage]]:
        if self.shards:
            for sample in read_image_samples(self.path, self.limit):
                yield sample.key, StoredImage(sample.key, sample.encoded, {})
            return
        count = self.total if self.limit is None else min(self.limit, self.total)
        for number in range(count):
            file = self.files[number * self.total // count]
            name = file.relative_to(self.path).as_posix()
            yield name, StoredImage(name, b"", {}, file)

    def digest(self) -> str:
        """Return one SHA-256 over those of the images that were read, whatever their names and order."""
        return hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()

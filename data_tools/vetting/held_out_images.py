"""Choose which images of a folder are held out.

Images that look alike stay on one side, since an image and its near duplicate on two sides would make the measurement
one of memory. Of very few images, none is held out. The choice depends only on the content of the images, not on their
names.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.samples.svg_image import is_svg, rasterise
from data_tools.vetting.duplicate_groups import Components
from data_tools.vetting.near_duplicates import NearDuplicates
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS, WEB_FORMATS
from leam_mm.data.upright_image import upright_rgb
from leam_mm.files import file_sha256

FEWEST = 4  # different images of which one is held out; fewer are all trained on
ENOUGH = 8  # different images of which the given share is held out, two at least
MAX_BYTES = 50_000_000  # of a file that is compared; download_shards decodes no larger ones
SEEN = 512  # pixels of the shorter side at which images are compared


@dataclass(frozen=True)
class FolderImage:
    """What the choice needs of an image.

    Args:
        digest: SHA-256 of the file.
        size: Width and height in pixels; (0, 0) if it cannot be decoded.
        measured: (D,) what NearDuplicates measures; None if it cannot be decoded.
    """

    digest: str
    size: tuple[int, int] = (0, 0)
    measured: np.ndarray | None = None

    @property
    def cropped(self) -> float:
        """Share of the image, in [0, 1), that lies outside the square at its centre."""
        return 1 - min(self.size) / max(self.size) if min(self.size) else 0.0


def read_folder_image(path: Path, rule: NearDuplicates) -> FolderImage:
    """Read one image; one that cannot be decoded has a digest only: download_shards records its fault."""
    digest = file_sha256(path)
    if path.stat().st_size > MAX_BYTES:
        return FolderImage(digest)
    content = path.read_bytes()
    try:
        content = rasterise(content, SEEN, MAX_PIXELS) if is_svg(content) else content
        image = open_image(content, WEB_FORMATS)
        size = image.size
        scale = max(1.0, min(size) / SEEN)
        image.draft("RGB", (round(size[0] / scale), round(size[1] / scale)))  # JPEG: decode at a reduced scale
        upright, _ = upright_rgb(image, content, MAX_PIXELS)
    except Exception:  # Pillow raises many kinds on damaged and on hostile files
        return FolderImage(digest)
    sample = Sample("", {}, "", b"")
    sample.__dict__["pixels"] = np.asarray(upright)
    return FolderImage(digest, size, rule.measure([sample])[0])


def look_alikes(images: list[FolderImage], rule: NearDuplicates) -> list[list[int]]:
    """Return the groups of images that look alike or are equal, each as ascending numbers, by their smallest digest."""
    components = Components(len(images))
    first: dict[str, int] = {}
    for number, image in enumerate(images):
        components.join(np.array([first.setdefault(image.digest, number)]), np.array([number]))
    rows = [number for number, image in enumerate(images) if image.measured is not None]
    if len(rows) > 1:
        measured = np.stack([image.measured for image in images if image.measured is not None])
        similar = rule.components(measured).find(np.arange(len(rows)))
        components.join(np.array(rows)[similar], np.array(rows))
    groups: dict[int, list[int]] = {}
    for number, group in enumerate(components.find(np.arange(len(images))).tolist()):
        groups.setdefault(group, []).append(number)
    return sorted(groups.values(), key=lambda group: min(images[number].digest for number in group))


def choose_held_out(groups: list[list[int]], share: float) -> set[int]:
    """Return the numbers of the held-out images: the first groups, about a share of all.

    From ``ENOUGH`` groups on, two groups at least are on each side; from ``FEWEST`` on, one at least is held out; with
    fewer, none is. A group with more images than the share allows stays in training.

    Args:
        groups: Groups of images, in the order of ``look_alikes``.
        share: Between 0 and 1.
    """
    count = len(groups)
    if count < FEWEST:
        return set()
    wanted = min(max(2, round(share * count)), count - 2) if count >= ENOUGH else 1
    most = max(wanted, round(share * sum(map(len, groups))))
    small = [group for group in groups if len(group) <= most]
    return {number for group in small[:wanted] for number in group}

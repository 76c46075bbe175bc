"""Deletion requests at run time: a list of perceptual hashes of images that a generator must not return.

A publisher who is asked to delete an image adds its hash to the list at once, long before a new model is trained. The
file is that of leam_mm/data/hash_files.py, named ``.pdq`` or ``.csv`` with a column ``pdq``, as the lists that
``data_tools.withdraw_samples`` writes. An image matches if its PDQ hash, or that of a rotation or reflection, differs
from a listed one in at most ``MAX_DISTANCE`` of 256 bits. Hashes of unrelated images differ in 128 bits on average. An
image that is nearly flat has no stable hash, and is not compared.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leam_mm.data.hash_files import read_hashes
from leam_mm.errors import UserError

FILE = "deletion_list.pdq"  # of a release folder
MAX_DISTANCE = 31  # bits; recommended by PDQ's authors (Davis and Rosen, 2019)
MIN_QUALITY = 50  # of [0, 100]
CHUNK = 1 << 16  # hashes compared at once


class ListedImage(UserError):
    """A generated image is on the deletion list."""


@dataclass(frozen=True)
class DeletionList:
    """Hashes of images that are not returned.

    Args:
        name: Of the file, for messages.
        hashes: (N, 4) uint64.
    """

    name: str
    hashes: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "DeletionList":
        """Read the file.

        Raises:
            UserError: It is missing, larger than the limit of ``hash_files``, damaged, or holds no PDQ hash; or the
                library that computes the hashes is missing.
        """
        try:
            import pdqhash  # noqa: F401  # of the extras data and serve: a list that cannot be compared is refused here
        except ImportError:
            raise UserError(f"{path}: comparing hashes needs pdqhash: pip install 'leam_mm[serve]'") from None
        found = read_hashes(path).get("pdq")
        if not found:
            raise UserError(f"deletion list {path} holds no PDQ hash: name it .pdq, or .csv with a column pdq")
        return cls(path.name, np.frombuffer(b"".join(sorted(found)), np.uint64).reshape(-1, 4))

    def distance(self, pixels: np.ndarray) -> int | None:
        """Return the fewest bits in which an image differs from a listed one; None if it is too flat to compare.

        Args:
            pixels: (H, W, 3) uint8, RGB.
        """
        from leam_mm.data.perceptual_hash import pdq_transformed

        codes, quality = pdq_transformed(pixels)
        if quality < MIN_QUALITY:
            return None
        words = np.ascontiguousarray(codes).view(np.uint64)
        nearest = 256
        for start in range(0, len(self.hashes), CHUNK):
            rows = self.hashes[start : start + CHUNK]
            for word in words:
                nearest = min(nearest, int(np.bitwise_count(rows ^ word).sum(1, dtype=np.int64).min()))
        return nearest

    def check(self, pixels: np.ndarray) -> None:
        """Refuse an image that is on the list.

        Args:
            pixels: (H, W, 3) uint8, RGB, before a watermark is put in.

        Raises:
            ListedImage: Its hash is near a listed one. No hash is in the message.
        """
        distance = self.distance(pixels)
        if distance is not None and distance <= MAX_DISTANCE:
            raise ListedImage(
                f"the image is on the publisher's deletion list {self.name} ({distance} of 256 bits differ, up to "
                f"{MAX_DISTANCE} match): it is not returned; change prompt or seed"
            )


def deletion_list_of(given: Path | None, generator: Path | str) -> DeletionList | None:
    """Return the list that a person gives, else that of a release's folder, else None.

    Args:
        given: File of the list.
        generator: Address of the generator.
    """
    own = Path(generator) / FILE
    path = given if given is not None else own if own.is_file() else None
    return DeletionList.read(path) if path is not None else None

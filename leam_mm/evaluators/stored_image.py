"""An image that stays on the disk until it is decoded: a file, or a range of bytes in a tar."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample
from leam_mm.evaluators.image_preparation import ImagePreparation

MAX_BYTES = 50_000_000  # of an image


@dataclass(frozen=True)
class StoredImage(ImageSample):
    """One sample of a folder.

    Args:
        file: Image file, or tar; not used if `encoded` holds the bytes.
        offset: First byte of the image in the file.
        size: Number of bytes; None reads to the end.
        preparation: How the bytes become pixels.
    """

    file: Path = Path()
    offset: int = 0
    size: int | None = None
    preparation: ImagePreparation = field(default_factory=ImagePreparation)

    def content(self) -> bytes:
        """Return the bytes of the image.

        Raises:
            UserError: They cannot be read, or are too many.
        """
        if self.encoded:
            return self.encoded
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                found = file.read(MAX_BYTES + 1 if self.size is None else self.size)
        except OSError as error:
            raise UserError(f"{self.file} cannot be read ({error.strerror}): repair or remove it") from None
        if len(found) > MAX_BYTES or (self.size is not None and len(found) < self.size):
            raise UserError(f"image {self.key} in {self.file} has more than {MAX_BYTES} bytes or is cut off: remove it")
        return found

    def pixels(self, size: int) -> Tensor:
        """Decode to (3, size, size) uint8.

        Raises:
            UserError: The image cannot be decoded.
        """
        try:
            return self.preparation(self.content(), size)
        except UserError as error:
            reason = str(error).partition(";")[0].partition(": save it")[0]
            raise UserError(f"image {self.key}: {reason}: repair or remove it") from None

    def sha256(self) -> str:
        """Return the digest of the bytes."""
        return hashlib.sha256(self.content()).hexdigest()

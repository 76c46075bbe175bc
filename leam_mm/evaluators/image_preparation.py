"""How image bytes become the pixels that an encoder takes: decoding, resize mode and interpolation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.image_file import open_image
from leam_mm.data.upright_image import read_upright
from leam_mm.encoders.pretrained_encoder import find_weights
from leam_mm.errors import UserError
from leam_mm.model_address import address_kind

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImagePreparation:
    """Decoding and resizing of one image.

    Args:
        resize_mode: `shortest` resizes the shorter side and crops the centre; `squash` ignores the aspect ratio.
        interpolation: `bicubic` or `bilinear`, antialiased as Pillow does it.
        upright: Apply orientation, colour profile and transparency, for files that people collected; False decodes as
            in training on shards.
    """

    resize_mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    upright: bool = False

    def __call__(self, content: bytes, size: int) -> Tensor:
        """Return (3, size, size) uint8.

        Raises:
            UserError: The bytes are no image, or exceed a limit.
        """
        usual = (self.resize_mode, self.interpolation) == ("shortest", "bicubic")
        if usual and not self.upright:
            return ImageDecoding(size)(content, numpy.random.default_rng(0))
        image = read_upright(content) if self.upright else _decode(content)
        pixels = ImageDecoding(size).centre_square(image) if usual else self._resize(image, size)
        return torch.from_numpy(numpy.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def described(self) -> str:
        """Return the preparation in words, for the record of a number."""
        shape = "shorter side resized, centre cropped" if self.resize_mode == "shortest" else "resized to a square"
        return f"{shape}, {self.interpolation}{', upright and in sRGB' if self.upright else ''}"

    def _resize(self, image: Image.Image, size: int) -> numpy.ndarray:
        width, height = image.size
        side = (width, height) if self.resize_mode == "squash" else (min(image.size),) * 2
        left, top = (width - side[0]) / 2, (height - side[1]) / 2
        box = (left, top, left + side[0], top + side[1])
        return numpy.asarray(image.resize((size, size), INTERPOLATIONS[self.interpolation], box=box))


def _decode(content: bytes) -> Image.Image:
    try:
        return open_image(content).convert("RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
        raise UserError(f"unreadable image ({error})") from None


def preparation_of(address: Path | str) -> ImagePreparation:
    """Return the preparation that an encoder asks for, apart from decoding.

    Args:
        address: See leam_mm/model_address.py.

    Raises:
        UserError: It asks for a resize mode or an interpolation that is not supported.
    """
    if address_kind(address) == "run":
        return ImagePreparation()
    _, _, asked = find_weights(str(address), None)
    mode: Any = asked.get("resize_mode") or "shortest"
    interpolation: Any = asked.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash"):
        raise UserError(f"{address}: resize_mode {mode!r} of preprocess_cfg is not supported: use shortest or squash")
    if interpolation == "random":  # open_clip's word for either of them, during training
        interpolation = "bicubic"
    if interpolation not in INTERPOLATIONS:
        raise UserError(
            f"{address}: interpolation {interpolation!r} of preprocess_cfg is not supported: use bicubic or bilinear"
        )
    return ImagePreparation(mode, interpolation)

"""The network that reads the bits of a mark out of an image, after HiDDeN (1807.09937)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leam_mm.errors import UserError


class MarkExtractor(nn.Module):
    """Convolutions at half and quarter resolution, averaged over the image: images of any size give the same bits.

    Args:
        bits: k, bits of a message, 8 to 256.
        width: Channels at half resolution, 4 to 512; a quarter resolution has twice as many.
        depth: Convolutions at each resolution after the first one, 1 to 8.
    """

    def __init__(self, bits: int = 32, width: int = 32, depth: int = 1) -> None:
        """See the class for the arguments."""
        super().__init__()
        for name, value, (least, most) in (
            ("bits", bits, (8, 256)), ("width", width, (4, 512)), ("depth", depth, (1, 8)),
        ):  # fmt: skip
            if not least <= value <= most:
                raise UserError(f"{name} of the mark's extractor is {value}: give {least} to {most}")
        self.bits, self.width, self.depth = bits, width, depth
        layers = _block(3, width, 7, 2)
        for _ in range(depth):
            layers += _block(width, width, 3, 1)
        layers += _block(width, 2 * width, 5, 2)
        for _ in range(depth):
            layers += _block(2 * width, 2 * width, 3, 1)
        self.features = nn.Sequential(*layers)
        self.read = nn.Linear(2 * width, bits)

    def forward(self, image: Tensor) -> Tensor:
        """Return a number for each bit (B, k), positive for 1, of images (B, 3, H, W) in [-1, 1]."""
        return self.read(self.average(image))

    def average(self, image: Tensor) -> Tensor:
        """Return the features (B, 2 width) before the last layer, averaged over the image."""
        return self.features(image).mean((2, 3))

    @torch.no_grad()
    def whiten(self, outputs: Tensor, marked: Tensor | None = None, message: np.ndarray | None = None) -> None:
        """Change the last layer so that the bits of unmarked images are fair and uncorrelated.

        Args:
            outputs: (N, k) of unmarked images. Their covariance becomes the identity, and each bit is 1 for half of
                them (2303.15435, section 4.1).
            marked: (M, k) of marked images. White bits stay white when they are rotated: the mean difference of marked
                images is turned to the message, so that every bit gets an equal part of it. None does not rotate.
            message: (k,) bool, for ``marked``.

        Raises:
            UserError: There are too few images.
        """
        if len(outputs) <= 2 * self.bits:
            raise UserError(
                f"{len(outputs)} images are too few to whiten {self.bits} bits: give at least {2 * self.bits + 1}"
            )
        wide = outputs.double()
        values, vectors = torch.linalg.eigh(torch.cov(wide.T))
        inverse = vectors @ torch.diag(values.clamp(min=float(values.max()) * 1e-10).rsqrt()) @ vectors.T
        if marked is not None and message is not None:
            shift = (marked.double().mean(0) - wide.mean(0)) @ inverse
            signs = torch.from_numpy(2.0 * message - 1)
            mirror = shift / shift.norm() - signs / signs.norm()
            mirror = mirror / mirror.norm().clamp(min=1e-12)
            inverse = inverse - 2 * torch.outer(mirror, mirror @ inverse)  # a reflection (Householder 1958)
        middle = (wide @ inverse.T).median(0).values
        weight, bias = self.read.weight.double(), self.read.bias.double()
        self.read.weight.copy_(inverse @ weight)
        self.read.bias.copy_(inverse @ bias - middle)

    def settings(self) -> dict[str, Any]:
        """Return the arguments with which the same network is built."""
        return {"bits": self.bits, "width": self.width, "depth": self.depth}


def parse_message(text: str, bits: int) -> np.ndarray:
    """Return the message (k,) bool of hexadecimal digits; the last byte is filled with zeros.

    Raises:
        UserError: There are too many or too few digits, or others.
    """
    try:
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError:
        packed = np.empty(0, np.uint8)
    if len(packed) != -(-bits // 8):
        raise UserError(f"the message is {text[:80]!r}: give {2 * -(-bits // 8)} hexadecimal digits, for {bits} bits")
    return np.unpackbits(packed, count=bits).astype(bool)


def _block(inward: int, outward: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inward, outward, kernel, stride, kernel // 2, padding_mode="replicate")
    return [convolution, nn.GroupNorm(min(8, outward // 4), outward), nn.SiLU()]

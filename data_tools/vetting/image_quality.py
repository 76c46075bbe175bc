"""Vetting rule for images without content: too small, too elongated, or nearly blank."""

import numpy as np

from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.errors import UserError

MARGIN = 8  # levels within which the pixels of a margin are equal; JPEG varies by a few
SMALLEST = 8  # a drawing is judged without its margins if it takes this part of the image's shorter side
SAMPLED = 4096  # pixels whose grey levels are counted, spread evenly


class ImageQuality(VettingRule):
    """Drops images by their sides and by the entropy of their grey levels, without margins of one colour.

    A small drawing on a large page is therefore judged by itself; a speck, smaller than an eighth of the page's shorter
    side, is not. If what the margins leave is nearly blank, the whole image counts: outer stripes of a flag look alike.

    Args:
        min_side: Shortest side, in pixels.
        max_aspect: Largest ratio of the longer to the shorter side.
        min_entropy: Smallest entropy of the grey levels, in bits, 0 to 8; an image of one colour has 0, a drawing of
            two equally frequent colours 1, a photograph mostly 6 to 8.
    """

    name = "image_quality"

    def __init__(self, min_side: int = 64, max_aspect: float = 3.0, min_entropy: float = 0.5) -> None:
        """See the class for the arguments."""
        if min_side < 1 or max_aspect < 1 or not 0 <= min_entropy <= 8:
            raise UserError("ImageQuality: give min_side and max_aspect from 1 on, min_entropy between 0 and 8 bits")
        self.min_side, self.max_aspect, self.min_entropy = min_side, max_aspect, min_entropy

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Measure every image."""
        return [self._judge(sample.pixels) for sample in samples]

    def _judge(self, pixels: np.ndarray) -> Finding:
        height, width = pixels.shape[:2]
        inner = without_margins(pixels)
        if max(inner.shape[:2]) * SMALLEST < min(height, width):
            inner = pixels
        aspect, bits = max(height, width) / min(height, width), grey_entropy(inner)
        if bits < self.min_entropy and inner.shape != pixels.shape:  # what seemed margins may be stripes, as of a flag
            inner, bits = pixels, grey_entropy(pixels)
        reason = ""
        if min(height, width) < self.min_side:
            reason = f"a side shorter than {self.min_side} pixels"
        elif aspect > self.max_aspect:
            reason = f"sides of a ratio above {self.max_aspect:g}"
        elif bits < self.min_entropy:
            reason = f"nearly blank: its grey levels have less than {self.min_entropy:g} bits"
        within = "" if inner.shape == pixels.shape else f" in {inner.shape[1]}x{inner.shape[0]}"
        return Finding(f"{width}x{height} {bits:.2f} bits{within}", not reason, reason)


def without_margins(pixels: np.ndarray) -> np.ndarray:
    """Return the part of an image (H, W, 3) uint8 inside its margins of one colour; an image of one colour as it is."""
    rows = _inside(pixels)
    columns = _inside(pixels[rows].swapaxes(0, 1))
    return pixels[rows, columns]


def _inside(pixels: np.ndarray) -> slice:
    """Return the rows between the first and the last ones that are of one colour; all rows if there are no others."""
    edges = pixels[[0, -1]]
    if (np.ptp(edges, axis=1) > MARGIN).any(axis=1).all():  # most photographs: no row at an edge is of one colour
        return slice(None)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # numpy reduces rows of three values ten times slower
    low, high = planes.min(axis=2).astype(np.int16), planes.max(axis=2).astype(np.int16)  # (3, H)
    first, last = (
        ((high - low[:, [edge]] > MARGIN) | (high[:, [edge]] - low > MARGIN)).any(axis=0) for edge in (0, -1)
    )
    begin, end = int(np.argmax(first)), len(last) - int(np.argmax(last[::-1]))
    # Two plain halves, as of a flag, are no margins: nothing would be left.
    return slice(begin, end) if first.any() and last.any() and begin < end else slice(None)


def grey_entropy(pixels: np.ndarray) -> float:
    """Return the entropy, in bits, of the grey levels of an image (H, W, 3) uint8, from about SAMPLED of its pixels."""
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / SAMPLED) ** 0.5))
    some = pixels[step // 2 :: step, step // 2 :: step].astype(np.uint16)
    grey = (77 * some[..., 0] + 150 * some[..., 1] + 29 * some[..., 2]) >> 8  # BT.601, in 256ths
    counts = np.bincount(grey.ravel(), minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))

"""A spread-spectrum watermark that needs no weights.

The mark is a sum of waves whose phases are pseudo-random numbers of a key (Cox, Kilian, Leighton and Shamoon, "Secure
Spread Spectrum Watermarking for Multimedia", 1997). It is defined in waves per image, not per pixel, so that an image
that was resized as a whole is compared at once; for cropped or framed images the detector tries other scales, and all
shifts by one Fourier transform each. Amplitudes follow the local contrast, and how the image's own waves stand to the
key's (informed embedding: Malvar and Florencio, "Improved Spread Spectrum", 2003).

The statistic compares phases only. For an image that does not depend on the key, the phase differences at N waves are
independent and uniform, whatever the image. With weights w(f) that depend on the image alone, Hoeffding's lemma for
cosines, E exp(t cos U) <= exp(t^2 / 4), gives P(sum w cos >= z sqrt(sum w^2 / 2)) <= exp(-z^2 / 2). The score is
-log10 of this bound times the number of scales and shifts that were tried: the stated false positive rate needs no
calibration and is an upper limit.

The key is public by default, so that anyone can detect the mark; whoever knows the key can also remove it.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter, grey_opening

from leam_mm.marking.watermark import check_pixels

PUBLIC_KEY = b"leam_mm generated image"
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. ITU-R BT.601
FLOOR = 4.0  # grey levels: contrast below which the mark does not get weaker with the image's
CEILING = 12.0  # grey levels: contrast beyond which it does not get stronger
TEXTURE = 2.0  # of the contrast to that at the finest scale
LIMIT = 1.5  # of an image divided by its contrast
NOISE = 0.6  # of an image's waves that re-encoding adds, as a share of the mark's in a flat image
UNSCALED = 0.5  # share of the false positives that is left to images which were not cropped
NEAR = 4  # shifts in each direction, in points of the grid, that an image which was not cropped may have
LEAST, MOST = 0.5, 1.6  # scales of cropped and framed images: side of the image over that of the marked one


@dataclass(frozen=True)
class Band:
    """Waves of a mark, counted in waves along the side of a square image.

    Args:
        low: Fewest waves.
        high: Most waves.
        grid: Points along the side of the grid on which the mark is drawn and sought; more than twice ``high``.
        side: The band is used for images up to this geometric mean of width and height, in pixels.
        least: Smaller images are not searched for it.
        flat: Root mean square of the change in flat areas, in grey levels: small images leave fewer waves.
    """

    low: int
    high: int
    grid: int
    side: float
    least: float
    flat: float

    @property
    def scales(self) -> np.ndarray:
        """Scales to try, so close that the finest waves shift by at most 3/16 of their length at the border."""
        step = 0.75 / self.high
        count = int(np.ceil(np.log(MOST / LEAST) / step))
        return np.geomspace(LEAST, MOST, count + 1)


# A quarter of the smallest marked side: cropped to the half and resized to the half.
BANDS = (Band(4, 20, 48, 96, 1, 1.8), Band(10, 48, 120, 384, 24, 1.2), Band(28, 96, 240, np.inf, 96, 1.1))


@lru_cache(maxsize=16)
def waves(key: bytes, band: Band) -> tuple[np.ndarray, np.ndarray]:
    """Return the mark of a band on its grid, one half of the spectrum, as ``rfft2`` orders it.

    Returns:
        exp(i phase), (grid, grid / 2 + 1) complex64, zero outside the band; and the band as bool. Of the waves without
        horizontal part, which stand twice in that half, only one of each pair is in it.
    """
    down = np.fft.fftfreq(band.grid, 1 / band.grid)[:, None]
    across = np.fft.rfftfreq(band.grid, 1 / band.grid)[None]
    radius = np.hypot(down, across)
    inside = (radius >= band.low) & (radius <= band.high) & ((across > 0) | (down > 0))
    digits = hashlib.shake_256(key + f" {band.low} {band.high} {band.grid}".encode()).digest(4 * inside.size)
    phase = np.frombuffer(digits, "<u4").reshape(inside.shape) * (2 * np.pi / 2**32)
    return (np.exp(1j * phase) * inside).astype(np.complex64), inside


class SpreadSpectrum:
    """The mark; see the top of the file.

    Args:
        key: Bytes that decide the phases.
        strength: Largest root mean square of the change of an image, in grey levels.
    """

    name = "spread spectrum"

    def __init__(self, key: bytes = PUBLIC_KEY, strength: float = 2.2) -> None:
        """See the class for the arguments."""
        self.key, self.strength = key, strength

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return the marked image, see ``Watermark``."""
        check_pixels(pixels)
        height, width = pixels.shape[:2]
        side = (height * width) ** 0.5
        band = next(band for band in BANDS if side <= band.side)
        plain = _resize(pixels @ LUMA, *_grid_size(band, width, height, 1.0))
        flat, contrast = _flatten(plain, band.grid)
        pattern, _ = waves(self.key, band)
        target = self._amplitudes(rfft2(_fold(flat, band.grid)), band)
        tile = irfft2(target * pattern, s=(band.grid, band.grid))
        rows, columns = (np.arange(length) % band.grid for length in plain.shape)
        change = tile[np.ix_(rows, columns)] * np.minimum(contrast + FLOOR, CEILING)
        change = _resize(change.astype(np.float32), width, height)
        change = change * min(1.0, self.strength / max(float(np.sqrt(np.mean(change**2))), 1e-6))
        return np.clip(np.rint(pixels + change[:, :, None]), 0, 255).astype(np.uint8)

    def _amplitudes(self, image: np.ndarray, band: Band) -> np.ndarray:
        """Return the amplitude of each wave that aligns the sum with the pattern most, for a given mean square.

        The gain of amplitude d is the cosine of the sum's phase against the key's, with the noise of re-encoding
        added: (a + d) / sqrt((a + d)^2 + b^2 + noise^2), a and b being the image's parts along and across the key's.
        """
        pattern, inside = waves(self.key, band)
        own = (image * pattern.conj())[inside]
        # Parseval: the mean square of the tile, two halves of the spectrum, divided by the points.
        points = image.shape[0] ** 2
        medium = band.flat / FLOOR * points / np.sqrt(2 * inside.sum())
        options = np.linspace(0, 2.5, 51)[:, None] * medium
        along, noise = own.real + options, (NOISE * medium) ** 2
        gain = along / np.sqrt(along**2 + own.imag**2 + noise)
        least, most = 0.0, 100.0
        for _ in range(25):  # bisection of the price of energy
            price = (least + most) / 2
            chosen = options[np.argmax(gain - price * (options / medium) ** 2, axis=0), 0]
            least, most = (price, most) if np.mean(chosen**2) > medium**2 else (least, price)
        amplitudes = np.zeros(image.shape)
        amplitudes[inside] = chosen
        return amplitudes

    def score(self, pixels: np.ndarray) -> float:
        """Return -log10 of the false positive rate, at least 0."""
        check_pixels(pixels)
        side = (pixels.shape[0] * pixels.shape[1]) ** 0.5
        return max(0.0, *(self._band_score(pixels @ LUMA, band) for band in BANDS if side >= band.least))

    def _band_score(self, luma: np.ndarray, band: Band) -> float:
        height, width = luma.shape
        base, _ = _flatten(_resize(luma, *_grid_size(band, width, height, 1.0)), band.grid)
        near = 2 * NEAR + 1
        whole = self._aligned(base, band)
        rolled = np.roll(whole, (NEAR, NEAR), (0, 1))[:near, :near]
        best = _log_rate(float(rolled.max()), near**2 * len(BANDS) / UNSCALED)
        tries = len(band.scales) * band.grid**2 * len(BANDS) / (1 - UNSCALED)
        fine = _resize(luma, *_grid_size(band, width, height, MOST))
        fine, _ = _flatten(fine, band.grid)
        for scale in band.scales:
            aligned = self._aligned(_resize(fine, *_grid_size(band, width, height, float(scale))), band)
            best = max(best, _log_rate(float(aligned.max()), tries))
        return best

    def _aligned(self, flat: np.ndarray, band: Band) -> np.ndarray:
        """Return z at every shift, (grid, grid)."""
        pattern, inside = waves(self.key, band)
        image = rfft2(_fold(flat, band.grid))
        size = np.abs(image)
        # Waves far below the mean of the band, such as those that resizing removed, count less.
        weights = inside * size / (size + 0.1 * size[inside].mean() + 1e-3)
        total = float((weights**2).sum() / 2)
        if total == 0:
            return np.zeros((band.grid, band.grid))
        product = (weights / np.maximum(size, 1e-9)) * image * pattern.conj()
        return irfft2(product, s=(band.grid, band.grid)) * (band.grid**2 / 2) / np.sqrt(total)

    def false_positive_rate(self, score: float) -> float:
        """Return the upper limit that the score states."""
        return float(min(1.0, 10.0**-score))


def _log_rate(z: float, tries: float) -> float:
    """Return -log10 of the probability that one of several unmarked statistics reaches z, by its bound."""
    return (max(z, 0.0) ** 2 / 2 - np.log(tries)) / np.log(10)


def _grid_size(band: Band, width: int, height: int, scale: float) -> tuple[int, int]:
    """Return width and height at which an image has the grid's area, times the scale of its sides."""
    factor = scale * band.grid / (width * height) ** 0.5
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return (height, width) float32, low-pass filtered where it gets smaller."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS))


def _flatten(image: np.ndarray, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image without its local mean and divided by its local contrast, and the contrast in grey levels.

    The contrast is that of textures: lines and edges, beside which a mark is visible, are removed by an opening. Their
    own large values are limited instead.
    """
    rest = image - gaussian_filter(image, grid / 16, mode="reflect")
    fine = image - gaussian_filter(image, grid / 60, mode="reflect")
    energy = np.sqrt(np.maximum(gaussian_filter(fine**2, grid / 80, mode="reflect"), 0))
    contrast = gaussian_filter(
        grey_opening(energy, size=2 * (grid // 14) + 1, mode="reflect"), grid / 60, mode="reflect"
    )
    contrast = TEXTURE * contrast
    return np.clip(rest / (contrast + FLOOR), -LIMIT, LIMIT), contrast


def _fold(image: np.ndarray, grid: int) -> np.ndarray:
    """Return the sum of the grid's tiles of an image, (grid, grid)."""
    height, width = (-(-length // grid) * grid for length in image.shape)
    padded = np.zeros((height, width), np.float32)
    padded[: image.shape[0], : image.shape[1]] = image
    return padded.reshape(height // grid, grid, width // grid, grid).sum((0, 2))

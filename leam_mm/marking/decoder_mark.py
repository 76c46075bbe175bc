"""The mark of a codec's decoder: a fixed message in every image that the decoder makes (Stable Signature, 2303.15435).

A detector is a folder with ``extractor.safetensors``, the network that reads the bits, and ``detector.json``, the
message and what was measured on unmarked images. It may be published or kept; the decoder does not need it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from leam_mm.data.image_range import signed
from leam_mm.errors import UserError
from leam_mm.files import atomic_folder, bytes_sha256, write_bytes, write_json
from leam_mm.json_text import parse_object
from leam_mm.marking.agreeing_bits import AgreeingBits
from leam_mm.marking.image_changes import LEAST_SIDE
from leam_mm.marking.mark_extractor import MarkExtractor, parse_message

FORMAT = "leam_mm decoder mark 1"
DETECTOR, WEIGHTS = "detector.json", "extractor.safetensors"
MAX_JSON, MAX_WEIGHTS = 1 << 20, 1 << 28  # bytes
MOST_SIDE = 1024  # pixels; of larger images the centre is read


@dataclass(frozen=True)
class UnmarkedImages:
    """What was measured on unmarked images that were not used for the whitening.

    Args:
        images: N.
        data: Merkle root of their shards.
        dispersion: Upper bound (95 %) of the dispersion of the number of agreeing bits, see AgreeingBits.
        least_fair: Smallest share of ones among the bits; 0.5 is fair.
        most_fair: Largest share of ones.
        largest_correlation: Largest absolute correlation of two bits.
    """

    images: int
    data: str
    dispersion: float
    least_fair: float
    most_fair: float
    largest_correlation: float


class DecoderMark:
    """Reads the mark of a decoder.

    Args:
        extractor: The whitened network.
        message: (k,) bool.
        unmarked: The measurement from which the false positive rate follows.
        sha256: Digest of the network's file; empty before it is written.
    """

    name = "decoder mark"

    def __init__(
        self, extractor: MarkExtractor, message: np.ndarray, unmarked: UnmarkedImages, sha256: str = ""
    ) -> None:
        """See the class for the arguments."""
        self.extractor = extractor.eval().requires_grad_(False)
        self.message, self.unmarked, self.sha256 = np.asarray(message, bool), unmarked, sha256
        self.distribution = AgreeingBits(extractor.bits, unmarked.dispersion)

    @classmethod
    def read(cls, folder: Path | str) -> "DecoderMark":
        """Read a detector folder, which may come from someone else.

        Raises:
            UserError: A file is missing, damaged, too large, or does not fit the other.
        """
        folder = Path(folder)
        try:
            content = parse_object(_bounded(folder / DETECTOR, MAX_JSON))
            if content.get("format") != FORMAT:
                raise ValueError(f"format is {str(content.get('format'))[:80]!r}, not {FORMAT!r}")
            weights = _bounded(folder / WEIGHTS, MAX_WEIGHTS)
            sha256 = bytes_sha256(weights)
            if content["sha256"] != sha256:
                raise ValueError(f"{WEIGHTS} does not have the digest in {DETECTOR}")
            extractor = MarkExtractor(**{name: int(content["extractor"][name]) for name in ("bits", "width", "depth")})
            tensors = load(weights)
            extractor.load_state_dict(tensors)
            if not all(torch.isfinite(value).all() for value in extractor.state_dict().values()):
                raise ValueError("a weight is not finite")
            unmarked = _measurement(content["unmarked"], extractor.bits)
            return cls(extractor, parse_message(str(content["message"]), extractor.bits), unmarked, sha256)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, UserError) as error:
            reason = (str(error).strip() or type(error).__name__).split("\n")[-1].strip()[:200]
            raise UserError(
                f"{folder} holds no readable detector ({reason}): write it with python -m leam_mm.marking "
                "write-detector, or copy it again"
            ) from None

    def write(self, folder: Path) -> None:
        """Write the detector folder; an older one is replaced."""
        weights = save({name: value.contiguous() for name, value in self.extractor.state_dict().items()})
        self.sha256 = bytes_sha256(weights)
        with atomic_folder(folder) as temporary:
            write_bytes(temporary / WEIGHTS, weights)
            content = {
                "format": FORMAT,
                "extractor": self.extractor.settings(),
                "message": np.packbits(self.message).tobytes().hex(),
                "sha256": self.sha256,
                "unmarked": asdict(self.unmarked),
            }
            write_json(temporary / DETECTOR, content)

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return the image as it is, since the decoder has embedded the mark already: (H, W, 3) uint8."""
        return pixels

    def read_bits(self, pixels: np.ndarray) -> np.ndarray:
        """Return the bits (k,) bool of an image (H, W, 3) uint8."""
        height, width = pixels.shape[:2]
        top, left = max(0, height - MOST_SIDE) // 2, max(0, width - MOST_SIDE) // 2
        part = np.ascontiguousarray(pixels[top : top + MOST_SIDE, left : left + MOST_SIDE].transpose(2, 0, 1))
        with torch.inference_mode():
            outputs = self.extractor(signed(torch.from_numpy(part)[None]))
        return (outputs[0] > 0).numpy()

    def score(self, pixels: np.ndarray) -> float:
        """Return how many bits of an image agree with the message.

        Args:
            pixels: (H, W, 3) uint8.

        Returns:
            0 to k; 0 for images with a side of less than 16 pixels, which are not read.
        """
        if min(pixels.shape[:2]) < LEAST_SIDE:
            return 0.0
        return float((self.read_bits(pixels) == self.message).sum())

    def false_positive_rate(self, score: float) -> float:
        """Return the probability that an unmarked image agrees in at least `score` bits."""
        return self.distribution.tail(score)


def _bounded(file: Path, most: int) -> bytes:
    with open(file, "rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file.name} is larger than {most} bytes")
    return content


def _measurement(content: dict[str, Any], bits: int) -> UnmarkedImages:
    numbers = {name: float(content[name]) for name in (
        "dispersion", "least_fair", "most_fair", "largest_correlation"
    )}  # fmt: skip
    if not 1 <= numbers["dispersion"] <= bits:
        raise ValueError(f"dispersion is {numbers['dispersion']}, outside 1 to {bits}")
    return UnmarkedImages(int(content["images"]), str(content["data"])[:200], **numbers)


def summarize(bits: np.ndarray, data: str, dispersion: float) -> UnmarkedImages:
    """Return the measurement of the bits (N, k) of unmarked images."""
    shares, table = bits.mean(0), np.atleast_2d(np.corrcoef(bits.astype(np.float64), rowvar=False))
    np.fill_diagonal(table, 0)
    largest = float(np.nan_to_num(np.abs(table), nan=1.0).max())
    return UnmarkedImages(len(bits), data, dispersion, float(shares.min()), float(shares.max()), largest)

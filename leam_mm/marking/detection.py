"""What the marks of an image file say: content credentials, texts, and watermarks with their false positive rates."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.marking.content_credentials import EDITED, GENERATED, Credentials, UnreadableCredentials, read
from leam_mm.marking.image_of_stranger import image_format, image_pixels, image_texts
from leam_mm.marking.watermark import Watermark


@dataclass(frozen=True)
class WatermarkFinding:
    """What one detector says.

    Args:
        name: Of the mark.
        score: As the detector gives it.
        false_positive_rate: Probability that an image without the mark scores at least this.
        found: Whether that rate is at most the limit.
    """

    name: str
    score: float
    false_positive_rate: float
    found: bool


@dataclass(frozen=True)
class Marks:
    """What was found in one file.

    Args:
        credentials: Of C2PA; None if there are none, or if they cannot be read.
        problem: Why they cannot be read; "" otherwise.
        texts: Texts of the file that say where it comes from; anybody can write them.
        watermarks: One finding a detector.
    """

    credentials: Credentials | None
    problem: str
    texts: dict[str, str] = field(default_factory=dict)
    watermarks: tuple[WatermarkFinding, ...] = ()

    @property
    def found(self) -> bool:
        """Whether a mark says that a model made the image; texts that anybody can write count, damaged marks do not."""
        credentials = self.credentials
        return (
            (credentials is not None and credentials.generated and credentials.state != "Invalid")
            or any(each.found for each in self.watermarks)
            or self.texts.get("DigitalSourceType") in (GENERATED, EDITED)
        )


def find_marks(content: bytes, detectors: Sequence[Watermark], most_false_positives: float) -> Marks:
    """Read the marks of an image file, offline.

    Args:
        content: The file.
        detectors: Of watermarks.
        most_false_positives: Largest false positive rate at which a watermark counts as found.

    Raises:
        UserError: It is no image, or exceeds a limit.
    """
    kind, credentials, problem = image_format(content), None, ""
    try:
        credentials = read(content, kind)
    except UnreadableCredentials as error:
        problem = str(error)
    texts, pixels = image_texts(content), image_pixels(content)
    findings = []
    for detector in detectors:
        score = float(detector.score(pixels))
        rate = float(detector.false_positive_rate(score))
        findings.append(WatermarkFinding(detector.name, score, rate, rate <= most_false_positives))
    return Marks(credentials, problem, texts, tuple(findings))


def load_detector(name: str) -> Watermark:
    """Return the detector that a person names: a class of their own, called without arguments.

    Args:
        name: Dotted path, such as my_lab.marks.OurMark. Its module is run.

    Raises:
        UserError: It cannot be imported, or is no ``Watermark``.
    """
    module, _, attribute = name.rpartition(".")
    try:
        detector: Any = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"--detector {name} cannot be made ({error}): give the dotted path of a class") from None
    if not isinstance(detector, Watermark):
        raise UserError(
            f"--detector {name} has no name, embed, score and false_positive_rate: see marking/watermark.py"
        )
    return detector


def load_decoder_mark(folder: Path) -> Watermark:
    """Return the detector of a mark that a codec's decoder draws.

    Args:
        folder: As ``write-detector`` wrote it.
    """
    from leam_mm.marking.decoder_mark import DecoderMark  # torch takes seconds

    return DecoderMark.read(folder)

"""Controls of the share of recognised captions: generators whose images are known, and a judge that cannot tell."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.judge_controls import PixelFeatures
from leam_mm.data.image_range import signed
from leam_mm.data.shard_index import ShardWriter
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.recognised_captions import RecognisedCaptions
from leam_mm.evaluators.subject_images import blurred
from leam_mm.prompts.known_images import COLOURS, SHAPES, draw

SIZE = 32
SUBJECTS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
SUBJECT, JUDGE = "metric/recognised_captions", "metric/subject_judge"


def recognition_controls() -> list[Control]:
    """Return the controls of the share and of the test of its judge."""
    return [
        Control(SUBJECT, "generator that draws each subject", False, "all recognised, none before", _true_generator),
        Control(SUBJECT, "generator of blurred colours", True, "none recognised", _blurred_colours),
        Control(SUBJECT, "generator of another subject", True, "none recognised", _other_subjects),
        Control(JUDGE, "features of the pixels", False, "a share", _seeing_judge),
        Control(JUDGE, "features of the brightness alone", True, "no share, and its reason", _blind_judge),
    ]


class BrightnessFeatures(ImageFeatures):
    """The mean of all pixels, which does not tell subjects apart."""

    protocol = "brightness"

    def extract(self, images: Tensor) -> Tensor:
        """Return (B, 1)."""
        return images.double().mean(dim=(1, 2, 3))[:, None]


class SubjectGenerator:
    """Stands for a generator with a codec that changes nothing.

    Args:
        images: Image (3, H, W) uint8 of each caption; noise for other captions.
    """

    device, latent_size = torch.device("cpu"), SIZE
    codec = SimpleNamespace(encode=lambda image: image, decode=lambda latent: latent, downscale=1)

    def __init__(self, images: dict[str, Tensor]) -> None:
        """See the class for the arguments."""
        self.images = images

    def sample(self, prompts: list[str], **settings: Any) -> Tensor:
        """Return (B, 3, H, W) in [0, 1]."""
        noise = torch.randint(0, 256, (3, SIZE, SIZE), generator=torch.Generator().manual_seed(5)).to(torch.uint8)
        return torch.stack([signed(self.images.get(text, noise)) / 2 + 0.5 for text in prompts])


def subject_image(subject: str, seed: int = 0) -> numpy.ndarray:
    """Return an image (H, W, 3) uint8 of a coloured shape; seeds move and scale it a little."""
    colour, shape = subject.split()
    x, y, radius = numpy.array([0.5, 0.5, 0.3]) + numpy.random.default_rng(seed).uniform(-0.03, 0.03, 3)
    thing = {"colour": colour, "shape": shape, "x": x, "y": y, "radius": radius}
    return draw({"kind": "single", "objects": [thing], "relation": None}, SIZE)


def write_subjects(folder: Path, captions: Callable[[str], str] = str, each: int = 2) -> Path:
    """Write a shard folder of `each` pictures of every subject."""
    with ShardWriter(folder, 100) as writer:
        for number, subject in enumerate(SUBJECTS * each):
            encoded = io.BytesIO()
            Image.fromarray(subject_image(subject, number)).save(encoded, "PNG")
            record = {"captions": [{"text": captions(subject), "language": "en"}]}
            writer.write(f"{number:04d}", {"png": encoded.getvalue(), "json": json.dumps(record).encode()})
    return folder


def measure(
    folder: Path, after: dict[str, Tensor], features: ImageFeatures | None = None, shards: Path | None = None
) -> dict[str, Metric]:
    """Return the metrics by name for a generator that draws noise before and these images after."""
    pictures = shards or write_subjects(folder / "pictures")
    evaluator = RecognisedCaptions(folder, pictures, [features or PixelFeatures()])
    evaluator.base = SubjectGenerator({})  # type: ignore[assignment]
    found = evaluator.run(EvaluationContext(None, SubjectGenerator(after), folder / "output"))
    return {metric.name: metric for metric in found}


def subject_images(shift: int = 0) -> dict[str, Tensor]:
    """Return an image of each caption, which shows the subject so many captions further on."""
    shown = [SUBJECTS[(number + shift) % len(SUBJECTS)] for number in range(len(SUBJECTS))]
    return {
        caption: torch.from_numpy(subject_image(subject, 99)).permute(2, 0, 1)
        for caption, subject in zip(SUBJECTS, shown, strict=True)
    }


def _shares(found: dict[str, Metric]) -> tuple[str, float | None, float | None]:
    before, after = (found[f"{side}/recognised_captions"].value for side in ("before", "after"))
    return f"before {before}, after {after}", before, after


def _true_generator(folder: Path) -> Outcome:
    found = measure(folder, subject_images())
    words, before, after = _shares(found)
    change = found["fine_tuning/change/recognised_captions"]
    return Outcome(words, before == 0 and after == 1 and (change.low or 0) > 0.5)


def _blurred_colours(folder: Path) -> Outcome:
    images = {text: blurred(image[None], 4)[0] for text, image in subject_images().items()}
    words, _, after = _shares(measure(folder, images))
    return Outcome(words, after == 0)


def _other_subjects(folder: Path) -> Outcome:
    words, _, after = _shares(measure(folder, subject_images(shift=1)))
    return Outcome(words, after == 0)


def _seeing_judge(folder: Path) -> Outcome:
    found = measure(folder, subject_images())
    return Outcome(found["after/recognised_captions"].note, found["after/recognised_captions"].value is not None)


def _blind_judge(folder: Path) -> Outcome:
    found = measure(folder, subject_images(), BrightnessFeatures())
    shares = [metric for name, metric in found.items() if name.endswith("/recognised_captions")]
    silent = all(metric.value is None and "not measured: the judge names" in metric.note for metric in shares)
    return Outcome(shares[0].note, silent and len(shares) == 3)

"""Controls of encoders on class sub-folders: one that knows the labels, random ones, permuted names, copied images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_images import image_numbers, numbered_png
from leam_mm.evaluators.class_names import name_classes
from leam_mm.evaluators.embedded_images import EmbeddedImages, embed, probe_data
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.few_shot import few_shot
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import read_image_set
from leam_mm.evaluators.linear_probe import linear_probe
from leam_mm.evaluators.zero_shot import ZeroShot

CLASSES, EACH, SIZE = 10, 30, 32
CPU = torch.device("cpu")
CODES = torch.eye(SIZE)
NAMES = [f"class {number}" for number in range(CLASSES)]
Embedding = Callable[[Tensor], Tensor]


def _knowing(numbers: Tensor) -> Tensor:
    """Return the code of each image's class, with a little noise."""
    return CODES[numbers % CLASSES] + 0.2 * _random(numbers)


def _random(numbers: Tensor) -> Tensor:
    """Return a random direction for each image, the same at each call."""
    table = torch.randn(4 * CLASSES * EACH, SIZE, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(table, dim=1)[numbers]


def _write(folder: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        place = folder / NAMES[number % CLASSES]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(numbered_png(number))


def _embedded(folder: Path, split: str, embedding: Embedding, shift: int = 0) -> tuple[CodedEncoder, EmbeddedImages]:
    """Return an encoder and the embedded images of a split.

    Args:
        folder: Class sub-folders, in splits.
        split: Name of the split.
        embedding: Function of the images' numbers.
        shift: Added to the number of a class in its text's embedding: 0 names the right class.
    """

    def text(prompt: str) -> Tensor:
        own = next(number for number, name in enumerate(NAMES) if name in prompt)
        return CODES[(own + shift) % CLASSES]

    encoder = CodedEncoder(lambda image: embedding(image_numbers(image)), text)
    return encoder, embed(encoder, read_image_set(folder, split, ImagePreparation()), 100, CPU)


def _zero_shot(embedding: Embedding, shift: int, expected: str, folder: Path) -> Outcome:
    _write(folder / "test", range(CLASSES * EACH))
    encoder, test = _embedded(folder, "test", embedding, shift)
    names = name_classes(test.images, None, None, [])
    assert names is not None
    metrics = ZeroShot(folder, folder).measure(
        encoder, test.embedding, list(test.images.samples), names.classes, names.languages, CPU
    )
    return _judged(next(metric for metric in metrics if metric.name == "zero_shot/top1/en"), expected)


def _probe(embedding: Embedding, copies: bool, few: bool, expected: str, folder: Path) -> Outcome:
    """Judge a probe with as many training as test images.

    Args:
        embedding: Function of the images' numbers.
        copies: Whether the training images hold a copy of each test image, too.
        few: Whether the probe is a few-shot one.
        expected: See `_judged`.
        folder: Empty folder.
    """
    count = CLASSES * EACH
    _write(folder / "test", range(count))
    _write(folder / "train", range(0 if copies else count, 2 * count))
    _, test = _embedded(folder, "test", embedding)
    _, train = _embedded(folder, "train", embedding)
    data = probe_data(test, train)
    if isinstance(data, str):
        return Outcome(data, False)
    metrics = few_shot("few_shot", data, [8], 5) if few else linear_probe("linear_probe", data)
    return _judged(metrics[0], expected)


def _judged(metric: Metric, expected: str) -> Outcome:
    """Compare an interval with chance, one in ten.

    Args:
        metric: The number.
        expected: `all right`, `at chance` or `below chance`.
    """
    if metric.value is None or metric.low is None or metric.high is None:
        return Outcome(f"not measured: {metric.note}", False)
    chance = 1 / CLASSES
    right = {
        "all right": metric.value == 1.0 and metric.low > chance,
        "at chance": metric.low <= chance <= metric.high < 0.5,
        "below chance": metric.high < chance,
    }
    return Outcome(f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})", right[expected])


def class_folder_controls() -> list[Control]:
    """Return the controls."""
    count = CLASSES * EACH

    def shuffled(numbers: Tensor) -> Tensor:
        """Return embeddings of classes that do not depend on the image's own: labels are random for the probe."""
        order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(1))
        return _knowing(order[numbers])

    rows = [
        ("zero_shot", "encoder that knows the labels", False, "all right", partial(_zero_shot, _knowing, 0)),
        ("zero_shot", "encoder with random embeddings", True, "at chance", partial(_zero_shot, _random, 0)),
        ("zero_shot", "encoder whose class names are permuted", True, "below chance", partial(_zero_shot, _knowing, 1)),
        ("linear_probe", "embeddings of separate classes", False, "all right",
         partial(_probe, _knowing, False, False)),
        ("linear_probe", "random labels", True, "at chance", partial(_probe, shuffled, False, False)),
        ("linear_probe", "test images copied into the training images", True, "at chance",
         partial(_probe, _random, True, False)),
        ("few_shot", "random labels", True, "at chance", partial(_probe, shuffled, False, True)),
    ]  # fmt: skip
    return [Control(f"metric/{subject}", name, positive, expected, partial(run, expected))
            for subject, name, positive, expected, run in rows]  # fmt: skip

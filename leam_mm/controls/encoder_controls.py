"""Controls of metrics of encoders: embeddings that fit, that are all the same, and that say nothing about classes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from leam_mm.controls.control import Control, Outcome
from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.few_shot import few_shot
from leam_mm.evaluators.linear_probe import linear_probe
from leam_mm.evaluators.probe_data import ProbeData
from leam_mm.evaluators.retrieval import ranks_both_ways
from leam_mm.evaluators.zero_shot import rank_of_target

CLASSES, EACH, SIZE = 8, 40, 16
COUNT = CLASSES * EACH
CHANCE = 1 / CLASSES
SMALL, NOISE = 0.2, 100.0  # standard deviation around the class


def _embeddings(seed: int, noise: float = SMALL) -> tuple[Tensor, Tensor]:
    """Return (B, D) embeddings of length 1 around their class, and (B,) classes."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(COUNT) % CLASSES
    centre = functional.one_hot(label, SIZE).float()
    return functional.normalize(centre + noise * torch.randn(COUNT, SIZE, generator=generator), dim=1), label


def _constant(embedding: Tensor) -> Tensor:
    """Return the embeddings of an encoder that gives everything the same one."""
    return embedding[:1].expand_as(embedding)


def _zero_shot(change: Callable[[Tensor], Tensor]) -> float:
    image, label = _embeddings(0)
    text = change(torch.eye(CLASSES, SIZE))
    known = torch.ones(CLASSES, dtype=torch.bool)
    rank, _ = rank_of_target(change(image), text, label, torch.arange(CLASSES), known)
    return float((rank == 0).float().mean())


def _retrieval(change: Callable[[Tensor], Tensor], direction: int) -> float:
    generator = torch.Generator().manual_seed(0)
    text = functional.normalize(torch.randn(COUNT, SIZE, generator=generator), dim=1)
    image = functional.normalize(text + 0.01 * torch.randn(COUNT, SIZE, generator=generator), dim=1)
    owned = [torch.tensor([number]) for number in range(COUNT)]
    published, _ = ranks_both_ways(change(image), text, owned)
    return float((torch.cat(published[direction]) == 0).float().mean())


def _probe_data(noise: float) -> ProbeData:
    (train, label), (test, test_label) = _embeddings(0, noise), _embeddings(1, noise)
    names = [str(number) for number in range(COUNT)]
    return ProbeData(
        train.double().numpy(), label.numpy(), [f"train{name}" for name in names], test.double().numpy(),
        test_label.numpy(), names, [str(number) for number in range(CLASSES)], "control",
    )  # fmt: skip


def _linear(name: str, data: ProbeData) -> list[Metric]:
    return linear_probe(name, data)


def _shots(name: str, data: ProbeData) -> list[Metric]:
    return few_shot(name, data, [8], 3)


def _probe(measure: Callable[[str, ProbeData], list[Metric]], noise: float) -> float:
    value = measure("control", _probe_data(noise))[0].value
    return numpy.nan if value is None else value


def _hits(measure: Callable[[], float], low: float, high: float, folder: Path) -> Outcome:
    value = measure()
    return Outcome(f"top-1 {value:.3f}", low <= value <= high)


def _same(embedding: Tensor) -> Tensor:
    return embedding


def encoder_controls() -> list[Control]:
    """Return the controls."""
    fitting, blind = "encoder whose embeddings fit", "encoder that gives everything the same embedding"
    noisy = "embeddings that have nothing to do with the classes"
    rows: list[tuple[str, str, bool, str, float, float, Callable[[], float]]] = [
        ("metric/zero_shot", blind, True, "0, as ties count against it", 0.0, 0.0, partial(_zero_shot, _constant)),
        ("metric/zero_shot", fitting, False, "above 0.9", 0.9, 1.0, partial(_zero_shot, _same)),
        ("metric/retrieval", blind, True, "image to text at chance", 0.0, 2 / COUNT, partial(_retrieval, _constant, 0)),
        ("metric/retrieval", f"{blind}, text to image", True, "0", 0.0, 0.0, partial(_retrieval, _constant, 1)),
        ("metric/retrieval", fitting, False, "image to text above 0.99", 0.99, 1.0, partial(_retrieval, _same, 0)),
        ("metric/linear_probe", noisy, True, "near chance", 0.0, 2 * CHANCE,
         partial(_probe, _linear, NOISE)),
        ("metric/linear_probe", fitting, False, "above 0.9", 0.9, 1.0, partial(_probe, _linear, SMALL)),
        ("metric/few_shot", noisy, True, "near chance", 0.0, 2 * CHANCE,
         partial(_probe, _shots, NOISE)),
        ("metric/few_shot", fitting, False, "above 0.8", 0.8, 1.0, partial(_probe, _shots, SMALL)),
    ]  # fmt: skip
    return [
        Control(subject, name, positive, expected, partial(_hits, measure, low, high))
        for subject, name, positive, expected, low, high, measure in rows
    ]

"""Controls of distances between sets of images: a copied set, a shifted one, a collapsed one, of known distance."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from leam_mm.controls.control import Control, Outcome
from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_infinity import frechet_infinity
from leam_mm.distances.inception_score import inception_score
from leam_mm.distances.kernel_distance import gaussian_distance, kernel_distance
from leam_mm.distances.mind import mind
from leam_mm.distances.precision_recall import precision_recall
from leam_mm.distances.wavelet_distance import haar_packets, wavelet_distance

COUNT, SIZE = 1000, 8  # samples of a set and features
SHIFT = 2.0  # of every feature, in standard deviations
CLASSES = 10
Sets = Callable[[], tuple[Tensor, Tensor]]


def _normal(seed: int, count: int = COUNT) -> Tensor:
    return torch.randn(count, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _copied() -> tuple[Tensor, Tensor]:
    return _normal(0), _normal(0)[torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))]


def _fresh() -> tuple[Tensor, Tensor]:
    return _normal(0), _normal(1)


def _shifted() -> tuple[Tensor, Tensor]:
    return _normal(0), _normal(1) + SHIFT


def _collapsed() -> tuple[Tensor, Tensor]:
    """Return samples, and a generator that makes one of them over and over."""
    return _normal(0), _normal(0)[:1] + 0.01 * _normal(1)


def _packets(seed: int, contrast: float) -> Tensor:
    images = torch.rand(400, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return haar_packets(images * contrast, 2)


def _between(name: str, low: float, high: float, measure: Callable[[], float], folder: Path) -> Outcome:
    value = measure()
    return Outcome(f"{name} {value:.4g}", low <= value <= high)


def _distance(measure: Callable[[Tensor, Tensor], float], sets: Sets) -> float:
    return measure(*sets())


def _unit(sets: Sets) -> tuple[Tensor, Tensor]:
    first, second = sets()
    return functional.normalize(first, dim=1), functional.normalize(second, dim=1)


def _one_kernel(first: Tensor, second: Tensor) -> float:
    return kernel_distance(first, second, subsets=1, subset_size=len(first))


def _share(name: str, sets: Sets) -> float:
    return float(getattr(precision_recall(*sets()), name))


def _logits(confidence: float, classes: int) -> float:
    """Return the score of images whose classes are as sure as ``confidence`` says, and spread over some classes."""
    return inception_score(confidence * functional.one_hot(torch.arange(COUNT) % classes, CLASSES).double())


def distance_controls() -> list[Control]:
    """Return the controls; distances of normal sets have closed forms."""
    shifted = SIZE * SHIFT**2  # squared distance of the means
    frechet, kernel, cmmd = "metric/frechet_distance", "metric/kernel_distance", "metric/cmmd"
    packets = "metric/wavelet_distance"
    infinity, monge, score = "metric/frechet_infinity", "metric/mind", "metric/inception_score"
    rows: list[tuple[str, str, bool, str, float, float, Callable[[], float]]] = [
        (frechet, "set that is shifted by two standard deviations", True, f"{shifted:g} to a tenth", 0.9 * shifted,
         1.1 * shifted, partial(_distance, frechet_distance_of_features, _shifted)),
        (frechet, "set that is copied", False, "0", -1e-9, 1e-9,
         partial(_distance, frechet_distance_of_features, _copied)),
        (frechet, "set of the same distribution", False, "below 0.2", 0.0, 0.2,
         partial(_distance, frechet_distance_of_features, _fresh)),
        (infinity, "set that is shifted by two standard deviations", True, f"{shifted:g} to a tenth", 0.9 * shifted,
         1.1 * shifted, partial(_distance, frechet_infinity, _shifted)),
        (infinity, "set of the same distribution", False, "nearer to 0 than 0.1", -0.1, 0.1,
         partial(_distance, frechet_infinity, _fresh)),
        (kernel, "set that is shifted by two standard deviations", True, "above 1", 1.0, float("inf"),
         partial(_distance, _one_kernel, _shifted)),
        (kernel, "set of the same distribution", False, "nearer to 0 than 0.05", -0.05, 0.05,
         partial(_distance, _one_kernel, _fresh)),
        (cmmd, "directions that are shifted", True, "above 1", 1.0, float("inf"),
         lambda: gaussian_distance(*_unit(_shifted))),
        (cmmd, "directions that are copied", False, "0", -1e-9, 1e-9, lambda: gaussian_distance(*_unit(_copied))),
        (monge, "set that is shifted by two standard deviations", True, "three times the squared shift to a tenth",
         2.7 * shifted, 3.3 * shifted, partial(_distance, mind, _shifted)),
        (monge, "set that is copied", False, "0", -1e-9, 1e-9, partial(_distance, mind, _copied)),
        (packets, "images of half the contrast", True, "above 0.1", 0.1, float("inf"),
         lambda: wavelet_distance(_packets(0, 1.0), _packets(1, 0.5))),
        (packets, "images that are copied", False, "0", -1e-9, 1e-9,
         lambda: wavelet_distance(_packets(0, 1.0), _packets(0, 1.0))),
        ("metric/precision", "set that is shifted by two standard deviations", True, "below 0.2", 0.0, 0.2,
         partial(_share, "precision", _shifted)),
        ("metric/precision", "set that is copied", False, "1", 1.0, 1.0, partial(_share, "precision", _copied)),
        ("metric/recall", "generator that makes one image over and over", True, "below 0.05", 0.0, 0.05,
         partial(_share, "recall", _collapsed)),
        ("metric/recall", "set of the same distribution", False, "above 0.6", 0.6, 1.0,
         partial(_share, "recall", _fresh)),
        ("metric/density", "set that is shifted by two standard deviations", True, "below 0.2", 0.0, 0.2,
         partial(_share, "density", _shifted)),
        ("metric/density", "set of the same distribution", False, "1 to a fifth", 0.8, 1.2,
         partial(_share, "density", _fresh)),
        ("metric/coverage", "generator that makes one image over and over", True, "below 0.05", 0.0, 0.05,
         partial(_share, "coverage", _collapsed)),
        ("metric/coverage", "set of the same distribution", False, "above 0.9", 0.9, 1.0,
         partial(_share, "coverage", _fresh)),
        (score, "images of one class", True, "1", 1.0, 1.001, partial(_logits, 50.0, 1)),
        (score, "sure images of ten classes", False, "9 to 10", 9.0, 10.0, partial(_logits, 50.0, CLASSES)),
    ]  # fmt: skip
    return [
        Control(subject, name, positive, expected, partial(_between, subject.partition("/")[2], low, high, measure))
        for subject, name, positive, expected, low, high, measure in rows
    ]

"""All distances of two sets of features, each with its interval, its unit and the number of images that it needs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy
from torch import Tensor

from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import frechet_of_halves
from leam_mm.distances.frechet_infinity import REAL_FINITE, frechet_infinity
from leam_mm.distances.kernel_distance import gaussian_distance, kernel_distance
from leam_mm.distances.mind import mind
from leam_mm.distances.precision_recall import NeighbourShares, precision_recall
from leam_mm.intervals.distance_interval import (
    FINITE,
    interval_of_halves,
    share_interval_of_halves,
    values_of_halves,
)
from leam_mm.intervals.indicative import indicative

FEWEST = 8  # images in each set, for the kernel distance, whose estimate is unbiased
FEWEST_OF_DISTRIBUTIONS = 100  # for the others, whose bias depends on the number of images
Statistic = Callable[[Tensor, Tensor], float]
OfHalves = Callable[[Tensor, Tensor, int], numpy.ndarray]
"""(real, other, seed) -> values (splits, 2) on the halves of random splits."""


@dataclass(frozen=True)
class SetDistance:
    """One number that compares a set of real images with another one.

    Args:
        statistic: Function of real and other features.
        unit: ``distance``, ``fraction`` or ``ratio``.
        of_halves: Values on halves, for the interval, by a quicker way; None takes the statistic of each half.
        fewest: Images that each set needs.
        signed: Whether it may be below zero, as numbers without a bias, or with less of it, may.
        wanted_per_feature: Images for each feature, below which the number is marked as indicative.
        remark: What a reader must know of its bias.
    """

    statistic: Statistic
    unit: str = "distance"
    of_halves: OfHalves | None = None
    fewest: int = FEWEST_OF_DISTRIBUTIONS
    signed: bool = False
    wanted_per_feature: int = 0
    remark: str = FINITE


@dataclass(frozen=True)
class Compared:
    """A distance as measured.

    Args:
        name: Its name.
        value: The number, or None if there are too few images.
        low: Lower end of the 95 % interval.
        high: Upper end.
        unit: Its unit.
        remark: Why it was not measured, or is indicative only; or empty.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    remark: str = ""


class _Neighbours:
    """Precision, recall, density and coverage of the same sets are measured together, once."""

    def __init__(self) -> None:
        self.known: dict[tuple, NeighbourShares] = {}

    def part(self, name: str) -> Statistic:
        def statistic(real: Tensor, other: Tensor) -> float:
            key = (real.shape, other.shape, float(real.double().sum()), float(other.double().sum()))
            if key not in self.known:
                self.known[key] = precision_recall(real, other)
            return float(getattr(self.known[key], name))

        return statistic


def _kernel(real: Tensor, other: Tensor) -> float:
    return kernel_distance(real, other, subsets=1, subset_size=min(len(real), len(other)))


def _halves_of(statistic: Statistic) -> OfHalves:
    return lambda real, other, seed: values_of_halves(real, other, statistic, seed)


def set_distances(unit_length: bool = False) -> dict[str, SetDistance]:
    """Return all distances by name, in the order of a report.

    Args:
        unit_length: Whether features have length 1, which CMMD requires.
    """
    neighbours = _Neighbours()
    found = {
        "frechet_distance": SetDistance(frechet_distance_of_features, of_halves=frechet_of_halves, wanted_per_feature=2)
    }
    if unit_length:
        found["cmmd"] = SetDistance(gaussian_distance)
    found["kernel_distance"] = SetDistance(_kernel, fewest=FEWEST, signed=True, remark="")
    found["mind"] = SetDistance(mind, of_halves=_halves_of(lambda real, other: mind(real, other, directions=200)))
    for name, unit in (
        ("precision", "fraction"),
        ("recall", "fraction"),
        ("density", "ratio"),
        ("coverage", "fraction"),
    ):
        found[name] = SetDistance(neighbours.part(name), unit)
    found["frechet_distance_infinity"] = SetDistance(
        frechet_infinity,
        of_halves=_halves_of(lambda real, other: frechet_infinity(real, other, points=5)),
        signed=True,
        wanted_per_feature=2,
        remark=REAL_FINITE,
    )
    return found


def compare_features(
    real: Tensor, other: Tensor, distances: dict[str, SetDistance], names: Iterable[str] | None = None, seed: int = 0
) -> Iterator[Compared]:
    """Measure distances with their intervals.

    Args:
        real: (B, D) features.
        other: (B', D) features.
        distances: See ``set_distances``.
        names: Those to measure; None measures all.
        seed: Seed of the intervals' draws.
    """
    count, size = min(len(real), len(other)), real.shape[1]
    for name in distances if names is None else names:
        distance = distances[name]
        if count < distance.fewest:
            remark = f"not measured: {count} images in each set, at least {distance.fewest} are needed"
            yield Compared(name, None, None, None, distance.unit, remark)
            continue
        value = distance.statistic(real, other)
        values = (distance.of_halves or _halves_of(distance.statistic))(real, other, seed)
        if distance.unit == "fraction":
            low, high = share_interval_of_halves(values, value, count)
        else:
            low, high = interval_of_halves(values, value)
        remarks = []
        if count < distance.wanted_per_feature * size:
            remarks.append(indicative(f"{count} images are fewer than twice the {size} features"))
        low = low if distance.signed else max(low, 0.0)
        remarks += [distance.remark] if distance.remark else []
        yield Compared(name, value, low, high, distance.unit, "; ".join(remarks))

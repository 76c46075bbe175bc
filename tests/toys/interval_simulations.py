"""Simulated data whose true value is known, for the coverage of every kind of interval."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy
import torch
from scipy.stats import norm
from torch import Tensor

from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import frechet_of_halves
from leam_mm.distances.frechet_infinity import frechet_infinity
from leam_mm.distances.kernel_distance import gaussian_distance, polynomial_mmd
from leam_mm.distances.precision_recall import precision_recall
from leam_mm.distances.set_distances import set_distances
from leam_mm.intervals.difference_interval import difference, paired_difference
from leam_mm.intervals.distance_interval import interval_of_halves, share_interval_of_halves, values_of_halves
from leam_mm.intervals.intervals import bootstrap_interval, mean_interval, share_interval, wilson_interval
from leam_mm.intervals.worst_language import worst_interval, worst_mean_interval, worst_ratio_interval

LANGUAGES, SHARED = 24, 0.6  # of the variance of a hit's score, by the image
Interval = tuple[float, float]


@dataclass(frozen=True)
class Simulation:
    """One kind of interval on one kind of data.

    Args:
        name: Kind and data.
        samples: Number of samples of each repeat.
        truth: The true value; None takes the mean of `value` over further data.
        interval: Interval of the data of a seed.
        value: The statistic of the data of a seed, where the truth is its mean.
        most: Coverage up to which the interval is not conservative by its form.
    """

    name: str
    samples: int
    truth: float | None
    interval: Callable[[int], Interval]
    value: Callable[[int], float] | None = None
    most: float = 0.97


def coverage(simulation: Simulation, repeats: int, values: int = 300) -> dict[str, float | str | int]:
    """Return how often the interval holds the true value, how often that is below or above, and the mean width."""
    start = zlib.crc32(simulation.name.encode()) % 10**6 * 1000
    truth = simulation.truth
    if truth is None:
        assert simulation.value is not None
        truth = float(numpy.mean([simulation.value(start + 500_000 + k) for k in range(values)]))
    ends = numpy.array([simulation.interval(start + k) for k in range(repeats)])
    below, above = (truth < ends[:, 0] - 1e-9).mean(), (truth > ends[:, 1] + 1e-9).mean()
    held = 1 - below - above
    low, high = wilson_interval(round(held * repeats), repeats)
    return {
        "name": simulation.name, "samples": simulation.samples, "truth": truth, "coverage": held,
        "low": low, "high": high, "truth_below": below, "truth_above": above,
        "width": float((ends[:, 1] - ends[:, 0]).mean()), "repeats": repeats, "most": simulation.most,
    }  # fmt: skip


def proportions() -> list[Simulation]:
    """Wilson intervals: zero-shot top-1, linear probe, compositional."""

    def interval(share: float, count: int, seed: int) -> Interval:
        return wilson_interval(int(numpy.random.default_rng(seed).binomial(count, share)), count)

    return [
        Simulation(f"share of hits, {share}", count, share, partial(interval, share, count))
        for share, count in ((0.5, 64), (0.85, 256), (0.97, 616), (0.99, 100))
    ]


def means() -> list[Simulation]:
    """Means of scores, and of differences of scores of the same samples."""

    def drawn(kind: str, count: int, seed: int) -> numpy.ndarray:
        rng = numpy.random.default_rng(seed)
        if kind == "normal":
            return rng.normal(size=count)
        return rng.exponential(size=count) - 1 if kind == "exponential" else numpy.exp(rng.normal(0, 0.5, count))

    def bootstrap(kind: str, count: int, seed: int) -> Interval:
        return bootstrap_interval(drawn(kind, count, seed), lambda part: float(part.mean()), seed, 400)

    truth = {"normal": 0.0, "exponential": 0.0, "lognormal": float(numpy.exp(0.125))}
    plans = (("normal", 12), ("normal", 100), ("exponential", 30), ("exponential", 256), ("lognormal", 100))

    def ends(kind: str, count: int, seed: int) -> Interval:
        return mean_interval(drawn(kind, count, seed))

    drawn_again = [
        Simulation("mean of normal scores, bootstrap", count, 0.0, partial(bootstrap, "normal", count))
        for count in (12, 100)
    ]
    return [*(Simulation(f"mean of {k} scores", n, truth[k], partial(ends, k, n)) for k, n in plans), *drawn_again]


def languages() -> list[Simulation]:
    """Mean of 24 languages, the worst, and worst over mean: hits that share the difficulty of their image."""
    found = []
    plans: tuple[tuple[str, float, float | None, int], ...] = (
        ("equal", 1.45, 0.0, 616),
        ("differ", 1.45, 0.1, 616),
        ("one bad", 1.45, None, 616),
        ("differ much", 0.3, 0.5, 616),
        ("equal", 1.45, 0.0, 100),
        ("differ", 1.45, 0.1, 100),
        ("one bad", 1.45, None, 100),
        ("differ, nearly all hits", 2.3, 0.1, 100),
        ("differ, few hits", -1.6, 0.2, 616),
    )
    for label, middle, spread, count in plans:
        limit = numpy.full(LANGUAGES, middle)
        if spread is None:
            limit[3] -= 0.5
        else:
            limit = limit + numpy.random.default_rng(5).normal(0, 1, LANGUAGES) * spread
        share = norm.cdf(limit)

        def hits(seed: int, limit: numpy.ndarray = limit, count: int = count) -> numpy.ndarray:
            rng = numpy.random.default_rng(seed)
            image, own = rng.normal(size=(count, 1)), rng.normal(size=(count, LANGUAGES))
            return (SHARED**0.5 * image + (1 - SHARED) ** 0.5 * own < limit).astype(float)

        def of(function: Callable[[numpy.ndarray], Interval], drawn: Callable[[int], numpy.ndarray] = hits) -> Callable:
            return lambda seed: function(drawn(seed))

        mean, worst, ratio = share.mean(), share.min(), min(1.0, share.min() / share.mean())
        found += [
            Simulation(f"mean of languages, {label}", count, mean, of(lambda h: share_interval(h.mean(axis=1)))),
            Simulation(f"worst language, {label}", count, worst, of(worst_interval), most=1.0),
            Simulation(f"worst over mean, {label}", count, ratio, of(worst_ratio_interval), most=1.0),
        ]

    def scores(seed: int) -> numpy.ndarray:
        rng = numpy.random.default_rng(seed)
        return rng.normal(size=(100, 1)) + rng.normal(size=(100, LANGUAGES)) + numpy.linspace(0, 0.5, LANGUAGES)

    worst = Simulation("worst language of scores, differ", 100, 0.0, lambda s: worst_mean_interval(scores(s)), most=1.0)
    return [*found, worst]


def differences() -> list[Simulation]:
    """Differences of two models."""

    def paired(count: int, gap: float, noise: float, seed: int) -> Interval:
        rng = numpy.random.default_rng(seed)
        hard = rng.random(count)
        one, other = (hard + rng.normal(0, noise, count) > 0.5 - shift for shift in (0.0, gap))
        found = paired_difference(one, other)
        return float(found.low or 0.0), float(found.high or 0.0)

    def independent(count: int, seed: int) -> Interval:
        rng = numpy.random.default_rng(seed)
        rows = []
        for share in (0.6, 0.7):
            low, high = wilson_interval(hits := int(rng.binomial(count, share)), count)
            rows.append({"value": hits / count, "low": low, "high": high})
        found = difference(*rows)
        return float(found.low or 0.0), float(found.high or 0.0)

    return [
        Simulation("paired difference of hits", 200, 0.05, partial(paired, 200, 0.05, 0.1)),
        Simulation("paired difference of hits, equal models", 616, 0.0, partial(paired, 616, 0.0, 0.05)),
        Simulation("independent difference of hits", 200, 0.1, partial(independent, 200)),
    ]


def distances(small: bool = False) -> list[Simulation]:
    """Distances of two sets, shifted and equal; the truth is the mean of the distance at this number of samples."""

    def pair(
        size: int, shift: float, scale: float, relu: bool, unit: bool, count: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        base = torch.randn(size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / size**0.5
        own = torch.Generator().manual_seed(seed)
        first, second = (torch.randn(count, size, generator=own, dtype=torch.float64) @ base for _ in range(2))
        second = second * scale + shift
        both = (first.relu(), second.relu()) if relu else (first, second)
        return tuple(torch.nn.functional.normalize(x, dim=1) for x in both) if unit else both  # type: ignore[return-value]

    def precision(real: Tensor, other: Tensor) -> float:
        return precision_recall(real, other).precision

    def recall(real: Tensor, other: Tensor) -> float:
        return precision_recall(real, other).recall

    def of_distance(first: Tensor, second: Tensor, statistic: Callable, value: float, seed: int) -> Interval:
        return interval_of_halves(values_of_halves(first, second, statistic, seed), value)

    def of_frechet(first: Tensor, second: Tensor, statistic: Callable, value: float, seed: int) -> Interval:
        return interval_of_halves(frechet_of_halves(first, second, seed), value)

    def of_share(first: Tensor, second: Tensor, statistic: Callable, value: float, seed: int) -> Interval:
        return share_interval_of_halves(values_of_halves(first, second, statistic, seed), value, len(first))

    def of_infinity(first: Tensor, second: Tensor, statistic: Callable, value: float, seed: int) -> Interval:
        halves = set_distances()["frechet_distance_infinity"].of_halves
        assert halves is not None
        return interval_of_halves(halves(first, second, seed), value)

    frechet = frechet_distance_of_features
    plans: list[tuple[str, Callable, Callable, tuple, int]] = [
        ("Fréchet distance, 16 features, shifted", frechet, of_frechet, (16, 0.5, 1.0, False, False), 256),
        ("Fréchet distance, 16 features, equal sets", frechet, of_frechet, (16, 0.0, 1.0, False, False), 256),
        ("Fréchet distance, 64 features, shifted", frechet, of_frechet, (64, 0.3, 1.2, True, False), 256),
        ("Fréchet distance, 64 features, equal sets", frechet, of_frechet, (64, 0.0, 1.0, True, False), 256),
        ("Fréchet distance, 256 features, shifted", frechet, of_frechet, (256, 0.3, 1.2, True, False), 128),
        ("Fréchet distance, 256 features, equal sets", frechet, of_frechet, (256, 0.0, 1.0, True, False), 128),
        ("FID-infinity, 16 features, shifted", frechet_infinity, of_infinity, (16, 0.5, 1.0, False, False), 256),
        ("FID-infinity, 16 features, equal sets", frechet_infinity, of_infinity, (16, 0.0, 1.0, False, False), 256),
        ("FID-infinity, 64 features, shifted", frechet_infinity, of_infinity, (64, 0.3, 1.2, True, False), 256),
        ("kernel distance, shifted", polynomial_mmd, of_distance, (64, 0.3, 1.2, True, False), 256),
        ("kernel distance, equal sets", polynomial_mmd, of_distance, (64, 0.0, 1.0, True, False), 256),
        ("CMMD, shifted", gaussian_distance, of_distance, (64, 0.3, 1.2, True, True), 256),
        ("CMMD, equal sets", gaussian_distance, of_distance, (64, 0.0, 1.0, True, True), 256),
        ("precision, shifted", precision, of_share, (16, 0.5, 1.0, False, False), 256),
        ("precision, equal sets", precision, of_share, (16, 0.0, 1.0, False, False), 256),
        ("recall, far", recall, of_share, (16, 1.2, 1.0, False, False), 256),
        ("precision near 0", precision, of_share, (64, 0.5, 1.5, True, False), 256),
        ("recall near 0", recall, of_share, (16, 2.0, 1.0, False, False), 256),
        ("precision near 1", precision, of_share, (16, 0.0, 0.6, False, False), 256),
    ]
    found = []
    for name, statistic, interval, shape, count in plans[:2] if small else plans:
        draw = partial(pair, *shape, count)

        def ends(
            seed: int, draw: Callable = draw, of: Callable = interval, statistic: Callable = statistic
        ) -> Interval:
            first, second = draw(seed)
            return of(first, second, statistic, statistic(first, second), seed)  # type: ignore[no-any-return]

        def value(seed: int, draw: Callable = draw, statistic: Callable = statistic) -> float:
            return float(statistic(*draw(seed)))

        most = 1.0 if " near " in name else 0.97
        found.append(Simulation(name, count, None, ends, value, most))
    return found

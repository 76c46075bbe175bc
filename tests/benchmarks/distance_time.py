"""CPU time of the Fréchet distance at 2048 features: ours, torch-fidelity's and scipy's matrix root, interleaved.

OMP_NUM_THREADS=1 python tests/benchmarks/distance_time.py

Prints medians of CPU seconds, their ratios, and the relative difference of the values, first from means and
covariances, then from features. It needs torch-fidelity (extra `peers`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.evaluators.feature_statistics import FeatureMoments
from leam_mm.evaluators.frechet import frechet_distance, frechet_distance_of_features


@dataclass(frozen=True)
class Options:
    """Settings.

    Args:
        samples: Images in each set.
        features: Features of an image.
        repeats: Measurements of each, taken in turn.
    """

    samples: PositiveInt = 5000
    features: PositiveInt = 2048
    repeats: PositiveInt = 3


def features(count: int, size: int, shift: float, seed: int) -> torch.Tensor:
    """Correlated features that are never negative, as pooled ones are: (B, D) float32."""
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / size**0.5
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, size, generator=generator) @ mix + shift).relu()


def torch_fidelity(first: dict, second: dict) -> float:
    """Return the distance of two statistics."""
    return fid_statistics_to_metric(first, second, False)["frechet_inception_distance"]


def matrix_root(first: dict, second: dict) -> float:
    """Return the distance by the root of the product of the covariances."""
    root = sqrtm(first["sigma"] @ second["sigma"])
    traces = numpy.trace(first["sigma"]) + numpy.trace(second["sigma"])
    return float(((first["mu"] - second["mu"]) ** 2).sum() + traces - 2 * numpy.trace(root).real)


def compare(title: str, ways: dict[str, Callable[[], float]], repeats: int) -> None:
    """Measure all ways in turn and print a table; the first one is ours."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            values[name] = way()
            seconds[name].append(time.process_time() - start)
    medians = {name: float(numpy.median(found)) for name, found in seconds.items()}
    ours = next(iter(ways))
    print(f"{title}; median of {repeats}")
    for name, median in medians.items():
        difference = abs(values[name] - values[ours]) / values[ours]
        print(f"  {name:28} {median:7.2f} s  {median / medians[ours]:5.2f} x  relative difference {difference:.1e}")


def main() -> None:
    """Measure and print."""
    options = parse_settings(Options, __doc__)
    torch.set_num_threads(1)
    sets = [features(options.samples, options.features, 0.1 * number, number) for number in (1, 2)]
    moments = [FeatureMoments.of(part) for part in sets]
    statistics = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in moments]
    size = f"{options.features} features, {options.samples} images each"
    compare(
        f"From means and covariances, {size}",
        {
            "ours": lambda: frechet_distance(*moments),
            "torch-fidelity": lambda: torch_fidelity(*statistics),
            "scipy.linalg.sqrtm": lambda: matrix_root(*statistics),
        },
        options.repeats,
    )
    compare(
        f"From features, {size}",
        {
            "ours": lambda: frechet_distance_of_features(*sets),
            "torch-fidelity": lambda: torch_fidelity(*(fid_features_to_statistics(part) for part in sets)),
        },
        options.repeats,
    )


if __name__ == "__main__":
    main()

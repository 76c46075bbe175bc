"""The Fréchet distance at 2048 features: ours against torch-fidelity's and against scipy's matrix root.

    python tests/benchmarks/distance_time.py --repeats 3

From means and covariances to the number, and end to end from features to the number. It needs torch-fidelity (extra
`peers`).
"""

from pathlib import Path

import measure
import numpy
import torch
from scipy.linalg import sqrtm

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features
from leam_mm.errors import run

TITLE = "ours: Cholesky and eigenvalues of a symmetric product"


def features(count: int, size: int, number: int) -> torch.Tensor:
    """Correlated features that are never negative, as pooled ones are: (B, D) float32."""
    mix = torch.randn(size, size, generator=torch.Generator().manual_seed(99)) / size**0.5
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(count, size, generator=generator) @ mix + 0.1 * number).relu()


def matrix_root(first: dict, second: dict) -> float:
    """Return the distance by the root of the product of the covariances."""
    root = sqrtm(first["sigma"] @ second["sigma"])
    traces = numpy.trace(first["sigma"]) + numpy.trace(second["sigma"])
    return float(((first["mu"] - second["mu"]) ** 2).sum() + traces - 2 * numpy.trace(root).real)


@measure.benchmark(repeats=3, samples=(5000, "images in each set"), features=(2048, "features of an image"))
def main(settings: measure.Settings) -> list[Path]:
    """Compare from statistics with both, and from features with torch-fidelity."""
    try:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    except ModuleNotFoundError:
        print("torch-fidelity is missing: install the extra peers")
        return []

    def torch_fidelity(first: dict, second: dict) -> float:
        return float(fid_statistics_to_metric(first, second, False)["frechet_inception_distance"])

    sets = [features(settings.samples, settings.features, number) for number in (1, 2)]
    moments = [FeatureMoments.of(part) for part in sets]
    statistics = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in moments]
    cases = {
        "distance_time": (
            "torch-fidelity 0.4.0: eigenvalues of the product",
            lambda: frechet_distance(*moments),
            lambda: torch_fidelity(*statistics),
            1e-9,
        ),
        "distance_time_sqrtm": (
            "scipy.linalg.sqrtm",
            lambda: frechet_distance(*moments),
            lambda: matrix_root(*statistics),
            1e-9,
        ),
        "distance_time_from_features": (
            "torch-fidelity 0.4.0, its mean in float32",
            lambda: frechet_distance_of_features(*sets),
            lambda: torch_fidelity(*(fid_features_to_statistics(part) for part in sets)),
            1e-5,
        ),
    }
    written = []
    for name, (label, ours, theirs, limit) in cases.items():
        value = ours()
        same = [measure.require_same("distance, relative", abs(theirs() / value - 1), limit)]
        found = measure.time_pairs(ours, theirs, settings.repeats, warmup=0)
        written.append(
            measure.write_comparison(
                name, (TITLE, label), found, (1, "distances"), same, settings,
                f"{settings.features} features, {settings.samples} images in each set",
            )
        )  # fmt: skip
    return written


if __name__ == "__main__":
    run(main)

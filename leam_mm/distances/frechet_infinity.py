"""Fréchet distance extrapolated to infinitely many generated images (FID-infinity): no bias of a finite number.

Chong and Forsyth 1911.07023, section 4: the distances of parts of 15 sizes lie on a line over 1 / size, whose value at
0 is the result. The sizes are equally spaced; the parts are random.
"""

import numpy
import torch
from torch import Tensor

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features

POINTS = 15
REAL_FINITE = (
    "the bias of generated images is extrapolated away, as published, that of a finite number of real ones is not"
)


def frechet_infinity(
    real: Tensor | FeatureMoments, generated: Tensor, least: int | None = None, points: int = POINTS, seed: int = 0
) -> float:
    """Return the value of the line at 1 / size = 0; a little below 0 for sets of one distribution is possible.

    Only the bias of the generated images is removed, as published: the real ones are a fixed reference.

    Args:
        real: (B, D) features, or their moments.
        generated: (B', D) features.
        least: Size of the smallest part, at least 2. If None, a tenth of the images, at most the published 5,000, but
            at least two for each feature or half of all.
        points: Number of sizes.
        seed: Seed of the choice.
    """
    count = len(generated)
    if least is None:
        least = max(2, min(5000, count // 10), min(2 * generated.shape[1], count // 2))
    if not 2 <= least < count:
        raise ValueError(f"parts of {least} images cannot be taken from {count}")
    generator = torch.Generator().manual_seed(seed)
    sizes = numpy.linspace(least, count, points).astype(int)
    values = []
    for size in sizes:
        part = generated[torch.randperm(count, generator=generator)[: int(size)]]
        if isinstance(real, FeatureMoments):
            values.append(frechet_distance(real, FeatureMoments.of(part)))
        else:
            values.append(frechet_distance_of_features(real, part))
    return float(numpy.polynomial.Polynomial.fit(1 / sizes, values, 1)(0.0))

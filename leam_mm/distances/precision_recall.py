"""Precision, recall, density and coverage of generated against real features, from one pass over their distances.

Precision and recall: Kynkäänniemi et al. 1904.06991, eq. 1 and 2. Density and coverage: Naeem et al. 2002.09797, eq. 3
and 4. A ball around a sample reaches to its k-th neighbour in its own set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUND_OFF = 1e-12  # of squared distances from matrix products, as a share of the squared norms: duplicates are at 0


@dataclass(frozen=True)
class NeighbourShares:
    """Shares of samples that lie near the other set.

    Args:
        precision: Share of generated samples inside a ball of a real one.
        recall: Share of real samples inside a ball of a generated one.
        density: Balls of real samples that a generated sample lies in, over their expected number; 1 is right, and
            outliers among the real samples change it less than precision.
        coverage: Share of real samples whose ball holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int = 3, wide: int = 5, chunk: int = 1024
) -> NeighbourShares:
    """Compare two sets of features.

    Args:
        real: (B, D) features.
        generated: (B', D) features.
        neighbours: k of precision and recall; each set needs more than k samples.
        wide: k of density and coverage; those of sets of at most so many samples are NaN, "not measured".
        chunk: Rows of a distance matrix held at once.
    """
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(f"precision needs more than {neighbours} samples, there are {len(real)} and {len(generated)}")
    # Moved to the common mean, which leaves distances unchanged and makes the products exact where they are small.
    centre = torch.cat([real, generated]).double().mean(dim=0)
    real, generated = real.double() - centre, generated.double() - centre
    known = len(real) > wide
    order = [neighbours, wide] if known else [neighbours]
    real_radii, own_radii = _radii(real, order, chunk), _radii(generated, order[:1], chunk)[0]
    covered = torch.zeros(len(real), dtype=torch.bool)
    recalled = torch.zeros(len(real), dtype=torch.bool)
    precise, balls = 0, 0
    for rows in torch.arange(len(generated)).split(chunk):
        distance = _squared_distances(generated[rows], real)  # (chunk, B)
        precise += int((distance <= real_radii[0]).any(dim=1).sum())
        recalled |= (distance <= own_radii[rows, None]).any(dim=0)
        if known:
            inside = distance <= real_radii[1]
            balls += int(inside.sum())
            covered |= inside.any(dim=0)
    missing = float("nan")
    return NeighbourShares(
        precise / len(generated),
        float(recalled.double().mean()),
        balls / (wide * len(generated)) if known else missing,
        float(covered.double().mean()) if known else missing,
    )


def _radii(features: Tensor, order: list[int], chunk: int) -> Tensor:
    """Return the squared distance of each sample to its k-th neighbour for each k: (len(order), B)."""
    found = []
    for part in features.split(chunk):
        # The smallest distance is that to itself, so the (k + 1)-th smallest is the k-th neighbour's.
        nearest = _squared_distances(part, features).topk(max(order) + 1, largest=False).values
        found.append(nearest[:, order].T)
    return torch.cat(found, dim=1)


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return squared distances (B, B'); those that are only round-off are 0."""
    norms = first.square().sum(dim=1, keepdim=True) + second.square().sum(dim=1)
    distance = torch.addmm(norms, first, second.T, alpha=-2)
    return torch.where(distance > ROUND_OFF * norms, distance, 0.0)

"""Fréchet distances of halves: equal to those of the halves' own samples, blocks that halve, singular sets."""

import numpy
import pytest
import torch

from leam_mm.distances import frechet_halves
from leam_mm.distances.frechet import frechet_distance_of_features
from leam_mm.distances.frechet_halves import BLOCKS, SPLITS, block_signs, frechet_of_halves
from leam_mm.intervals.distance_interval import values_of_halves


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + shift


def test_splits_halve_the_blocks_and_are_orthogonal() -> None:
    signs = block_signs()
    assert signs.shape == (BLOCKS, BLOCKS) and len(signs) > SPLITS
    torch.testing.assert_close(signs @ signs.T, BLOCKS * torch.eye(BLOCKS, dtype=torch.float64))


@pytest.mark.parametrize("paired", [False, True])
def test_halves_of_blocks_have_the_distances_of_their_samples(paired: bool) -> None:
    first, second = features(151, 8, 1, shift=5), features(151 if paired else 170, 8, 2, shift=6)
    generator = torch.Generator().manual_seed(3)
    orders = [torch.randperm(len(first), generator=generator)]
    orders.append(orders[0] if paired else torch.randperm(len(second), generator=generator))
    expected = []
    for row in block_signs()[1 : SPLITS + 1]:
        pair = []
        for sign in (1, -1):
            halves = []
            for part, order in zip((first, second), orders, strict=True):
                blocks = order[: len(order) // BLOCKS * BLOCKS].chunk(BLOCKS)
                halves.append(part[torch.cat([block for block, own in zip(blocks, row, strict=True) if own == sign])])
            pair.append(frechet_distance_of_features(*halves))
        expected.append(pair)
    numpy.testing.assert_allclose(frechet_of_halves(first, second, 3, paired), expected, rtol=1e-10)


@pytest.mark.parametrize(("count1", "count2"), [(30, 30), (30, 23), (100, 40), (400, 40)])
def test_few_samples_have_the_values_of_random_halves(count1: int, count2: int) -> None:
    """Halves with no more samples than features, and sets of which one has more."""
    first, second = features(count1, 50, 1, shift=100), features(count2, 50, 2, shift=101)
    expected = values_of_halves(first, second, frechet_distance_of_features, 7)
    numpy.testing.assert_allclose(frechet_of_halves(first, second, 7), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [30, 120])
def test_pairs_are_split_together(count: int) -> None:
    """A set that is moved as a whole: every half has the distance of the shift, and none without it."""
    first = features(count, 50, 1)
    numpy.testing.assert_allclose(frechet_of_halves(first, first + 2, 0, paired=True), 200, rtol=1e-9)
    numpy.testing.assert_allclose(frechet_of_halves(first, first, 0, paired=True), 0, atol=1e-8)
    assert frechet_of_halves(first, first, 0).min() > 1


def test_a_repeated_feature_has_the_distance_of_the_exact_form(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = features(240, 8, 1), features(240, 8, 2, shift=0.3)
    expected = frechet_of_halves(first, second)
    exact, calls = frechet_halves.frechet_distance, []

    def counted(*moments: frechet_halves.FeatureMoments) -> float:
        calls.append(1)
        return exact(*moments)

    monkeypatch.setattr(frechet_halves, "frechet_distance", counted)
    assert not calls
    doubled = [torch.cat([part, part], dim=1) / 2**0.5 for part in (first, second)]
    numpy.testing.assert_allclose(frechet_of_halves(doubled[0], doubled[1]), expected, rtol=1e-9)
    assert len(calls) == 2 * SPLITS

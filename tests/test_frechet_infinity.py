"""FID-infinity: the bias of a finite number of images is removed."""

import pytest
import torch

from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features
from leam_mm.distances.frechet_infinity import REAL_FINITE, frechet_infinity
from leam_mm.distances.set_distances import compare_features, set_distances


def features(count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_value_lies_nearer_to_the_truth_than_any_finite_one() -> None:
    real = FeatureMoments(10**6, torch.zeros(20).double(), torch.eye(20).double() * (10**6 - 1))
    for scale, truth in ((1.0, 0.0), (1.3, 20 * 0.3**2)):
        sets = [features(400, seed, scale) for seed in range(30)]
        found = sum(frechet_infinity(real, made, least=100, seed=seed) for seed, made in enumerate(sets)) / 30
        biased = sum(frechet_distance(real, FeatureMoments.of(made)) for made in sets) / 30
        assert abs(found - truth) < 0.2 * (biased - truth)


def test_the_bias_of_a_finite_number_of_real_images_is_left_and_said() -> None:
    """A set of one distribution: with as many real images as generated ones, half of the bias is theirs."""
    pairs = [(features(400, seed), features(400, 1000 + seed)) for seed in range(30)]
    biased = sum(frechet_distance_of_features(*pair) for pair in pairs) / 30
    found = sum(frechet_infinity(*pair, least=100) for pair in pairs) / 30
    assert 0.3 * biased < found < 0.6 * biased
    (compared,) = compare_features(*pairs[0], set_distances(), ["frechet_distance_infinity"])
    assert compared.remark == REAL_FINITE


def test_features_and_moments_agree_and_small_sets_are_refused() -> None:
    real, made = features(300, 1), features(300, 2, 1.2)
    assert frechet_infinity(real, made, points=4) == pytest.approx(
        frechet_infinity(FeatureMoments.of(real), made, points=4), rel=1e-6
    )
    assert frechet_infinity(real, made) < frechet_distance_of_features(real, made)
    with pytest.raises(ValueError, match="parts of 300 images"):
        frechet_infinity(real, made, least=300)

"""Fréchet distance: closed forms, scipy's matrix root, singular covariances, identical sets."""

import logging
from functools import reduce

import numpy
import pytest
import torch

from leam_mm.distances import frechet
from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.frechet import frechet_distance, frechet_distance_of_features


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + shift


def test_gaussians_with_a_known_distance() -> None:
    # Commuting covariances: |m1 - m2|^2 + sum (sqrt a - sqrt b)^2.
    a, b = torch.tensor([4.0, 9.0, 1.0]).double(), torch.tensor([1.0, 16.0, 0.0]).double()
    first = FeatureMoments(11, torch.zeros(3).double(), torch.diag(a) * 10)
    second = FeatureMoments(6, torch.tensor([1.0, 2.0, -2.0]).double(), torch.diag(b) * 5)
    assert frechet_distance(first, second) == pytest.approx(9 + 1 + 1 + 1, rel=1e-12)
    assert frechet_distance(second, first) == pytest.approx(12, rel=1e-12)


@pytest.mark.parametrize(("count1", "count2"), [(300, 200), (10, 200), (200, 10), (8, 9)])
def test_both_forms_agree_with_the_matrix_root(count1: int, count2: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = features(count1, 16, 1), features(count2, 16, 2, shift=0.5)
    s1, s2 = numpy.cov(first.numpy(), rowvar=False), numpy.cov(second.numpy(), rowvar=False)
    gap = first.mean(dim=0) - second.mean(dim=0)
    oracle = float(gap.square().sum()) + numpy.trace(s1 + s2) - 2 * numpy.trace(linalg.sqrtm(s1 @ s2)).real
    exact = frechet_distance_of_features(first, second)
    assert exact == pytest.approx(oracle, rel=1e-9 if min(count1, count2) > 16 else 1e-5)
    assert frechet_distance(FeatureMoments.of(first), FeatureMoments.of(second)) == pytest.approx(exact, rel=1e-9)


def test_identical_sets_have_distance_zero() -> None:
    for count in (8, 100):
        x = features(count, 16, 3)
        assert frechet_distance_of_features(x, x) == pytest.approx(0, abs=1e-9)
        assert frechet_distance_of_features(x, x + 2) == pytest.approx(64, rel=1e-9)


@pytest.mark.parametrize("parts", [2, 7])
def test_merged_parts_give_the_distance_of_one_pass(parts: int) -> None:
    sets = [features(500, 16, 1, shift=3), features(400, 16, 2, shift=4)]
    merged = [reduce(FeatureMoments.merge, map(FeatureMoments.of, part.chunk(parts))) for part in sets]
    batches = [FeatureMoments.of_batches(part.chunk(parts)) for part in sets]
    exact = frechet_distance_of_features(*sets)
    assert frechet_distance(*merged) == pytest.approx(exact, rel=1e-12)
    assert frechet_distance(*batches) == pytest.approx(exact, rel=1e-12)


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="two samples"):
        FeatureMoments.of(torch.ones(1, 3)).covariance.sum()
    with pytest.raises(ValueError, match="two samples"):
        frechet_distance_of_features(torch.ones(1, 3), torch.ones(5, 3))


@pytest.mark.parametrize("singular", [0, 1])
def test_a_constant_or_repeated_feature_is_no_obstacle(singular: int, caplog: pytest.LogCaptureFixture) -> None:
    sets = [features(100, 12, 1), features(120, 12, 2, shift=0.3)]
    exact = frechet_distance_of_features(*sets)
    # A repeated feature adds nothing new to a covariance: it counts as one of root-two times the scale.
    doubled = [torch.cat([part, part[:, :1]], dim=1) for part in sets]
    scaled = [part * torch.cat([torch.tensor([2.0]).double().sqrt(), torch.ones(11)]) for part in sets]
    frechet._log_singular.cache_clear()
    with caplog.at_level(logging.INFO):
        found = frechet_distance_of_features(*doubled)
    assert found == pytest.approx(frechet_distance_of_features(*scaled), rel=1e-9)
    assert "singular" in caplog.text
    # Constant in one set only, in either place.
    constant = [torch.cat([part, torch.zeros(len(part), 1)], dim=1) for part in sets]
    constant[singular][:, -1] = torch.arange(len(constant[singular])) % 2
    variance = float(constant[singular][:, -1].var())
    gap = float(constant[singular][:, -1].mean())
    assert frechet_distance_of_features(*constant) == pytest.approx(exact + variance + gap**2, rel=1e-9)


def test_features_of_very_different_scales_keep_their_digits() -> None:
    scale = torch.logspace(-6, 6, 10, dtype=torch.float64)
    first, second = features(300, 10, 5), features(300, 10, 6)
    # Both sets in the same basis of scales: rotations mix the scales and change no distance.
    turn = torch.linalg.qr(features(10, 10, 7)).Q
    plain, turned = (
        [FeatureMoments.of(part * scale @ basis) for part in (first, second)]
        for basis in (torch.eye(10).double(), turn)
    )
    exact = frechet_distance_of_features(first[:, -1:] * 1e6, second[:, -1:] * 1e6)  # the largest scale alone
    assert frechet_distance(*plain) == pytest.approx(frechet_distance(*turned), rel=1e-9)
    assert frechet_distance(*plain) == pytest.approx(frechet_distance(*plain[::-1]), rel=1e-9)
    assert frechet_distance(*plain) > exact

"""Moments of features: merging in any order, batches as in one pass, constant memory."""

import subprocess
import sys

import pytest
import torch

from leam_mm.distances.feature_statistics import BLOCK, FeatureMoments, gram


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mix + shift


def test_moments_merge_in_any_grouping() -> None:
    x = features(97, 8, 4, shift=1e4)
    whole = FeatureMoments.of(x)
    parts = [FeatureMoments.of(part) for part in (x[:1], x[1:40], x[40:41], x[41:])]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3])))
    for merged in (left, right, parts[3].merge(parts[2]).merge(parts[1].merge(parts[0]))):
        assert merged.count == 97
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(merged.covariance, torch.cov(x.T), rtol=1e-9, atol=1e-9)


def test_blocks_of_a_product_are_its_parts() -> None:
    x = features(7, BLOCK + 30, 1)
    torch.testing.assert_close(gram(x), x.T @ x, rtol=1e-12, atol=1e-9)
    assert torch.equal(gram(x), gram(x).T)


def test_batches_are_one_pass_to_12_digits() -> None:
    x = features(230, 8, 2, shift=100)
    whole = FeatureMoments.of(x)
    for parts in (x.split(7), x.split(64), [x[:1], x[1:]]):
        found = FeatureMoments.of_batches(iter(parts))
        assert found.count == 230
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(found.moment, whole.moment, rtol=1e-12, atol=1e-9)
    with pytest.raises(ValueError, match="no features"):
        FeatureMoments.of_batches([])


STREAM = """
import resource
import torch
from leam_mm.distances.feature_statistics import FeatureMoments

def batches(count):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(100, 256, generator=generator) for _ in range(count))

def peak(count):
    moments = FeatureMoments.of_batches(batches(count))
    return moments.count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(*peak(20), *peak(1000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read as Linux counts it")
def test_memory_does_not_depend_on_the_number_of_samples() -> None:
    found = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, check=True)
    few, before, many, after = map(int, found.stdout.split())
    assert (few, many) == (2_000, 100_000)  # 100,000 samples would take 200 MB in float64
    assert after - before < 8_000  # kilobytes

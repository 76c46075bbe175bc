"""MIND: closed forms of shifted and scaled sets, published draws."""

import pytest
import torch

from leam_mm.distances.mind import mind


def features(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_closed_forms() -> None:
    x = features(200, 6, 0)
    assert mind(x, x) == 0
    assert mind(x, x[torch.randperm(200)]) == pytest.approx(0, abs=1e-24)
    # One dimension has one direction, up to its sign: three times the squared distance of the sorted values.
    line, other = torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([[3.0], [1.0], [1.0]])
    assert mind(line, other, directions=5) == pytest.approx(3 * (1 + 0 + 1) / 3)
    # A shift m moves all projections by u m, whose mean square over directions is |m|^2 / D.
    shift = torch.tensor([3.0, 0, 0, -1, 2, 1]).double()
    assert mind(x, x + shift, directions=20_000) == pytest.approx(3 * float(shift.square().sum()), rel=0.03)
    # Scaled by s, sorted projections differ by (s - 1) of themselves.
    variance = float(x.square().sum(dim=1).mean())
    assert mind(x, 3 * x, directions=20_000) == pytest.approx(3 * 4 * variance, rel=0.03)


def test_of_the_larger_set_a_part_is_taken() -> None:
    x, y = features(300, 4, 1), features(100, 4, 2)
    assert mind(x, y) == mind(x, y) != mind(x, y, seed=1)
    # The part is a random one of the larger set, and y is whole.
    assert 0 < mind(x, y) < mind(x + 2, y)
    with pytest.raises(ValueError, match="samples in both sets, there are 300 and 0"):
        mind(x, y[:0])

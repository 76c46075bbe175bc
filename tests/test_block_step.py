"""Tokens between the blocks of a denoiser: some leave and come back to their positions."""

import pytest
import torch

from leam_mm.denoisers.block_step import Tokens
from leam_mm.errors import UserError


def row(rotary_rows: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 6, 3, generator=generator)
    return Tokens(values, torch.randn(rotary_rows, 1, 6, 4, 2, 2, generator=generator), (2, 3))


@pytest.mark.parametrize("rotary_rows", [1, 2])
def test_kept_tokens_keep_their_order_rotations_and_positions(rotary_rows: int) -> None:
    whole, kept = row(rotary_rows), torch.tensor([[0, 4, 5], [1, 2, 3]])
    some = whole.keep(kept)
    assert some.rotary is not None and whole.rotary is not None and some.positions is not None
    for sample in range(2):
        assert torch.equal(some.values[sample], whole.values[sample, kept[sample]])
        assert torch.equal(some.rotary[sample, 0], whole.rotary[sample % rotary_rows, 0, kept[sample]])
    assert torch.equal(some.positions, kept) and some.grid == (2, 3)
    fewer = some.keep(torch.tensor([[0, 2], [1, 2]]))
    assert torch.equal(fewer.positions, torch.tensor([[0, 5], [2, 3]]))  # type: ignore[arg-type]


def test_joined_tokens_return_to_their_positions_and_the_others_are_unchanged() -> None:
    whole, kept = row(), torch.tensor([[0, 4], [1, 2]])
    some = whole.keep(kept)
    some.values = some.values + 1
    back = some.join(whole, kept)
    gone = torch.ones(2, 6, dtype=torch.bool).scatter(1, kept, False)
    assert torch.equal(back.values[gone], whole.values[gone])
    assert torch.equal(back.values[~gone], whole.values[~gone] + 1)
    assert back.rotary is whole.rotary and back.positions is None


def test_overlapping_techniques_are_refused() -> None:
    whole, kept = row(), torch.tensor([[0, 4], [1, 2]])
    with pytest.raises(UserError, match="nest them"):
        whole.keep(kept).keep(kept[:, :1] * 0).join(whole, kept)

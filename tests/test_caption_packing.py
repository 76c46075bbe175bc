import pytest
import torch

from leam_mm.denoisers.caption_packing import TrimmedCaptions, pack_keys


def captions(rows: list[list[int]]) -> TrimmedCaptions:
    mask = torch.tensor(rows, dtype=torch.bool)
    return TrimmedCaptions(torch.arange(mask.numel()).reshape(*mask.shape, 1).float(), mask)


def test_padding_that_all_have_is_cut_and_one_length_needs_no_mask() -> None:
    same = captions([[1, 1, 0, 0], [1, 1, 0, 0]])
    assert same.mask is None and same.state.shape == (2, 2, 1) and same.packed(5) is None
    uneven = captions([[1, 0, 0, 0], [1, 1, 1, 0]])
    assert uneven.mask is not None
    assert uneven.mask.tolist() == [[True, False, False], [True, True, True]] and uneven.state.shape == (2, 3, 1)


def test_holes_and_empty_captions_stay_masked() -> None:
    holes = captions([[1, 0, 1], [1, 0, 1]])
    assert holes.mask is not None and holes.mask.tolist() == [[True, False, True]] * 2
    nothing = captions([[0, 0], [0, 0]])
    assert nothing.mask is not None and nothing.mask.tolist() == [[False]] * 2


@pytest.mark.parametrize("tokens", [1, 4])
def test_packed_keys_are_the_real_ones_in_order(tokens: int) -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    keys = pack_keys(mask, mask.sum(1), tokens)
    rows = [
        row * (3 + tokens) + column
        for row in range(3)
        for column in range(3 + tokens)
        if column >= 3 or mask[row, column]
    ]
    assert keys.real.tolist() == rows
    assert keys.key_starts.tolist() == [0, 2 + tokens, 2 + 2 * tokens, 5 + 3 * tokens]
    assert keys.query_starts.tolist() == [0, tokens, 2 * tokens, 3 * tokens]
    assert keys.longest_query == tokens and keys.longest_key == 3 + tokens
    assert keys.key_starts.dtype == keys.query_starts.dtype == torch.int32


def test_each_number_of_tokens_is_packed_once() -> None:
    uneven = captions([[1, 0], [1, 1]])
    assert uneven.packed(4) is uneven.packed(4) and uneven.packed(4) is not uneven.packed(2)

import torch

from leam_mm.data.caption_states import pack_batch, pack_states, pad_states


def captions(lengths: list[list[int]], sizes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """States (B, L_e, D_e), with nonsense in the padding, and masks."""
    torch.manual_seed(0)
    states = [torch.randn(len(lengths[0]), length, width) for length, width in sizes]
    masks = [torch.arange(size[0]) < torch.tensor(own)[:, None] for size, own in zip(sizes, lengths, strict=True)]
    return states, masks


def test_batch_is_its_captions_one_by_one() -> None:
    lengths, sizes = [[2, 5, 1, 3], [4, 1, 7, 2], [1, 1, 2, 2]], [(5, 3), (9, 4), (2, 3)]
    states, masks = captions(lengths, sizes)
    state, mask = pack_batch(states, masks)
    pairs = list(zip(states, lengths, strict=True))
    single = [pack_states([part[row, : own[row]] for part, own in pairs]) for row in range(4)]
    assert torch.equal(state, pad_states(single)) and state.shape == (4, 10, 10)
    assert mask.sum(1).tolist() == [sum(own[row] for own in lengths) for row in range(4)]
    assert not (mask[:, 1:] & ~mask[:, :-1]).any()  # a length says it all


def test_one_layer_over_the_packed_states_is_a_layer_for_each_encoder() -> None:
    states, masks = captions([[2, 5], [4, 1]], [(5, 3), (9, 4)])
    state, mask = pack_batch(states, masks)
    layer = torch.nn.Linear(7, 6)
    for row in range(2):
        first = states[0][row][masks[0][row]] @ layer.weight[:, :3].T + layer.bias
        second = states[1][row][masks[1][row]] @ layer.weight[:, 3:].T + layer.bias
        torch.testing.assert_close(layer(state[row])[mask[row]], torch.cat([first, second]))


def test_one_encoder_stays_as_it_is() -> None:
    states, masks = captions([[2, 5, 1]], [(5, 3)])
    state, mask = pack_batch(states, masks)
    assert torch.equal(state, states[0] * masks[0][..., None]) and torch.equal(mask, masks[0])
    assert pack_states([states[0][0]]) is states[0][0] or torch.equal(pack_states([states[0][0]]), states[0][0])
    assert pad_states([torch.ones(0, 3)]).shape == (1, 1, 3)

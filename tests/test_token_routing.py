import pytest
import torch
from torch import Tensor
from toys.generators import CAPTION_WIDTH, BlockRecorder, deep_generator, sign_batch

from leam_mm.denoisers.denoiser import UNetDenoiser
from leam_mm.errors import UserError
from leam_mm.techniques.token_routing import TokenRouting


def test_nobody_routed_is_the_plain_loss_bit_for_bit() -> None:
    plain, routed = deep_generator(), deep_generator([TokenRouting(share=0.0)])
    assert torch.equal(plain.sample_losses(sign_batch([0, 1, 2])), routed.sample_losses(sign_batch([0, 1, 2])))


def test_routed_tokens_pass_unchanged_and_have_a_gradient() -> None:
    before, after = BlockRecorder(), BlockRecorder()
    module = deep_generator([before, TokenRouting(0.5, first=1, last=3), after])
    module.sample_losses(sign_batch([3, 8, 9])).sum().backward()
    assert [tokens.values.shape[1] for tokens in before.seen] == [16, 16, 8, 8, 16]
    assert [tokens.values.shape[1] for tokens in after.seen] == [16, 8, 8, 16, 16]
    assert after.seen[3].positions is None
    kept = after.seen[1].positions
    assert kept is not None and before.seen[2].positions is not None and torch.equal(kept, before.seen[2].positions)
    gone = torch.ones(3, 16, dtype=torch.bool).scatter(1, kept, False)
    whole, joined = before.seen[1].values, after.seen[3].values
    assert torch.equal(joined[gone], whole[gone])
    assert not torch.isclose(joined[~gone], whole[~gone]).any(dim=-1).all(dim=-1).any()
    for grad in (whole.grad, joined.grad):
        assert grad is not None and (grad.abs().sum(-1) > 0).all()
    assert len({tuple(places) for places in kept.tolist()}) == 3
    assert all(value.grad is not None for value in module.denoiser.parameters())


def test_rotations_are_those_of_the_places() -> None:
    """The kept tokens alone, put through a block by hand with their own rotations, give what the block gave."""
    spy = BlockRecorder()
    module = deep_generator([TokenRouting(0.5, first=0, last=1), spy])
    with torch.no_grad():
        module.sample_losses(sign_batch([5]))
    sent, places = spy.seen[0], spy.seen[0].positions
    rotary = module.denoiser._rotary((4, 4), torch.device("cpu"))  # type: ignore[operator]
    assert places is not None and torch.equal(sent.rotary[0], rotary[0, :, places[0]])  # type: ignore[index]


def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    module = deep_generator([TokenRouting(0.5)])
    with torch.no_grad():
        together = module.sample_losses(sign_batch([1, 7, 4]))
        alone = torch.cat([module.sample_losses(sign_batch([number])) for number in (1, 7, 4)])
        torch.testing.assert_close(alone, together)
        assert not torch.allclose(together, deep_generator().sample_losses(sign_batch([1, 7, 4])))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    slopes = []
    for checkpointing in (False, True):
        module = deep_generator([TokenRouting(0.5, first=0, last=-1)], gradient_checkpointing=checkpointing).train()
        module.sample_losses(sign_batch([2, 3])).sum().backward()
        slopes.append([value.grad for value in module.denoiser.parameters()])
    for plain, recomputed in zip(*slopes, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_compiled_blocks_are_not_compiled_again_at_each_step() -> None:
    """Guards and shapes are those of any back end; `eager` makes no kernels, so that it takes no time."""
    torch._dynamo.reset()
    module, plain = deep_generator([TokenRouting(0.5)]), deep_generator([TokenRouting(0.5)])
    module.conditioning.dropout = plain.conditioning.dropout = 0.0  # with a mask there would be one more kernel
    for block in module.denoiser.model.blocks:
        block.compile(backend="eager", dynamic=True)
    rows = [sign_batch([number, number + 1]) for number in range(6)]
    module.sample_losses(rows[0]).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for row in rows[1:]:
            loss = module.sample_losses(row)
            loss.sum().backward()
            torch.testing.assert_close(loss, plain.sample_losses(row))
    torch._dynamo.reset()


@pytest.mark.parametrize(("first", "last"), [(3, 3), (3, 1), (0, 5), (-6, -1)])
def test_blocks_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(UserError, match="5 blocks in a row: choose first < last, from 0 to 4"):
        deep_generator([TokenRouting(0.5, first, last)])


def test_what_cannot_be_routed_is_refused() -> None:
    with pytest.raises(UserError, match="share is 1"):
        TokenRouting(1.0)
    with pytest.raises(UserError, match="UNetDenoiser with 0 blocks"):
        TokenRouting().attach(UNetDenoiser(4, CAPTION_WIDTH, block_channels=[8, 8], num_heads=2, norm_groups=4), 0)


def test_all_tokens_leave_alike_often() -> None:
    spy = BlockRecorder()
    module = deep_generator([TokenRouting(0.75, first=0, last=1), spy])
    with torch.no_grad():
        module.sample_losses(sign_batch(list(range(64))) | {"sample_index": torch.arange(64)})
    places: Tensor = spy.seen[0].positions  # type: ignore[assignment]
    counts = places.flatten().bincount(minlength=16)
    assert places.shape == (64, 4) and counts.sum() == 256
    assert ((counts - 16).square().sum() / 12) < 40  # chi-squared with 15 degrees of freedom: 40 has p < 0.001

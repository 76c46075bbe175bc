"""Token routing and token masking: which tokens blocks see, what the loss counts, and what is refused."""

from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from toys.generators import CAPTION_WIDTH, DEPTH, BlockRecorder, deep_generator, sign_batch

from leam_mm.denoisers.denoiser import UNetDenoiser
from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep
from leam_mm.techniques.token_masking import TokenMasking
from leam_mm.techniques.token_routing import TokenRouting


class ErrorRecorder(Technique):
    """Records the errors as they are when this technique is reached."""

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        self.errors = errors.detach()
        return errors


def losses(module: Any, numbers: list[int]) -> Tensor:
    with torch.no_grad():
        return module.sample_losses(sign_batch(numbers))


@pytest.mark.parametrize("technique", [TokenMasking(share=0.0), TokenRouting(share=0.0)])
def test_share_of_zero_gives_the_plain_loss_bit_for_bit(technique: Technique) -> None:
    assert torch.equal(losses(deep_generator([technique]), [0, 1, 2]), losses(deep_generator(), [0, 1, 2]))


@pytest.mark.parametrize("technique", [TokenMasking(), TokenRouting(0.5)])
def test_loss_of_a_sample_does_not_depend_on_its_batch(technique: Technique) -> None:
    module = deep_generator([technique])
    together = losses(module, [1, 7, 4])
    torch.testing.assert_close(torch.cat([losses(module, [number]) for number in (1, 7, 4)]), together)
    assert not torch.allclose(together, losses(deep_generator(), [1, 7, 4]))


@pytest.mark.parametrize("technique", [TokenMasking(mixing_blocks=1), TokenRouting(0.5, first=0, last=-1)])
def test_gradient_checkpointing_changes_no_gradient(technique: Technique) -> None:
    gradients = []
    for checkpointing in (False, True):
        module = deep_generator([technique], gradient_checkpointing=checkpointing).train()
        module.sample_losses(sign_batch([2, 3])).sum().backward()
        gradients.append([value.grad for value in module.denoiser.parameters()])
        assert not list(module.techniques.parameters())  # nothing is added to a release
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize(
    "make", [lambda: TokenRouting(0.5), pytest.param(lambda: TokenMasking(mixing_blocks=1), marks=pytest.mark.slow)]
)
def test_compiled_blocks_are_not_recompiled_at_each_step(make: Any) -> None:
    """The `eager` back end tests guards and shapes without building kernels, which would take time."""
    torch._dynamo.reset()
    module, plain = deep_generator([make()]), deep_generator([make()])
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


def test_masked_loss_is_the_mean_over_the_visible_tokens() -> None:
    spy, before = BlockRecorder(), ErrorRecorder()
    module = deep_generator([spy, before, TokenMasking(share=0.75, mixing_blocks=2)])
    found = losses(module, [4, 5, 9])
    assert [tokens.values.shape[1] for tokens in spy.seen] == [16, 16, 4, 4, 4]
    visible = spy.seen[2].positions
    assert visible is not None
    by_token = rearrange(before.errors, "B C h w -> B (h w) C")
    for sample in range(3):
        torch.testing.assert_close(found[sample], by_token[sample, visible[sample]].mean())


def test_errors_of_a_larger_patch_are_masked_with_its_token() -> None:
    masking = TokenMasking(share=0.5, mixing_blocks=0)
    masking.patch_size = 2
    masking._seen = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    errors = torch.arange(16.0).reshape(1, 1, 4, 4)
    weighed = masking.weigh(errors, None)  # type: ignore[arg-type]
    assert torch.equal(weighed[0, 0, :, 2:], torch.zeros(4, 2))
    torch.testing.assert_close(weighed.mean(), errors[..., :2].mean())


def test_masked_tokens_have_influence_through_mixing_blocks_only() -> None:
    """The visible part of the output depends on a masked token if there are mixing blocks, and only then."""
    for mixing, influence in ((0, False), (1, True)):
        spy, before = BlockRecorder(), ErrorRecorder()
        module = deep_generator([spy, before, TokenMasking(share=0.75, mixing_blocks=mixing)])
        row = sign_batch([4])
        with torch.no_grad():
            first = module.sample_losses(row)
            visible = spy.seen[-1].positions
            assert visible is not None
            hidden = next(position for position in range(16) if position not in visible[0].tolist())
            row["latent"][0, :, hidden // 4, hidden % 4] += 3.0
            second = module.sample_losses(row)
        assert torch.equal(first, second) != influence


def test_masking_ends_after_until_samples() -> None:
    module, plain = deep_generator([TokenMasking(until_samples=8)]), deep_generator()
    assert not torch.allclose(losses(module, [6, 7]), losses(plain, [6, 7]))
    assert torch.equal(losses(module, [8, 9]), losses(plain, [8, 9]))
    assert torch.equal(losses(module, [7, 8]), losses(plain, [7, 8]))
    assert not torch.allclose(losses(module, [6, 7]), losses(plain, [6, 7]))  # no state of the other batch is left


def test_routed_tokens_stay_unchanged_and_have_a_gradient() -> None:
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
    assert len({tuple(positions) for positions in kept.tolist()}) == 3
    assert all(value.grad is not None for value in module.denoiser.parameters())


def test_kept_tokens_have_the_rotations_of_their_positions() -> None:
    spy = BlockRecorder()
    module = deep_generator([TokenRouting(0.5, first=0, last=1), spy])
    with torch.no_grad():
        module.sample_losses(sign_batch([5]))
    sent, positions = spy.seen[0], spy.seen[0].positions
    rotary = module.denoiser._rotary((4, 4), torch.device("cpu"))  # type: ignore[operator]
    assert positions is not None and torch.equal(sent.rotary[0], rotary[0, :, positions[0]])  # type: ignore[index]


def test_all_positions_are_kept_equally_often() -> None:
    spy = BlockRecorder()
    module = deep_generator([TokenRouting(0.75, first=0, last=1), spy])
    with torch.no_grad():
        module.sample_losses(sign_batch(list(range(64))) | {"sample_index": torch.arange(64)})
    positions: Tensor = spy.seen[0].positions  # type: ignore[assignment]
    counts = positions.flatten().bincount(minlength=16)
    assert positions.shape == (64, 4) and counts.sum() == 256
    assert ((counts - 16).square().sum() / 12) < 40  # chi-squared with 15 degrees of freedom: 40 has p < 0.001


def test_routing_inside_masking_works_and_overlap_is_refused() -> None:
    spy = BlockRecorder()
    module = deep_generator([spy, TokenMasking(0.5, mixing_blocks=1), TokenRouting(0.5, first=1, last=3)])
    assert losses(module, [1, 2]).isfinite().all()
    assert [tokens.values.shape[1] for tokens in spy.seen] == [16, 8, 4, 4, 8]
    torch.testing.assert_close(losses(module, [1, 2]), torch.cat([losses(module, [1]), losses(module, [2])]))
    with pytest.raises(UserError, match="nest them"):
        losses(deep_generator([TokenMasking(0.5, mixing_blocks=2), TokenRouting(0.5, first=0, last=3)]), [1, 2])


@pytest.mark.parametrize(("first", "last"), [(3, 3), (3, 1), (0, 5), (-6, -1)])
def test_blocks_that_do_not_exist_are_refused(first: int, last: int) -> None:
    with pytest.raises(UserError, match="5 blocks in a row: choose first < last, from 0 to 4"):
        deep_generator([TokenRouting(0.5, first, last)])


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(UserError, match="share is -1"):
        TokenMasking(-1.0)
    with pytest.raises(UserError, match=f"mixing_blocks is {DEPTH}"):
        deep_generator([TokenMasking(mixing_blocks=DEPTH)])
    with pytest.raises(UserError, match="share is 1"):
        TokenRouting(1.0)
    with pytest.raises(UserError, match="UNetDenoiser with 0 blocks"):
        TokenRouting().attach(UNetDenoiser(4, CAPTION_WIDTH, block_channels=[8, 8], num_heads=2, norm_groups=4), 0)

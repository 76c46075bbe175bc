from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from toys.generators import DEPTH, BlockRecorder, deep_generator, sign_batch

from leam_mm.errors import UserError
from leam_mm.techniques.technique import Technique, TrainingStep
from leam_mm.techniques.token_masking import TokenMasking
from leam_mm.techniques.token_routing import TokenRouting


class Errors(Technique):
    """Keeps the errors as they come, before and after another technique weighed them."""

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        self.errors, self.step = errors.detach(), step
        return errors


def losses(module: Any, numbers: list[int]) -> Tensor:
    with torch.no_grad():
        return module.sample_losses(sign_batch(numbers))


def test_nobody_masked_is_the_plain_loss_bit_for_bit() -> None:
    assert torch.equal(losses(deep_generator([TokenMasking(share=0.0)]), [0, 1]), losses(deep_generator(), [0, 1]))


def test_the_loss_is_the_mean_over_what_was_seen() -> None:
    spy, before = BlockRecorder(), Errors()
    module = deep_generator([spy, before, TokenMasking(share=0.75, mixing_blocks=2)])
    found = losses(module, [4, 5, 9])
    assert [tokens.values.shape[1] for tokens in spy.seen] == [16, 16, 4, 4, 4]
    places = spy.seen[2].positions
    assert places is not None
    by_token = rearrange(before.errors, "B C h w -> B (h w) C")
    for sample in range(3):
        torch.testing.assert_close(found[sample], by_token[sample, places[sample]].mean())


def test_errors_of_larger_patches_go_with_their_token() -> None:
    masking = TokenMasking(share=0.5, mixing_blocks=0)
    masking.patch_size = 2
    masking._seen = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    errors = torch.arange(16.0).reshape(1, 1, 4, 4)
    weighed = masking.weigh(errors, None)  # type: ignore[arg-type]
    assert torch.equal(weighed[0, 0, :, 2:], torch.zeros(4, 2))
    torch.testing.assert_close(weighed.mean(), errors[..., :2].mean())


def test_dropped_tokens_speak_through_the_mixing_blocks_alone() -> None:
    """The visible part of the output depends on a dropped token where blocks mixed them, and not where none did."""
    for mixing, influence in ((0, False), (1, True)):
        spy, before = BlockRecorder(), Errors()
        module = deep_generator([spy, before, TokenMasking(share=0.75, mixing_blocks=mixing)])
        row = sign_batch([4])
        with torch.no_grad():
            first = module.sample_losses(row)
            places = spy.seen[-1].positions
            assert places is not None
            hidden = next(place for place in range(16) if place not in places[0].tolist())
            row["latent"][0, :, hidden // 4, hidden % 4] += 3.0
            second = module.sample_losses(row)
        assert torch.equal(first, second) != influence


def test_the_loss_of_a_sample_does_not_depend_on_its_batch() -> None:
    module = deep_generator([TokenMasking()])
    together = losses(module, [1, 7, 4])
    torch.testing.assert_close(torch.cat([losses(module, [number]) for number in (1, 7, 4)]), together)


def test_the_last_samples_go_without() -> None:
    module, plain = deep_generator([TokenMasking(until_samples=8)]), deep_generator()
    assert not torch.allclose(losses(module, [6, 7]), losses(plain, [6, 7]))
    assert torch.equal(losses(module, [8, 9]), losses(plain, [8, 9]))
    assert torch.equal(losses(module, [7, 8]), losses(plain, [7, 8]))
    assert not torch.allclose(losses(module, [6, 7]), losses(plain, [6, 7]))  # nothing of the other batch is left


def test_every_weight_is_trained_and_checkpointing_changes_no_gradient() -> None:
    slopes = []
    for checkpointing in (False, True):
        module = deep_generator([TokenMasking(mixing_blocks=1)], gradient_checkpointing=checkpointing).train()
        module.sample_losses(sign_batch([2, 3])).sum().backward()
        slopes.append([value.grad for value in module.denoiser.parameters()])
    for plain, recomputed in zip(*slopes, strict=True):
        torch.testing.assert_close(recomputed, plain)
    assert not list(deep_generator([TokenMasking()]).techniques.parameters())  # nothing foreign in the release


@pytest.mark.slow
def test_compiled_blocks_are_not_compiled_again_at_each_step() -> None:
    torch._dynamo.reset()
    module = deep_generator([TokenMasking(mixing_blocks=1)])
    module.conditioning.dropout = 0.0  # with a mask there would be one more kernel
    for block in module.denoiser.model.blocks:
        block.compile(backend="eager", dynamic=True)
    module.sample_losses(sign_batch([0, 1])).sum().backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(1, 5):
            module.sample_losses(sign_batch([number, number + 1])).sum().backward()
    torch._dynamo.reset()


def test_routing_inside_masking_works_and_crossing_it_is_refused() -> None:
    spy = BlockRecorder()
    module = deep_generator([spy, TokenMasking(0.5, mixing_blocks=1), TokenRouting(0.5, first=1, last=3)])
    assert losses(module, [1, 2]).isfinite().all()
    assert [tokens.values.shape[1] for tokens in spy.seen] == [16, 8, 4, 4, 8]
    torch.testing.assert_close(losses(module, [1, 2]), torch.cat([losses(module, [1]), losses(module, [2])]))
    with pytest.raises(UserError, match="nest them"):
        losses(deep_generator([TokenMasking(0.5, mixing_blocks=2), TokenRouting(0.5, first=0, last=3)]), [1, 2])


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(UserError, match="share is -1"):
        TokenMasking(-1.0)
    with pytest.raises(UserError, match=f"mixing_blocks is {DEPTH}"):
        deep_generator([TokenMasking(mixing_blocks=DEPTH)])

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from toys.generators import build_denoiser, denoiser_inputs, fill_zero_weights

from leam_mm.data.random_stream import PhiloxStream
from leam_mm.denoisers.block_step import Tokens
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser, pool
from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.errors import UserError
from leam_mm.techniques.token_masking import TokenMasking
from leam_mm.techniques.token_routing import TokenRouting


@pytest.mark.parametrize("changes", [{}, {"qk_norm": False}])
def test_without_padding_it_is_diffusers_own_model(changes: dict[str, Any]) -> None:
    denoiser = fill_zero_weights(build_denoiser("sd3", **changes))
    latent, time, state, mask = denoiser_inputs()
    everything = torch.ones_like(mask)
    with torch.no_grad():
        ours = denoiser(latent, time, state, everything)
        denoiser.model.set_attn_processor(JointAttnProcessor2_0())
        theirs = denoiser.model(latent, state, state[:, -1], time * 1000).sample
    torch.testing.assert_close(ours, theirs)


def test_captions_are_pooled_by_their_last_real_token() -> None:
    state = torch.arange(24.0).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(pool(state, mask), torch.stack([state[0, 1], state[1, 2], torch.zeros(2)]))


def test_steps_see_the_image_tokens() -> None:
    class Doubling:
        def enter(self, number: int, tokens: Tokens) -> Tokens:
            assert tokens.values.shape == (3, 16, 32) and tokens.rotary is None and tokens.grid == (4, 4)
            return tokens

        def leave(self, number: int, tokens: Tokens) -> Tokens:
            tokens.values = tokens.values * (2 if number == 1 else 1)
            return tokens

    denoiser = fill_zero_weights(build_denoiser("sd3"))
    caught = []
    denoiser.model.norm_out.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad():
        denoiser(*denoiser_inputs())
        denoiser(*denoiser_inputs(), [Doubling()])
    assert torch.equal(caught[1], 2 * caught[0])


@pytest.mark.parametrize("technique", [TokenRouting(0.5, 0, 2), TokenMasking(0.5, 1)])
def test_techniques_that_leave_out_tokens_work(technique: Any) -> None:
    denoiser = fill_zero_weights(SD3Denoiser(4, 12, hidden_size=32, depth=4, num_heads=2)).train()
    technique.attach(denoiser, 0)
    latent, *rest = denoiser_inputs()

    def begin(numbers: list[int]) -> None:
        technique.begin(type("Step", (), {"index": torch.tensor(numbers), "stream": PhiloxStream()}))

    begin([3, 4, 5])
    together = denoiser(latent, *rest, technique.block_steps())
    together.square().sum().backward()
    missing = [name for name, value in denoiser.named_parameters() if value.grad is None]
    assert not missing, missing  # so that ranks need not look for unused weights
    begin([4])
    with torch.no_grad():
        alone = denoiser(latent[1:2], *(part[1:2] for part in rest), technique.block_steps())
    torch.testing.assert_close(alone[0], together[1])


def test_its_blocks_are_found_and_what_does_not_fit_is_refused() -> None:
    denoiser = build_denoiser("sd3")
    assert repeated_blocks(denoiser) == list(denoiser.model.transformer_blocks) and (
        denoiser.depth,
        denoiser.width,
    ) == (2, 32)
    with pytest.raises(UserError, match="multiple of num_heads 3"):
        SD3Denoiser(4, 12, hidden_size=32, num_heads=3)
    small = build_denoiser("sd3", largest_size=8)
    with pytest.raises(UserError, match="largest_size 8"):
        small(*denoiser_inputs(size=10))
    with pytest.raises(UserError, match="5 x 5"):
        denoiser(*denoiser_inputs(size=5))

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PRXTransformer2DModel
from torch import nn
from toys.generators import build_denoiser, denoiser_inputs, fill_zero_weights

from leam_mm.denoisers.denoiser import PRXDenoiser, UNetDenoiser
from leam_mm.errors import UserError

CASES = ["prx", "unet", "sd3"]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("size", [4, 8])
def test_starts_at_zero_and_keeps_the_shape(kind: str, size: int) -> None:
    latent, time, state, mask = denoiser_inputs(size)
    prediction = build_denoiser(kind)(latent, time, state, mask)
    assert torch.equal(prediction, torch.zeros_like(latent))


@pytest.mark.parametrize("kind", CASES)
def test_padding_has_no_influence_and_captions_and_time_have(kind: str) -> None:
    denoiser = fill_zero_weights(build_denoiser(kind))
    latent, time, state, mask = denoiser_inputs()
    with torch.no_grad():
        first = denoiser(latent, time, state, mask)
        torch.testing.assert_close(denoiser(latent, time, state.masked_fill(~mask[..., None], 7.0), mask), first)
        longer = denoiser(latent, time, nn.functional.pad(state, (0, 0, 0, 5)), nn.functional.pad(mask, (0, 5)))
        torch.testing.assert_close(longer, first)
        assert not torch.allclose(denoiser(latent, time, state + 1, mask), first)
        assert not torch.allclose(denoiser(latent, time / 2, state, mask), first)


@pytest.mark.parametrize("kind", CASES)
def test_samples_do_not_see_each_other(kind: str) -> None:
    denoiser = fill_zero_weights(build_denoiser(kind))
    parts = denoiser_inputs()
    with torch.no_grad():
        together = denoiser(*parts)
        alone = torch.cat([denoiser(*(part[i : i + 1] for part in parts)) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_the_models_are_fed_as_diffusers_pipelines_feed_them() -> None:
    latent, time, state, mask = denoiser_inputs(length=8)
    prx, unet = fill_zero_weights(build_denoiser("prx")), fill_zero_weights(build_denoiser("unet"))
    with torch.no_grad():
        theirs = prx.model(latent, timestep=time, encoder_hidden_states=state, attention_mask=mask).sample
        torch.testing.assert_close(prx(latent, time, state, mask), theirs)
        theirs = prx.model(latent, timestep=time, encoder_hidden_states=state).sample
        assert torch.equal(prx(latent, time, state, torch.ones_like(mask)), theirs)
        theirs = unet.model(latent, time * 1000, encoder_hidden_states=state, encoder_attention_mask=mask).sample
        assert torch.equal(unet(latent, time, state, mask), theirs)


@pytest.mark.parametrize("kind", CASES)
def test_gradient_checkpointing_changes_no_gradient(kind: str) -> None:
    parts = denoiser_inputs(size=4)
    gradients = []
    for checkpointing in (False, True):
        denoiser = fill_zero_weights(build_denoiser(kind, gradient_checkpointing=checkpointing)).train()
        denoiser(*parts).square().sum().backward()
        gradients.append([value.grad for value in denoiser.parameters() if value.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("kind", CASES)
def test_half_precision_autocast_runs(kind: str) -> None:
    denoiser = fill_zero_weights(build_denoiser(kind))
    parts = denoiser_inputs(size=4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = denoiser(*parts)
    with torch.no_grad():
        torch.testing.assert_close(half.float(), denoiser(*parts), rtol=0.1, atol=0.1)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match="axes_dim"):
        PRXDenoiser(4, 12, hidden_size=32, depth=1, num_heads=2, axes_dim=[8, 6])
    with pytest.raises(UserError, match="norm_groups 32"):
        UNetDenoiser(4, 12, block_channels=[16, 32])
    with pytest.raises(UserError, match="attention has 1"):
        UNetDenoiser(4, 12, block_channels=[32, 32], attention=[True])
    latent, time, state, mask = denoiser_inputs(size=5)
    with pytest.raises(UserError, match="5 x 5"):
        build_denoiser("prx")(latent, time, state, mask)


def sized_denoiser(side: int | None) -> PRXDenoiser:
    """A denoiser with random weights, and size conditioning if a side is given."""
    torch.manual_seed(0)
    made = PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2, size_conditioning=side)
    for name, value in made.model.named_parameters():
        torch.manual_seed(len(name))
        nn.init.normal_(value, std=0.2)
    return made.eval()


def test_sizes_change_nothing_before_training_and_everything_after() -> None:
    plain, made = sized_denoiser(None), sized_denoiser(64)
    assert plain.size_conditioning is None and made.size_conditioning is not None
    torch.manual_seed(1)
    inputs = torch.randn(3, 4, 4, 6), torch.rand(3), torch.randn(3, 5, 12), torch.ones(3, 5, dtype=torch.bool)
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64], [32, 48, 0, 0, 64, 96], [200, 100, 10, 0, 64, 64]])
    with torch.no_grad():
        assert torch.equal(made(*inputs, size=sizes), plain(*inputs)) and torch.equal(made(*inputs), plain(*inputs))
        nn.init.normal_(made.size_conditioning.out.weight, std=0.2)
        apart = (made(*inputs, size=sizes) - plain(*inputs)).abs().amax((1, 2, 3))
        assert torch.all(apart > 1e-3)
        # One for all is each one's; without any, a whole image of that side is assumed.
        assert torch.allclose(made(*inputs)[0], made(*inputs, size=sizes)[0], atol=1e-6)
        assert torch.allclose(made(*inputs, size=sizes[2])[2], made(*inputs, size=sizes)[2], atol=1e-6)


def test_the_plain_model_predicts_as_one_conditioned_on_a_whole_image(tmp_path: Path) -> None:
    made = sized_denoiser(96)
    assert made.size_conditioning is not None
    nn.init.normal_(made.size_conditioning.out.weight, std=0.3)
    nn.init.normal_(made.size_conditioning.out.bias, std=0.3)
    model: Any = made.plain_model()
    model.save_pretrained(tmp_path)
    plain: Any = PRXTransformer2DModel.from_pretrained(tmp_path)  # without us
    assert plain.state_dict().keys() == made.model.state_dict().keys()
    torch.manual_seed(2)
    latent, time, state = torch.randn(2, 4, 4, 6), torch.rand(2), torch.randn(2, 5, 12)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    with torch.no_grad():
        ours = made(latent, time, state, mask, size=torch.tensor([96, 96, 0, 0, 96, 96]))
        theirs = plain(latent, time, state, mask, return_dict=False)[0]
        before = made.model(latent, time, state, mask, return_dict=False)[0]
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max() and not torch.allclose(ours, before, atol=1e-2)

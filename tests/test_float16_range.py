"""Autoencoders whose results exceed float16: the rescaled weights give the same images, and finite ones in float16."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC
from safetensors.torch import load_file

from leam_mm.codecs.float16_range import HEADROOM, LARGEST, fit_float16
from leam_mm.codecs.latent_codec import DCCodec, KLCodec
from leam_mm.release.half_precision import write_variants


@pytest.fixture
def codec() -> DCCodec:
    """A codec with one block of the decoder whose results are large, as those of a trained one are."""
    torch.manual_seed(0)
    codec = DCCodec(4, [8, 16], [1, 1]).eval()
    with torch.no_grad():
        block = codec.autoencoder.decoder.up_blocks[1][0]
        block.conv1.weight *= 2e4
        block.conv2.weight *= 2e2
        codec.scale.fill_(0.5)
    return codec


@torch.no_grad()
def images(codec: DCCodec) -> torch.Tensor:
    return codec.decode_raw(torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1)) / 0.5)


@torch.no_grad()
def images_in_float16(autoencoder: Any) -> torch.Tensor:
    latent = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(1)) / 0.5
    return autoencoder.decode(latent.half(), return_dict=False)[0].float()


def test_large_blocks_are_rescaled_and_the_images_stay(codec: DCCodec) -> None:
    before, exact = copy.deepcopy(codec.autoencoder.state_dict()), images(codec)
    assert not torch.isfinite(images_in_float16(copy.deepcopy(codec.autoencoder).half())).all()
    found = fit_float16(codec.autoencoder, 0.5)
    assert list(found) == ["decoder.up_blocks.1.0"]
    first, second = found["decoder.up_blocks.1.0"]
    assert first > 1 and second > 1
    for name, value in codec.autoencoder.state_dict().items():
        factor = {"conv1": first, "conv2": second}.get(name.split(".")[-2]) if name.startswith(*found) else 1
        assert torch.equal(value * (factor or 1), before[name]), name  # powers of two: no digit is lost
    torch.testing.assert_close(images(codec), exact, rtol=0, atol=1e-4)
    half = images_in_float16(copy.deepcopy(codec.autoencoder).half())
    torch.testing.assert_close(half, exact, rtol=0, atol=2e-2)
    assert fit_float16(codec.autoencoder, 0.5) == {}  # and once is enough


def test_a_block_that_fits_and_an_autoencoder_without_one_stay() -> None:
    torch.manual_seed(0)
    codec = DCCodec(4, [8, 16], [1, 1])
    before = copy.deepcopy(codec.autoencoder.state_dict())
    assert fit_float16(codec.autoencoder, 1.0) == {}
    assert all(torch.equal(value, before[name]) for name, value in codec.autoencoder.state_dict().items())
    assert fit_float16(KLCodec(4, [8], 1, 4).autoencoder, 1.0) == {}
    assert LARGEST == 65504 and HEADROOM > 1


def test_a_codec_that_diverged_is_left_to_the_checks_that_name_it(codec: DCCodec) -> None:
    block = codec.autoencoder.decoder.up_blocks[1][0]
    with torch.no_grad():
        block.conv1.bias.fill_(torch.inf)
    weight = block.conv1.weight.clone()
    fit_float16(codec.autoencoder, 0.5)
    assert torch.equal(block.conv1.weight, weight)


def test_the_released_file_in_float16_draws_finite_images(codec: DCCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "vae")
    whole = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    write_variants(tmp_path, ["float16", "bfloat16"])
    half = AutoencoderDC.from_pretrained(tmp_path / "vae", variant="fp16", torch_dtype=torch.float16)
    torch.testing.assert_close(images_in_float16(half), images(codec), rtol=0, atol=2e-2)
    kept = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    brain = load_file(tmp_path / "vae" / "diffusion_pytorch_model.bf16.safetensors")
    for name, value in whole.items():
        assert torch.equal(value, kept[name]) and torch.equal(value.bfloat16(), brain[name])
        if not name.startswith("decoder.up_blocks.1.0.conv"):
            assert torch.equal(value.half(), half.state_dict()[name])

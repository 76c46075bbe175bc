import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, UNet2DModel
from jsonargparse import ArgumentParser

from leam_mm.codecs.latent_codec import DCCodec, KLCodec, LatentCodec, LatentStatistics
from leam_mm.codecs.pretrained_codec import PretrainedCodec
from leam_mm.errors import UserError


def dc_codec(seed: int = 0) -> DCCodec:
    torch.manual_seed(seed)
    return DCCodec(latent_channels=8, widths=[8, 16, 16, 32], layers=[0, 1, 1, 1])


def kl_codec(seed: int = 0) -> KLCodec:
    torch.manual_seed(seed)
    return KLCodec(latent_channels=4, widths=[8, 16, 16, 16], layers=1, norm_groups=4)


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("make", [dc_codec, kl_codec])
def test_shapes_and_range(make: type) -> None:
    codec = make()
    latent = codec.encode(images())
    assert latent.shape == (4, codec.channels, 32 // codec.downscale, 32 // codec.downscale)
    decoded = codec.decode(latent * 100)
    assert decoded.shape == (4, 3, 32, 32) and decoded.abs().max() <= 1


def test_dc_blocks_may_differ_between_resolutions() -> None:
    codec = DCCodec(
        latent_channels=8, widths=[8, 16, 32], layers=[1, 1, 1], blocks=["ResBlock", "ResBlock", "EfficientViTBlock"]
    )
    assert codec.encode(images(1)).shape == (1, 8, 8, 8)


def test_measured_dc_latents_have_unit_power_and_no_shift() -> None:
    codec = dc_codec()
    codec.measure(codec.encode_raw(images()))
    latent = codec.encode(images())
    assert float(codec.shift) == 0
    torch.testing.assert_close(latent.square().mean(), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_measured_kl_latents_have_mean_zero_and_unit_deviation() -> None:
    codec = kl_codec()
    codec.measure(codec.encode_raw(images()))
    latent = codec.encode(images())
    torch.testing.assert_close(latent.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(latent.std(correction=0), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_normalisation_has_an_inverse() -> None:
    codec = kl_codec()
    raw = codec.encode_raw(images())
    codec.measure(raw * 3 + 5)
    torch.testing.assert_close(codec.denormalise(codec.normalise(raw)), raw, rtol=1e-4, atol=1e-5)


def test_merged_statistics_equal_numpy_over_all() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, 3, 2, 5, generator=generator) * 2 + 1e3 for count in (1, 4, 7)]
    merged = LatentStatistics.of(parts[0]).merge(LatentStatistics.of(parts[1])).merge(LatentStatistics.of(parts[2]))
    everything = torch.cat(parts).double().numpy()
    assert merged.count == everything[:, 0].size
    np.testing.assert_allclose(merged.mean.numpy(), everything.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(merged.std.numpy(), everything.std((0, 2, 3)), rtol=1e-9)


def test_posterior_is_sampled_only_when_asked() -> None:
    codec = kl_codec()
    image = images(1)
    mode = codec.encode(image)
    torch.testing.assert_close(codec.encode(image, noise=torch.zeros_like(mode)), mode)
    deviation = codec.posterior(image).std
    moved = codec.encode(image, noise=torch.ones_like(mode))
    torch.testing.assert_close((moved - mode) / codec.scale, deviation)
    with pytest.raises(UserError, match="no posterior"):
        dc_codec().posterior(image)


@pytest.mark.parametrize("make", [dc_codec, kl_codec])
def test_saved_folder_reloads_bit_equal_and_undoes_the_normalisation(make: type, tmp_path: Path) -> None:
    codec = make()
    codec.measure(codec.encode_raw(images()))
    codec.save(tmp_path / "vae")
    reloaded = PretrainedCodec(str(tmp_path / "vae"))
    latent = codec.encode(images())
    assert torch.equal(reloaded.encode(images()), latent)
    assert {path.suffix for path in (tmp_path / "vae").iterdir()} == {".json", ".safetensors"}
    kind = AutoencoderKL if codec.variational else AutoencoderDC
    plain = kind.from_pretrained(tmp_path / "vae")
    # Exactly what diffusers' pipelines do with latents before decoding.
    unscaled = latent / plain.config.scaling_factor + (getattr(plain.config, "shift_factor", None) or 0.0)
    torch.testing.assert_close(plain.decode(unscaled).sample.clamp(-1, 1), codec.decode(latent))


def test_statistics_travel_through_state_dict_and_file(tmp_path: Path) -> None:
    codec = dc_codec()
    with pytest.raises(UserError, match="never measured"):
        codec.statistics()
    codec.measure(codec.encode_raw(images()))
    other = dc_codec(seed=1)
    other.load_state_dict(codec.state_dict())
    assert other.statistics() == codec.statistics()
    (tmp_path / "codec_statistics.json").write_text(json.dumps(codec.statistics()))
    third = dc_codec(seed=2)
    third.load_statistics(tmp_path)
    assert third.statistics() == codec.statistics() and torch.equal(third.scale, codec.scale)


def test_foreign_statistics_are_refused(tmp_path: Path) -> None:
    codec = kl_codec()
    codec.measure(codec.encode_raw(images()))
    with pytest.raises(UserError, match="4 channels, this codec has 8"):
        dc_codec().load_statistics(codec.statistics())
    (tmp_path / "codec_statistics.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        codec.load_statistics(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        codec.load_statistics(tmp_path / "missing.json")


def test_untrained_constant_latents_are_refused() -> None:
    with pytest.raises(UserError, match="mean square is 0"):
        kl_codec().measure(torch.ones(2, 4, 3, 3))


def test_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 8"):
        dc_codec().encode(images(size=20))
    with pytest.raises(UserError, match="only at the first"):
        DCCodec(latent_channels=8, widths=[8, 16, 32], layers=[1, 0, 1])
    with pytest.raises(UserError, match="no multiple of latent_channels"):
        DCCodec(latent_channels=12, widths=[8, 16, 32], layers=[1, 1, 1])
    with pytest.raises(UserError, match="one entry per resolution"):
        DCCodec(latent_channels=8, widths=[8, 16, 32], layers=[1, 1])
    with pytest.raises(UserError, match="norm_groups"):
        KLCodec(latent_channels=4, widths=[8, 12], norm_groups=8)
    with pytest.raises(UserError, match="UNet2DModel"):
        LatentCodec(UNet2DModel.__new__(UNet2DModel))  # type: ignore[arg-type]


def test_pretrained_folder_is_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        PretrainedCodec(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="UNet2DModel"):
        PretrainedCodec(str(tmp_path))
    kl_codec().save(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="no loadable safetensors"):
        PretrainedCodec(str(tmp_path))


def test_yaml_builds_each_codec(tmp_path: Path) -> None:
    dc_codec().save(tmp_path / "vae")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--codec", type=LatentCodec)
    for name, arguments in {
        "latent_codec.DCCodec": {"latent_channels": 8, "widths": [8, 16, 32], "layers": [0, 1, 1]},
        "latent_codec.KLCodec": {"latent_channels": 4, "widths": [8, 16], "layers": 1, "norm_groups": 4},
        "pretrained_codec.PretrainedCodec": {"path": str(tmp_path / "vae")},
    }.items():
        section = {"class_path": f"leam_mm.codecs.{name}", "init_args": arguments}
        codec = parser.instantiate_classes(parser.parse_object({"codec": section})).codec
        assert type(codec).__name__ == name.partition(".")[2]


def test_a_few_steps_improve_eight_images() -> None:
    codec = dc_codec()
    colours = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    image = colours.expand(8, 3, 16, 16)
    optimizer = torch.optim.AdamW(codec.parameters(), lr=5e-3)
    errors = []
    for _ in range(15):
        loss = (codec.decode_raw(codec.encode_raw(image)) - image).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.7 * errors[0]


def smooth(width: int, height: int, count: int = 1) -> torch.Tensor:
    """Pictures of soft blobs, as photographs are smooth."""
    coarse = torch.rand(count, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(4)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("make", [dc_codec, kl_codec])
def test_tiles_bound_what_the_networks_see(make: type) -> None:
    codec = make().eval()
    image = smooth(224, 160, count=2)
    seen: dict[str, set[tuple[int, ...]]] = {"encoder": set(), "decoder": set()}
    for name, shapes in seen.items():
        part = getattr(codec.autoencoder, name)
        part.register_forward_pre_hook(lambda _, inputs, shapes=shapes: shapes.add(tuple(inputs[0].shape)))
    with torch.no_grad():
        whole = codec.encode_raw(image)
        restored = codec.decode_raw(whole)
        assert seen["encoder"] == {(2, 3, 160, 224)}
        for shapes in seen.values():
            shapes.clear()
        codec.set_tile(64)
        tiled = codec.encode_raw(image)
        assert tiled.shape == whole.shape and codec.decode_raw(whole).shape == restored.shape
        assert max(shape[0] for shapes in seen.values() for shape in shapes) == 1
        assert max(max(shape[2:]) for shape in seen["encoder"]) == 64
        assert max(max(shape[2:]) for shape in seen["decoder"]) == 64 // codec.downscale
        # What fits into one tile is not cut, and None undoes it all.
        small = image[:, :, :64, :64]
        one_by_one = codec.encode_raw(small)
        codec.set_tile(None)
        torch.testing.assert_close(one_by_one, codec.encode_raw(small), rtol=1e-4, atol=1e-5)
        assert torch.equal(codec.encode_raw(image), whole)


@pytest.mark.parametrize(("make", "most"), [(dc_codec, (0.04, 0.04)), (kl_codec, (0.2, 0.5))])
def test_how_much_tiles_change(make: type, most: tuple[float, float]) -> None:
    # Fresh weights: 2 % of the image's deviation for residual blocks, 10 % and 28 % with group norms and attention.
    codec, image = make().eval(), smooth(448, 256)
    with torch.no_grad():
        whole = codec.encode_raw(image)
        restored = codec.decode_raw(whole)
        codec.set_tile(256)
        tiled, glued = codec.encode_raw(image), codec.decode_raw(whole)
    shares = [float((a - b).norm() / (b - b.mean()).norm()) for a, b in ((tiled, whole), (glued, restored))]
    assert all(0 < share <= limit for share, limit in zip(shares, most, strict=True)), shares
    same = float(((glued - restored).abs().amax((0, 1)) < 1e-5).float().mean())
    assert same == 0 if codec.variational else same > 0.5  # away from the seams nothing changes without group norms
    with pytest.raises(UserError, match="multiple of 32"):
        codec.set_tile(24)

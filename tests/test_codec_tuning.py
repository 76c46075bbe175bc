"""A codec that starts from a trained one: its decoder alone, or all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from toys.codecs import RandomImages, codec_module, fit_codec, weights_of

from leam_mm.checkpoint import EVIDENCE
from leam_mm.codec_module import LatentCodecModule
from leam_mm.data.image_range import signed
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

SIZES: dict[str, dict[str, Any]] = {
    "DCCodec": {"latent_channels": 4, "widths": [8, 8, 16], "layers": [0, 1, 1]},
    "KLCodec": {"latent_channels": 4, "widths": [8, 8, 8], "layers": 1, "norm_groups": 4},
}


def saved(model: LatentCodecModule, path: Path) -> Path:
    """A checkpoint as a training leaves it, with statistics."""
    kind = type(model.codec).__name__
    codec = {"class_path": f"leam_mm.codecs.latent_codec.{kind}", "init_args": SIZES[kind]}
    section = {"class_path": "leam_mm.codec_module.LatentCodecModule", "init_args": {"codec": codec}}
    model.measure_statistics(DataLoader(RandomImages(), batch_size=8))
    torch.save({"state_dict": model.state_dict(), EVIDENCE: {"config": yaml.safe_dump({"model": section})}}, path)
    return path


@pytest.mark.parametrize("kind", ["dc", "kl"])
@pytest.mark.parametrize("critic", [False, True])
def test_a_decoder_alone_is_tuned_and_the_latents_stay(kind: str, critic: bool, tmp_path: Path) -> None:
    base = codec_module(seed=3, kind=kind)
    path = saved(base, tmp_path / "base.ckpt")
    model = codec_module(
        seed=4, kind=kind, critic={} if critic else None, weights=str(path), trained="decoder", ema=0.5
    )
    trainer = fit_codec(model, tmp_path, steps=4)
    image = signed(RandomImages().image)
    before = weights_of(base.codec)
    for codec in (model.codec, model.ema_codec()):
        with torch.no_grad():
            assert torch.equal(codec.encode(image), base.codec.encode(image))  # statistics included
        moved = {name for name, value in codec.named_parameters() if not torch.equal(value, before[name])}
        assert {name.split(".")[1] for name in moved} == (
            {"decoder"} if kind == "dc" else {"decoder", "post_quant_conv"}
        )
    trainer.save_checkpoint(tmp_path / "tuned.ckpt")
    checkpoint = torch.load(tmp_path / "tuned.ckpt", weights_only=True)
    assert checkpoint[EVIDENCE]["pretrained"] == {"weights": str(path), "sha256": file_sha256(path)}
    for name in ("scale", "latent_mean", "latent_count"):
        assert torch.equal(checkpoint["state_dict"][f"codec.{name}"], getattr(base.codec, name))


def test_a_resumed_tuning_keeps_its_own_weights_and_refuses_another_base(tmp_path: Path) -> None:
    path = saved(codec_module(seed=3), tmp_path / "base.ckpt")
    half = codec_module(weights=str(path))
    fit_codec(half, tmp_path, steps=2).save_checkpoint(tmp_path / "half.ckpt")

    def resume() -> LatentCodecModule:
        again = codec_module(seed=5, weights=str(path))
        trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False)
        trainer.fit(
            again, DataLoader(RandomImages(), batch_size=4), ckpt_path=tmp_path / "half.ckpt", weights_only=True
        )
        return again

    after = weights_of(resume().codec)  # no step is left to take
    assert all(torch.equal(value, after[name]) for name, value in weights_of(half.codec).items())
    saved(codec_module(seed=6), path)
    with pytest.raises(UserError, match="trained from other weights"):
        resume()


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = saved(codec_module(seed=3, kind="kl"), tmp_path / "base.ckpt")
    with pytest.raises(UserError, match=r"weights of .*base.ckpt do not fit model.codec"):
        fit_codec(codec_module(weights=str(path)), tmp_path)
    with pytest.raises(UserError, match=r"name the codec that it belongs to in model.weights"):
        codec_module(trained="decoder")

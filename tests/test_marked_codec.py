"""A codec whose decoder marks its images, and the generator whose codec it replaces."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import binom
from toys.codecs import RandomImages, codec_module, fit_codec, weights_of
from toys.command_line import fit_here
from toys.generators import save_generator
from toys.recipes import clip_recipe, generator_section

from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import EVIDENCE, build_module, load_module
from leam_mm.codecs.decoder_mark_loss import DecoderMarkLoss
from leam_mm.codecs.marked_codec import MARK, marked_from, takes_place_of
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.image_range import signed
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.marking.decoder_mark import DecoderMark
from leam_mm.marking.image_changes import ImageChanges
from leam_mm.marking.mark_extractor import MarkExtractor, parse_message
from leam_mm.marking.write_detector_command import WriteDetectorOptions, unmarked_images, write_detector
from leam_mm.model_address import load_generator

SECTION: dict[str, Any] = {
    "class_path": "leam_mm.codec_module.LatentCodecModule",
    "init_args": {
        "codec": {
            "class_path": "leam_mm.codecs.latent_codec.DCCodec",
            "init_args": {"latent_channels": 4, "widths": [8, 8, 16], "layers": [0, 1, 1]},
        }
    },
}


MESSAGE = "a5"


def toy_loss(**settings: Any) -> DecoderMarkLoss:
    torch.manual_seed(0)
    return DecoderMarkLoss(MarkExtractor(8, width=8, depth=1), MESSAGE, **settings)


def as_run(checkpoint: dict[str, Any], folder: Path, section: dict[str, Any] = SECTION) -> Path:
    """A run folder of a codec as train.py leaves it."""
    checkpoint.setdefault(EVIDENCE, {})["config"] = yaml.safe_dump({"model": section})
    for name, value in checkpoint["state_dict"].items():
        if name.endswith("latent_count"):
            value.fill_(16)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a codec, its marked form, and a generator of the former."""
    root = tmp_path_factory.mktemp("marked")
    base = as_run({"state_dict": codec_module(seed=3).state_dict()}, root / "codec")
    loss = toy_loss(weight=1.0, first_weight=1.0, changes=ImageChanges(unchanged=1.0))
    model = codec_module(seed=4, losses={"mark": loss}, weights=str(base), trained="decoder")
    trainer = fit_codec(model, root, steps=3, batch_size=4)
    trainer.save_checkpoint(root / "marked.ckpt")
    mark = {"extractor": {"bits": 8, "width": 8, "depth": 1}}
    further = {"losses": {"mark": mark}, "trained": "decoder", "weights": str(base)}
    section = {"class_path": SECTION["class_path"], "init_args": SECTION["init_args"] | further}
    as_run(torch.load(root / "marked.ckpt", weights_only=True), root / "marked", section)
    generator = generator_section(root / "clip", base)
    generator["init_args"]["frozen"].pop("clip")
    torch.manual_seed(0)
    save_generator(build_module(generator), generator, root / "generator")  # type: ignore[arg-type]
    return root


def test_only_the_decoder_differs_and_the_evidence_names_base_and_mark(runs: Path) -> None:
    base, marked = load_codec(runs / "codec"), load_codec(runs / "marked")
    before, image = weights_of(base), signed(RandomImages().image)
    assert torch.equal(base.encode(image), marked.encode(image))
    moved = {name for name, value in marked.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("autoencoder.decoder.") for name in moved)
    pretrained = torch.load(runs / "marked/checkpoints/last.ckpt", weights_only=True)[EVIDENCE]["pretrained"]
    assert pretrained["sha256"] == file_sha256(runs / "codec/checkpoints/last.ckpt") == marked_from(runs / "marked")
    assert pretrained[MARK] == "8 bits"
    assert marked_from(runs / "codec") is None


def test_the_distance_is_to_unmarked_decodings(runs: Path, tmp_path: Path) -> None:
    model = codec_module(seed=5, losses={"mark": toy_loss()}, weights=str(runs / "codec"), trained="decoder")
    before = weights_of(model.mark)  # type: ignore[arg-type]
    fit_codec(model, tmp_path, steps=1, batch_size=4)
    assert float(model.trainer.callback_metrics["train/reconstruction"]) == 0  # nothing has moved before the first step
    after = weights_of(model.mark)  # type: ignore[arg-type]
    assert any(not torch.equal(value, after[name]) for name, value in before.items())  # the extractor is trained, too


def test_the_loss_is_drawn_from_the_sample_numbers_and_has_gradients() -> None:
    loss, index = toy_loss().eval(), torch.tensor([7, 8, 9, 10])
    unmarked = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    marked = (unmarked * 0.9).requires_grad_()
    one, agree = loss(marked, unmarked, unmarked, index)
    again, other = (loss(marked, unmarked, unmarked, numbers)[0] for numbers in (index, index + 1))
    assert one == again != other and 0 <= agree <= 1
    one.backward()
    assert marked.grad is not None and marked.grad.abs().sum() > 0
    assert all(value.grad is not None for value in loss.parameters())


def test_offsets_and_factors_of_the_bits_do_not_lower_the_loss() -> None:
    loss, index = toy_loss(changes=ImageChanges(unchanged=1.0)).eval(), torch.arange(4)
    image = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, _ = loss(image[:4], image[4:], image[4:], index)
    with torch.no_grad():
        loss.extractor.read.bias += 5
        loss.extractor.read.weight *= 7
    after, _ = loss(image[:4], image[4:], image[4:], index)
    assert float(after.detach()) == pytest.approx(float(before.detach()), abs=5e-3)


def test_marked_and_unmarked_decodings_are_changed_alike() -> None:
    loss, image = toy_loss(decorrelation=1e-9).eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    for number in range(6):  # equal decodings have no mark, whatever the change: their mean bits are zero
        error, _ = loss(image, image, image, torch.tensor([number]))
        assert float(error.detach()) < 1.0


def test_the_weight_falls_to_its_last_value() -> None:
    loss = toy_loss(weight=0.01, first_weight=1.0)
    assert [loss.weight_at(share) for share in (0, 0.3, 0.6, 1)] == pytest.approx([1, 0.1, 0.01, 0.01])
    with pytest.raises(UserError, match=r"first_weight 0\.001"):
        toy_loss(weight=0.01, first_weight=0.001)


def test_correlated_bits_raise_the_loss() -> None:
    table = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    loss = toy_loss()
    independent = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    assert float(loss._correlation(table.expand(64, 8) / table.std())) == pytest.approx(7, rel=0.05)
    assert float(loss._correlation(independent)) < 0.5


def test_a_generator_takes_the_marked_form_of_its_codec(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = load_generator(runs / "generator", codec=str(runs / "marked"))
    marked = load_codec(runs / "marked")
    latent = torch.randn(1, 4, 4, 4)
    assert torch.equal(module.codec.decode(latent), marked.decode(latent))
    assert "not compared" not in caplog.text
    assert module.frozen.paths["codec"] == str(runs / "marked")


def test_a_changed_encoder_another_base_and_other_codecs_are_refused(runs: Path, tmp_path: Path) -> None:
    digest = file_sha256(runs / "codec/checkpoints/last.ckpt")
    checkpoint = torch.load(runs / "marked/checkpoints/last.ckpt", weights_only=True)
    name = next(name for name in checkpoint["state_dict"] if name.startswith("codec.autoencoder.encoder."))
    checkpoint["state_dict"][name] += 1
    as_run(checkpoint, tmp_path / "changed", yaml.safe_load(checkpoint[EVIDENCE]["config"])["model"])
    with pytest.raises(UserError, match=r"differs from its original before the decoder \(autoencoder.encoder"):
        takes_place_of(tmp_path / "changed", digest, runs / "codec")
    assert not takes_place_of(runs / "marked", "ab" * 32, runs / "codec")
    other = as_run({"state_dict": codec_module(seed=9).state_dict()}, tmp_path / "other")
    for wrong in (other, tmp_path / "changed"):
        with pytest.raises(UserError):
            load_generator(runs / "generator", codec=str(wrong))
        parts = FrozenParts(codec=str(runs / "codec"))
        parts.record()
        parts.paths["codec"] = str(wrong)
        with pytest.raises(UserError, match=r"has changed since|differs from its original"):
            parts.latent_codec(4)


def test_without_the_original_the_evidence_counts_and_a_warning_says_so(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = file_sha256(runs / "codec/checkpoints/last.ckpt")
    with caplog.at_level(logging.WARNING):
        assert takes_place_of(runs / "marked", digest, runs / "gone")
    assert "encoders are not compared" in caplog.text


def test_message_and_extractor_are_in_the_checkpoint(runs: Path) -> None:
    module: Any = load_module(runs / "marked")
    assert np.array_equal(module.mark.message.numpy(), parse_message(MESSAGE, 8))
    with pytest.raises(UserError, match="give 2 hexadecimal digits, for 8 bits"):
        DecoderMarkLoss(MarkExtractor(8), "a5a5")


def test_only_a_trained_codec_is_marked(runs: Path) -> None:
    with pytest.raises(UserError, match=r"model.losses.mark marks a trained codec: set model.trained to decoder"):
        codec_module(losses={"mark": toy_loss()}, weights=str(runs / "codec"))


@pytest.mark.slow
def test_a_decoder_learns_to_mark_and_its_detector_states_honest_rates(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path
) -> None:
    base = as_run({"state_dict": codec_module(seed=3).state_dict()}, tmp_path / "codec")
    changes = {"unchanged": 0.5, "crop": 0.8, "scale": [0.8, 1.2], "angle": 0.0, "flip": 0.0, "noise": 2.0}
    mark = {"extractor": {"bits": 16, "width": 16, "depth": 1}, "weight": 0.1, "first_weight": 1.0, "changes": changes}
    model = yaml.safe_load(yaml.safe_dump(SECTION))
    model["init_args"] |= {
        "weights": str(base), "trained": "decoder", "losses": {"mark": mark}, "schedule": {"warmup_steps": 10},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005, "weight_decay": 0.0}},
    }  # fmt: skip
    recipe = clip_recipe(tmp_path / "marked", toy_shards, toy_tokenizer, max_samples=16 * 120)
    recipe["data"]["init_args"] |= {"image": {"image_size": 32, "crop_scale": [0.5, 1.0]}, "batch_size": 16}
    del recipe["data"]["init_args"]["captions"]
    recipe |= {"model": model, "checkpoint": {"every_n_train_steps": 60}}
    fit_here(recipe, tmp_path / "recipes")
    options = WriteDetectorOptions(
        tmp_path / "marked", toy_shards, tmp_path / "detector", samples=1024, sizes=[32, 48], original=base
    )
    assert write_detector(options) == 0
    detector, kinds = DecoderMark.read(tmp_path / "detector"), dict[str, list[float]]()
    assert detector.unmarked.images == 512
    for name in ("codec", "marked"):
        codec = load_codec(tmp_path / name)
        fresh = WriteDetectorOptions(tmp_path, toy_shards, tmp_path, samples=512, sizes=[40], seed=9)
        for kind, image in unmarked_images(fresh, codec):
            pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            scores = [detector.score(one) for one in pixels]
            kinds.setdefault("marked" if (name, kind) == ("marked", "decoded") else "unmarked", []).extend(
                scores if name == "codec" or kind == "decoded" else []
            )
    for rate in (0.1, 0.01):
        wrong = sum(detector.false_positive_rate(score) <= rate for score in kinds["unmarked"])
        assert binom.sf(wrong - 1, len(kinds["unmarked"]), rate) > 1e-4
    found = sum(detector.false_positive_rate(score) <= 0.01 for score in kinds["marked"])
    assert found > 0.9 * len(kinds["marked"])

"""Models are opened by any address, and runs open after they were moved."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toys.command_line import encode_latents, fit_here
from toys.recipes import clip_recipe, codec_section, generator_section, save_checkpoint
from toys.releases import BUILD
from toys.shards import write_toy_tokenizer

import leam_mm
from data_tools.latents.shard_embedding import open_teacher
from leam_mm.captions.caption_encoders import open_caption_encoder
from leam_mm.captions.moved_parts import find_part
from leam_mm.checkpoint import EVIDENCE, build_module, read_checkpoint
from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.kept_tokenizer import read_tokenizer, tokenizer_folder
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.patch_features import open_patch_features
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.files import file_sha256
from leam_mm.model_address import address_kind, load_encoder, load_generator
from leam_mm.release.__main__ import main as release
from leam_mm.release_record import OWN, RELEASE

CAPTIONS = ["ein roter Kreis", "two blue squares"]


def as_run(file: Path, folder: Path) -> Path:
    """Move a checkpoint to where train.py writes it."""
    (folder / "checkpoints").mkdir(parents=True)
    file.replace(folder / "checkpoints" / "last.ckpt")
    return folder


def embed(module: ContrastiveModule) -> torch.Tensor:
    text, length = module.tokenizer.encode(CAPTIONS)
    with torch.no_grad():
        return module.ema_encoder().encode_text(text, length)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path) -> Path:
    """Runs of an encoder, a codec and a generator, with the tokenizer beside them."""
    root = tmp_path_factory.mktemp("moved") / "runs"
    tokenizer = write_toy_tokenizer(root / "tokenizer")
    fit_here(clip_recipe(root / "clip", toy_shards, tokenizer, max_samples=16), root / "recipes")
    save_checkpoint(root / "codec.ckpt", codec_section())
    codec = as_run(root / "codec.ckpt", root / "codec")
    state = torch.load(codec / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in state["state_dict"].items():
        if name.endswith("latent_count"):
            value.fill_(16)
    torch.save(state, codec / "checkpoints" / "last.ckpt")
    section = generator_section(root / "clip", codec)
    torch.manual_seed(0)
    module = build_module(section)
    evidence = {"config": yaml.safe_dump({"model": section}), "model_class": section["class_path"]}
    checkpoint = {"state_dict": module.state_dict(), EVIDENCE: evidence}
    module.on_save_checkpoint(checkpoint)
    file = root / "generator" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    torch.save(checkpoint, file)
    return root


@pytest.fixture(scope="module")
def released(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Release of these runs."""
    folder = tmp_path_factory.mktemp("released") / "release"
    release(
        [
            *BUILD,
            "--clip",
            str(runs / "clip"),
            "--generator",
            str(runs / "generator"),
            "--name",
            "a",
            "--output",
            str(folder),
        ]
    )
    return folder


@pytest.fixture(scope="module")
def older(released: Path) -> Path:
    """The same release in format 1: the encoder in clip/, the generator in generator/."""
    folder = released.with_name("older")
    for part in ("clip", "generator"):
        (folder / part).mkdir(parents=True)
    for path in (each for each in released.iterdir() if each.name != RELEASE):
        of_clip = path.name.startswith(("open_clip", "tokenizer.", "tokenizer_", "special_"))
        of_generator = path.name in ("model_index.json", "transformer", "vae", "scheduler", "text_encoder", "tokenizer")
        target = folder / ("clip" if of_clip else "generator" if of_generator else "") / path.name
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    description = json.loads((released / RELEASE).read_text())
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    description |= {"format": "leam_mm release 1", "files": {n: {"sha256": file_sha256(p)} for n, p in files.items()}}
    description.pop(OWN)
    (folder / RELEASE).write_text(json.dumps(description))
    return folder


def test_every_address_of_an_encoder_gives_the_same_embeddings(runs: Path, released: Path, older: Path) -> None:
    expected = embed(load_encoder(runs / "clip"))
    for address in (runs / "clip" / "checkpoints" / "last.ckpt", released, older, older / "clip"):
        module = load_encoder(address)
        assert isinstance(module, ContrastiveModule) and len(module.checkpoint_evidence["sha256"]) == 64
        torch.testing.assert_close(embed(module), expected, rtol=0, atol=1e-6)
    weights = released / "open_clip_model.safetensors"
    torch.testing.assert_close(embed(load_encoder(weights)), expected, rtol=0, atol=1e-6)


def test_every_address_of_a_generator_draws_the_same_images(runs: Path, released: Path, older: Path) -> None:
    expected = load_generator(runs / "generator").sample(CAPTIONS, seed=1, steps=3)
    for address in (released, older, older / "generator"):
        module = load_generator(address)
        assert isinstance(module, LatentDiffusionModule)
        torch.testing.assert_close(module.sample(CAPTIONS, seed=1, steps=3), expected, rtol=0, atol=1e-4)


def test_every_address_of_a_codec_decodes_alike(runs: Path, released: Path, older: Path) -> None:
    latent = torch.randn(1, 4, 4, 4)
    expected = load_codec(runs / "codec").decode(latent)
    for address in (released, released / "vae", older, older / "generator", older / "generator" / "vae"):
        torch.testing.assert_close(load_codec(address).decode(latent), expected, rtol=0, atol=1e-5)


def test_load_returns_the_module_of_an_address(runs: Path, released: Path, older: Path) -> None:
    kinds = [(runs / "clip", ContrastiveModule), (runs / "codec", LatentCodecModule)]
    kinds += [(runs / "generator", LatentDiffusionModule), (older / "clip", ContrastiveModule)]
    for address, kind in kinds:
        assert isinstance(leam_mm.load(str(address)), kind)
    for folder in (released, older):
        with pytest.raises(UserError, match="holds encoder and generator: give part="):
            leam_mm.load(folder)
    assert isinstance(leam_mm.load(released, "generator"), LatentDiffusionModule)


@pytest.mark.parametrize("wrong", ["nothing", "empty", "codec", "vae"])
def test_other_addresses_are_refused_in_one_line(runs: Path, released: Path, tmp_path: Path, wrong: str) -> None:
    (tmp_path / "empty").mkdir()
    address = {"codec": runs / "codec", "vae": released / "vae"}.get(wrong, tmp_path / wrong)
    for opened in (load_encoder, load_generator):
        with pytest.raises(UserError) as caught:
            opened(address)
        assert str(address) in str(caught.value) and "\n" not in str(caught.value) and "give" in str(caught.value)


def test_runs_open_after_they_were_moved(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_generator(runs / "generator").sample(CAPTIONS, seed=1, steps=2)
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs, moved)
    gone = runs.rename(runs.with_name("gone"))  # nothing lies at the recorded paths
    monkeypatch.chdir(tmp_path)
    try:
        assert address_kind("elsewhere/clip") == "run"
        embed(load_encoder("elsewhere/clip"))
        assert torch.equal(load_generator("elsewhere/generator").sample(CAPTIONS, seed=1, steps=2), expected)
        flat = tmp_path / "flat"
        flat.mkdir()
        for name in ("clip", "codec", "generator"):
            shutil.copy(moved / name / "checkpoints" / "last.ckpt", flat / f"{name}.ckpt")
        assert torch.equal(load_generator(flat / "generator.ckpt").sample(CAPTIONS, seed=1, steps=2), expected)
        (flat / "codec.ckpt").unlink()
        with pytest.raises(UserError, match=r"the codec of .*generator.ckpt is not at .*name it with --codec"):
            load_generator(flat / "generator.ckpt").sample(CAPTIONS, seed=1, steps=2)
        found = load_generator(flat / "generator.ckpt", codec=moved / "codec")
        assert torch.equal(found.sample(CAPTIONS, seed=1, steps=2), expected)
    finally:
        gone.rename(runs)


def test_a_part_with_another_digest_is_not_taken(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "generator", tmp_path / "generator")
    other = as_run(save_checkpoint(tmp_path / "other.ckpt", codec_section()), tmp_path / "codec")
    with pytest.raises(UserError, match=r"is not the codec that .* was trained with"):
        load_generator(tmp_path / "generator", codec=other)


def test_a_part_is_found_by_its_digest_whatever_its_name(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    shutil.copy(runs / "codec" / "checkpoints" / "last.ckpt", folder / "old autoencoder.ckpt")
    checkpoint = Path(shutil.copy(runs / "generator" / "checkpoints" / "last.ckpt", folder / "generator.ckpt"))
    sha256 = file_sha256(folder / "old autoencoder.ckpt")
    assert find_part("codec", "/gone/codec", sha256, checkpoint) == folder / "old autoencoder.ckpt"
    with pytest.raises(UserError, match="--clip"):
        find_part("clip_1", "/gone/clip", "0" * 64, checkpoint)


def test_the_tokenizer_is_inside_the_checkpoint(runs: Path, tmp_path: Path) -> None:
    kept = read_checkpoint(runs / "clip")[EVIDENCE]["tokenizer"]
    assert kept == read_tokenizer(runs / "tokenizer") and "tokenizer.json" in kept
    assert read_tokenizer(tokenizer_folder(kept)) == kept
    assert "tokenizer" not in load_encoder(runs / "clip").checkpoint_evidence  # it would fill results.jsonl
    for files in ({"../evil.json": "{}"}, {"tokenizer.json": 3}, {"tokenization.py": "import os"}):
        with pytest.raises(UserError, match="the tokenizer in the checkpoint"):
            tokenizer_folder(files)


def test_another_tokenizer_ends_a_resumed_run(runs: Path, toy_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    run, tokenizer = tmp_path / "runs" / "clip", tmp_path / "runs" / "tokenizer"
    recipe = clip_recipe(run, toy_shards, tokenizer, max_samples=16)
    fit_here(recipe, tmp_path / "recipes")  # the same files elsewhere are no change
    (tokenizer / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match=r"trained with another recipe: model.init_args.tokenizer"):
        fit_here(recipe, tmp_path / "recipes")
    recipe = clip_recipe(runs / "clip", toy_shards, runs / "tokenizer", max_samples=16)
    words = runs / "tokenizer" / "tokenizer.json"
    before = words.read_bytes()
    try:
        words.write_bytes(before + b" ")
        with pytest.raises(UserError, match=r"model.init_args.tokenizer: the files in .* are not those"):
            fit_here(recipe, tmp_path / "recipes")
    finally:
        words.write_bytes(before)


def test_the_digest_of_a_run_is_that_of_its_file(runs: Path) -> None:
    sha256 = file_sha256(runs / "clip" / "checkpoints" / "last.ckpt")
    assert load_encoder(runs / "clip").checkpoint_evidence["sha256"] == sha256


def test_importing_the_package_loads_no_torch() -> None:
    code = "import leam_mm, sys; assert callable(leam_mm.load); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def matrix_of_addresses(runs: Path, released: Path, older: Path) -> dict[str, Path]:
    return {"run": runs / "clip", "release": released, "older": older, "open_clip": older / "clip"}


@pytest.mark.parametrize("kind", ["run", "release", "older", "open_clip"])
def test_programs_that_take_an_encoder_take_any_address(
    runs: Path, released: Path, older: Path, toy_shards: Path, tmp_path: Path, kind: str
) -> None:
    address = matrix_of_addresses(runs, released, older)[kind]
    teacher = open_teacher(str(address), None, "cpu")
    expected = open_teacher(str(runs / "clip"), None, "cpu").embed_texts([CAPTIONS], 8)[0]
    assert abs(teacher.embed_texts([CAPTIONS], 8)[0] - expected).max() < 2e-3  # float16
    state = open_caption_encoder(address).encode(CAPTIONS)[0]
    torch.testing.assert_close(state, open_caption_encoder(runs / "clip").encode(CAPTIONS)[0], rtol=0, atol=1e-5)
    context = EvaluationContext(address, None, tmp_path)
    assert isinstance(context.require_clip(), ContrastiveModule)
    assert open_patch_features(str(address)).size == load_encoder(runs / "clip").encoder.image_size
    output = tmp_path / "latents"
    encode_latents(toy_shards, {"codec": runs / "codec", "clip": address}, output, "--image-size", "16")
    assert (output / "manifest.jsonl").is_file()


@pytest.mark.parametrize("kind", ["run", "release", "older", "pipeline"])
def test_evaluation_takes_any_address_of_a_generator(
    runs: Path, released: Path, older: Path, tmp_path: Path, kind: str
) -> None:
    addresses = {"run": runs / "generator", "release": released, "older": older, "pipeline": older / "generator"}
    address = addresses[kind]
    module = EvaluationContext(None, address, tmp_path).require_generator()
    assert module.sample(CAPTIONS, seed=0, steps=1).shape == (2, 3, 16, 16)

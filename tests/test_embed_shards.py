"""Shards with a teacher's embeddings: their content, and the batches and the training that use them."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console
from toys.command_line import array_of
from toys.recipes import clip_recipe, save_checkpoint
from toys.shards import toy_vocabulary

from data_tools import embed_shards as program
from data_tools.latents.shard_embedding import Teacher
from leam_mm.checkpoint import load_module
from leam_mm.cli import main
from leam_mm.command_line import parse_settings
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairCaptions, PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from leam_mm.errors import UserError
from leam_mm.release.open_clip_folder import write_open_clip_folder


def embed(shards: Path, teacher: Path, output: Path, *more: str) -> str:
    arguments = ["--shards", str(shards), "--teacher", str(teacher), "--output", str(output), "--batch-size", "7"]
    console = Console(file=io.StringIO(), width=200)
    program.embed_shards(parse_settings(program.EmbedSettings, None, [*arguments, *more]), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> list[Path]:
    """Two encoders: one of ours, and one as open_clip's folder with other sizes."""
    folder = tmp_path_factory.mktemp("teachers")
    model = clip_recipe(folder, toy_shards, toy_tokenizer)["model"]
    ours = save_checkpoint(folder / "clip.ckpt", model)
    encoder = model["init_args"]["encoder"]
    encoder |= {"embed_dim": 8, "init_scale": 30.0}
    encoder["vision"]["image_size"] = 24
    other = load_module(save_checkpoint(folder / "other.ckpt", model), ContrastiveModule)
    write_open_clip_folder(other, folder / "released", "other")
    return [ours, folder / "released"]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, teachers: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    embed(toy_shards, teachers[0], folder / "once")
    said = embed(folder / "once", teachers[1], folder / "twice")
    assert "{size: 16, scale: 14.2857}" in said and "{size: 8, scale: 30.0}" in said
    return folder / "twice"


def test_members_are_embeddings_of_the_teachers(taught: Path, toy_shards: Path, teachers: list[Path]) -> None:
    module = load_module(teachers[0], ContrastiveModule)
    encoder, decoding = module.ema_encoder(), ImageDecoding(16).evaluation()
    assert [entry.samples for entry in ShardFolder(taught).shards] == [
        e.samples for e in ShardFolder(toy_shards).shards
    ]
    pairs = zip(read_samples(toy_shards), read_samples(taught), strict=True)
    for number, ((key, before), (same_key, after)) in enumerate(pairs):
        assert key == same_key and before["png"] == after["png"]
        image, text = array_of(after, "teacher_image.npy"), array_of(after, "teacher_text.npy")
        assert image.shape == (16 + 8,) and text.shape == (2, 16 + 8) and image.dtype == np.float16
        for part in (slice(0, 16), slice(16, 24)):
            assert np.linalg.norm(image[part].astype(np.float32)) == pytest.approx(1, abs=2e-3)
        if number % 30 == 0:
            captions = [caption["text"] for caption in json.loads(after["json"])["captions"]]
            with torch.no_grad():
                pixels = decoding(before["png"], np.random.default_rng(0))[None]
                expected = encoder.encode_image(encoder.normalise(pixels))[0]
                words = encoder.encode_text(*module.tokenizer.encode(captions))
            np.testing.assert_allclose(image[:16], expected.numpy(), atol=1e-3)
            np.testing.assert_allclose(text[:, :16], words.numpy(), atol=1e-3)
    assert [each["size"] for each in json.loads(after["json"])["teachers"]] == [16, 8]


@pytest.mark.parametrize("captions", [1, 3])
def test_batches_hold_the_embeddings_of_the_drawn_captions(taught: Path, toy_tokenizer: Path, captions: int) -> None:
    choice = PairCaptions(tokenizer=toy_tokenizer, context_length=12, per_image=captions)
    module = PairsModule(taught, ImageDecoding(16), 6, captions=choice, loading=Loading(0))
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["teacher_image"].shape == (6, 24) and batch["teacher_text"].shape == (6 * captions, 24)
    stored = {key: members for key, members in read_samples(taught)}
    for place, text in enumerate(batch["caption"]):
        members = stored[batch["key"][place // captions]]
        row = [caption["text"] for caption in json.loads(members["json"])["captions"]].index(text)
        np.testing.assert_array_equal(batch["teacher_text"][place].numpy(), array_of(members, "teacher_text.npy")[row])
        image = batch["teacher_image"][place // captions].numpy()
        np.testing.assert_array_equal(image, array_of(members, "teacher_image.npy"))


def test_a_recipe_trains_on_them(taught: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe: dict[str, Any] = clip_recipe(tmp_path / "run", taught, toy_tokenizer, max_samples=64)
    recipe["data"]["init_args"]["captions"]["per_image"] = 2
    recipe["model"]["init_args"]["loss"] = {
        "class_path": "leam_mm.losses.distillation.Distillation",
        "init_args": {
            "loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE"},
            "teachers": [{"size": 16, "scale": 14.2857}, {"size": 8, "scale": 30.0}],
            "weight": 1.0,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    cli = main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    assert cli.trainer.global_step == 8 and toy_vocabulary(toy_tokenizer) > 8
    loss = cli.trainer.callback_metrics["train/loss"]
    assert 0 < float(loss) < 5  # a divergence in nats; a cross-entropy of eight would start above log 8


def test_the_same_command_again_does_nothing_and_another_is_refused(
    taught: Path, toy_shards: Path, teachers: list[Path], tmp_path: Path
) -> None:
    assert "nothing to do" in embed(taught.parent / "once", teachers[1], taught)
    with pytest.raises(UserError, match="another teacher"):
        embed(toy_shards, teachers[0], taught)
    with pytest.raises(UserError, match="--batch-size is 0"):
        program.main(["--shards", "a", "--teacher", "b", "--output", "c", "--batch-size", "0"])


def test_an_interrupted_run_resumes_and_writes_the_same_shards(
    toy_shards: Path, teachers: list[Path], taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = Teacher.embed_pixels, []

    def stopping(self: Teacher, images: list[torch.Tensor]) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 8:
            raise InterruptedError
        return plain(self, images)

    monkeypatch.setattr(Teacher, "embed_pixels", stopping)
    with pytest.raises(InterruptedError):
        embed(toy_shards, teachers[0], tmp_path / "out")
    monkeypatch.undo()
    embed(toy_shards, teachers[0], tmp_path / "out")
    assert ShardFolder(tmp_path / "out").merkle_root == ShardFolder(taught.parent / "once").merkle_root


def test_samples_that_cannot_be_read_are_left_out_and_recorded(
    toy_shards: Path, teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = list(islice(read_samples(toy_shards), 12))
    broken: dict[int, dict[str, bytes]] = {1: {"png": b"no image"}, 6: {"json": b"{}"}}
    with ShardWriter(tmp_path / "shards", 4) as writer:
        for number, (key, members) in enumerate(samples):
            writer.write(key, members | broken.get(number, {}))
    plain, calls = Teacher.embed_pixels, []

    def stopping(self: Teacher, images: list[torch.Tensor]) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 2:
            raise InterruptedError
        return plain(self, images)

    embed(tmp_path / "shards", teachers[0], tmp_path / "once")
    monkeypatch.setattr(Teacher, "embed_pixels", stopping)
    with pytest.raises(InterruptedError):
        embed(tmp_path / "shards", teachers[0], tmp_path / "twice")
    monkeypatch.undo()
    embed(tmp_path / "shards", teachers[0], tmp_path / "twice")
    for output in (tmp_path / "once", tmp_path / "twice"):
        keys = [key for key, _ in read_samples(output)]
        assert keys == [key for number, (key, _) in enumerate(samples) if number not in broken]
        rows = pq.read_table(output / "ledger.parquet").to_pylist()
        assert [(row["key"], row["rule"], row["kept"]) for row in rows] == [
            (samples[number][0], "sample", False) for number in broken
        ]
        assert "unreadable image" in rows[0]["reason"] and "captions" in rows[1]["reason"]
    assert ShardFolder(tmp_path / "once").merkle_root == ShardFolder(tmp_path / "twice").merkle_root

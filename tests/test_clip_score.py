from pathlib import Path

import numpy as np
import pytest
import yaml
from toys.recipes import clip_recipe, save_checkpoint
from toys.vetting import vet, write_rules

from data_tools.vetting.clip_score import ClipScore
from data_tools.vetting.vetting_rule import Sample
from leam_mm.checkpoint import load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    return save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, toy_shards, toy_tokenizer)["model"])


@pytest.fixture(scope="module")
def samples(toy_shards: Path) -> list[Sample]:
    found = [(key, members, yaml.safe_load(members["json"])) for key, members in read_samples(toy_shards)][:12]
    return [Sample(key, record, "png", members["png"]) for key, members, record in found]


def test_cosines_are_the_encoders(teacher: Path, samples: list[Sample]) -> None:
    import torch

    measured = ClipScore(str(teacher), threshold=0.1).measure(samples)
    module = load_module(teacher, ContrastiveModule)
    encoder = module.ema_encoder()
    with torch.no_grad():
        for sample, score in zip(samples, measured[:, 0], strict=True):
            pixels = torch.from_numpy(sample.pixels.transpose(2, 0, 1).copy())[None]
            image = encoder.encode_image(encoder.normalise(pixels))[0]
            texts = encoder.encode_text(*module.tokenizer.encode([each["text"] for each in sample.captions]))
            assert float((texts @ image).max()) == pytest.approx(float(score), abs=3e-3)
    mean = ClipScore(str(teacher), threshold=0.1, captions="mean").measure(samples)
    assert (mean <= measured).all() and (mean < measured).any()
    alone = np.concatenate([ClipScore(str(teacher), threshold=0.1).measure([sample]) for sample in samples[:3]])
    np.testing.assert_allclose(alone, measured[:3], atol=1e-3)


def test_changed_pixels_are_scored(teacher: Path, samples: list[Sample]) -> None:
    rule, first = ClipScore(str(teacher), threshold=0.1), samples[0]
    changed = Sample(first.key, first.record, "png", first.content, changed=True)
    changed.__dict__["pixels"] = samples[1].pixels
    other = Sample(first.key, first.record, "png", samples[1].content)
    assert rule.measure([changed]) == rule.measure([other]) != rule.measure([first])


def test_threshold_and_fraction() -> None:
    scores = np.array([[0.3], [0.1], [0.2], [0.2]], np.float32)
    kept = [f.kept for f in ClipScore("x", threshold=0.2).resolve([""] * 4, [{}] * 4, scores)]
    assert kept == [True, False, True, True]
    best = ClipScore("x", fraction=0.5).resolve([""] * 4, [{}] * 4, scores)
    assert [each.kept for each in best] == [True, False, True, False]
    assert best[0].value == "0.3000" and best[0].record == {"clip_score": 0.3} and "50%" in best[3].reason
    for setting in ({}, {"threshold": 0.1, "fraction": 0.1}, {"threshold": 2}, {"fraction": 0}):
        with pytest.raises(UserError, match="ClipScore"):
            ClipScore("x", **setting)


def test_in_a_vetting(teacher: Path, toy_shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", (ClipScore, {"teacher": str(teacher), "fraction": 0.25}))
    vetted = vet(toy_shards, listed, tmp_path / "vetted")
    assert ShardFolder(vetted).samples == 24
    assert str(tmp_path) not in (vetted / "vetting.json").read_text()

"""Rules with an image-text encoder: CLIP score, semantic duplicates, and how they open the encoder."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from toys.vetting import vet, write_rules

from data_tools.vetting.clip_score import ClipScore
from data_tools.vetting.semantic_duplicates import SemanticDuplicates, centres, similar_pairs
from data_tools.vetting.vetting_rule import Sample
from leam_mm.checkpoint import load_module
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError
from leam_mm.files import file_sha256


@pytest.fixture
def teacher(toy_checkpoints: dict[str, Path]) -> Path:
    return toy_checkpoints["clip"]


@pytest.fixture(scope="module")
def samples(toy_shards: Path) -> list[Sample]:
    found = [(key, members, yaml.safe_load(members["json"])) for key, members in read_samples(toy_shards)][:12]
    return [Sample(key, record, "png", members["png"]) for key, members, record in found]


def test_cosines_are_those_of_the_encoder(teacher: Path, samples: list[Sample]) -> None:
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


def test_threshold_and_fraction_of_clip_scores() -> None:
    scores = np.array([[0.3], [0.1], [0.2], [0.2]], np.float32)
    kept = [f.kept for f in ClipScore("x", threshold=0.2).resolve([""] * 4, [{}] * 4, scores)]
    assert kept == [True, False, True, True]
    best = ClipScore("x", fraction=0.5).resolve([""] * 4, [{}] * 4, scores)
    assert [each.kept for each in best] == [True, False, True, False]
    assert best[0].value == "0.3000" and best[0].record == {"clip_score": 0.3} and "50%" in best[3].reason
    for setting in ({}, {"threshold": 0.1, "fraction": 0.1}, {"threshold": 2}, {"fraction": 0}):
        with pytest.raises(UserError, match="ClipScore"):
            ClipScore("x", **setting)


def test_clip_score_in_vet_shards(teacher: Path, toy_shards: Path, tmp_path: Path) -> None:
    listed = write_rules(tmp_path / "r.yaml", (ClipScore, {"teacher": str(teacher), "fraction": 0.25}))
    vetted = vet(toy_shards, listed, tmp_path / "vetted")
    assert ShardFolder(vetted).samples == 24
    assert str(tmp_path) not in (vetted / "vetting.json").read_text()


def test_each_process_opens_the_encoder_for_itself(teacher: Path, samples: list[Sample]) -> None:
    one = samples[:1]
    for rule in (SemanticDuplicates(str(teacher)), ClipScore(str(teacher), threshold=0.1)):
        assert rule._opened is None
        setting, image = rule.setting(), rule.embed_images(one)
        assert setting["teacher"] == file_sha256(teacher) and str(teacher.parent) not in str(setting)
        assert "_opened" not in setting
        assert rule.encoder() is rule.encoder()
        copy = pickle.loads(pickle.dumps(rule))
        assert copy._opened is None
        np.testing.assert_array_equal(copy.embed_images(one), image)
        assert [len(text) for text in rule.embed_texts(one)] == [len(one[0].captions)]


def clustered(topics: int, rows: int, near: int, size: int = 32, spread: float = 0.6) -> np.ndarray:
    """Unit vectors around topics, and copies of some of them at cosines from about 0.9 up, (rows + near, size)."""
    generator = np.random.default_rng(0)
    middle = generator.standard_normal((topics, size))
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    noise = spread * generator.standard_normal((rows, size)) / np.sqrt(size)
    features = middle[generator.integers(0, topics, rows)] + noise
    copies = features[generator.integers(0, rows, near)] + generator.uniform(0, 0.6, (near, 1)) * (
        generator.standard_normal((near, size)) / np.sqrt(size)
    )
    features = np.concatenate([features, copies])
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)


def pairs(features: np.ndarray, cosine: float, cluster_size: int) -> set[tuple[int, int]]:
    found = np.concatenate([np.stack(pair, axis=1) for pair in similar_pairs(features, cosine, cluster_size)])
    return set(map(tuple, np.sort(found, axis=1).tolist()))


def brute(features: np.ndarray, cosine: float) -> set[tuple[int, int]]:
    near = features.astype(np.float32) @ features.astype(np.float32).T >= cosine
    return set(zip(*(each.tolist() for each in np.nonzero(np.triu(near, 1))), strict=True))


def test_all_pairs_of_few_images_are_compared() -> None:
    features = clustered(5, 300, 80)
    wanted = brute(features, 0.97)
    assert len(wanted) > 30 and pairs(features, 0.97, 1000) == wanted


def test_clusters_find_nearly_all_pairs_and_no_false_one() -> None:
    features = clustered(40, 3000, 1000)
    wanted, found = brute(features, 0.97), pairs(features, 0.97, 200)
    assert found <= wanted and len(found) > 0.97 * len(wanted) > 500


def test_centres_are_near_their_rows() -> None:
    features = clustered(8, 2000, 10, spread=0.3)
    found = centres(features, 16)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    drawn = features[np.random.default_rng(1).permutation(len(features))[:16]].astype(np.float32)
    before, after = ((features.astype(np.float32) @ each.T).max(axis=1).mean() for each in (drawn, found))
    assert after > before + 0.01
    assert np.array_equal(found, centres(features, 16))


def test_the_best_of_each_group_stays() -> None:
    angles = np.deg2rad([0.0, 10.0, 20.0, 90.0, 91.0])  # the third is like the second, and not like the first
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    records = [{"width": side, "height": side} for side in (30, 20, 10, 8, 9)]
    rule = SemanticDuplicates("x", cosine=float(np.cos(np.deg2rad(12))))
    found = rule.resolve(list("abcde"), records, features)
    assert [finding.kept for finding in found] == [True, False, True, False, True]
    assert found[1].evidence["kept"] == "a" and found[1].evidence["group"] == 3
    assert found[1].evidence["diameter"] == pytest.approx(1 - np.cos(np.deg2rad(20)), abs=2e-3)
    assert found[3].value == "cosine 1.000" and found[3].evidence["kept"] == "e"
    records[1]["against"] = True  # type: ignore[assignment]
    found = rule.resolve(list("abcde"), records, features)
    assert [finding.kept for finding in found] == [False, True, False, False, True]
    assert found[0].evidence["against"] is True


def test_wrong_settings_of_semantic_duplicates_are_refused() -> None:
    for setting in ({"cosine": 0.0}, {"cosine": 1.5}, {"cluster_size": 1}):
        with pytest.raises(UserError, match="SemanticDuplicates"):
            SemanticDuplicates("x", **setting)  # type: ignore[arg-type]


def test_equal_images_are_semantic_duplicates(teacher: Path, samples: list[Sample]) -> None:
    rule = SemanticDuplicates(str(teacher), cosine=0.999)
    again = Sample("again", samples[2].record, "png", samples[2].content)
    painted = Sample("painted", samples[3].record, "png", samples[3].content, changed=True)
    painted.__dict__["pixels"] = samples[2].pixels
    measured = rule.measure([*samples[:6], again, painted])
    norms = np.linalg.norm(measured.astype(np.float32), axis=1)
    assert measured.dtype == np.float16 and np.allclose(norms, 1, atol=0.01)
    np.testing.assert_allclose(measured[[6, 7]], measured[[2, 2]], atol=1e-3)
    keys = [*(sample.key for sample in samples[:6]), "zz/again", "zz/painted"]
    found = rule.resolve(keys, [{"width": 16, "height": 16}] * 8, measured)
    assert not found[6].kept and not found[7].kept and found[6].evidence["kept"] in keys[:6]

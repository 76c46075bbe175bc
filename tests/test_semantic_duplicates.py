from pathlib import Path

import numpy as np
import pytest
import yaml
from toys.recipes import clip_recipe, save_checkpoint

from data_tools.vetting.semantic_duplicates import SemanticDuplicates, centres, similar_pairs
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError


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
    found = [(first, second) for first, second in similar_pairs(features, cosine, cluster_size)]
    return {
        (min(pair), max(pair)) for first, second in found for pair in zip(first.tolist(), second.tolist(), strict=True)
    }


def brute(features: np.ndarray, cosine: float) -> set[tuple[int, int]]:
    near = features.astype(np.float32) @ features.astype(np.float32).T >= cosine
    return set(zip(*(each.tolist() for each in np.nonzero(np.triu(near, 1))), strict=True))


def test_few_pictures_are_all_compared() -> None:
    features = clustered(5, 300, 80)
    wanted = brute(features, 0.97)
    assert len(wanted) > 30 and pairs(features, 0.97, 1000) == wanted


def test_clusters_find_nearly_all_pairs_and_no_wrong_one() -> None:
    features = clustered(40, 3000, 1000)
    wanted, found = brute(features, 0.97), pairs(features, 0.97, 200)
    assert found <= wanted and len(found) > 0.97 * len(wanted) > 500


def test_centres_are_near_what_they_stand_for() -> None:
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


def test_wrong_settings_are_refused() -> None:
    for setting in ({"cosine": 0.0}, {"cosine": 1.5}, {"cluster_size": 1}):
        with pytest.raises(UserError, match="SemanticDuplicates"):
            SemanticDuplicates("x", **setting)  # type: ignore[arg-type]


def test_an_encoder_of_ours_measures(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    teacher = save_checkpoint(tmp_path / "clip.ckpt", clip_recipe(tmp_path, toy_shards, toy_tokenizer)["model"])
    stored = [(key, members) for key, members in read_samples(toy_shards)][:6]
    samples = [Sample(key, yaml.safe_load(members["json"]), "png", members["png"]) for key, members in stored]
    rule = SemanticDuplicates(str(teacher), cosine=0.999)
    again = Sample("again", samples[2].record, "png", samples[2].content)
    painted = Sample("painted", samples[3].record, "png", samples[3].content, changed=True)
    painted.__dict__["pixels"] = samples[2].pixels
    measured = rule.measure([*samples, again, painted])
    assert measured.dtype == np.float16 and np.allclose(
        np.linalg.norm(measured.astype(np.float32), axis=1), 1, atol=0.01
    )
    np.testing.assert_allclose(measured[[6, 7]], measured[[2, 2]], atol=1e-3)
    keys = [*(sample.key for sample in samples), "zz/again", "zz/painted"]
    found = rule.resolve(keys, [{"width": 16, "height": 16}] * 8, measured)
    assert not found[6].kept and not found[7].kept and found[6].evidence["kept"] in keys[:6]

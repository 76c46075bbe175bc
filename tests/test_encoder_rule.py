"""data_tools/vetting/encoder_rule.py: opened once and late, left behind when a rule travels, named by its digest."""

import pickle
from pathlib import Path

import numpy as np
import yaml
from toys.recipes import clip_recipe, save_checkpoint

from data_tools.vetting.clip_score import ClipScore
from data_tools.vetting.semantic_duplicates import SemanticDuplicates
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.shard_index import read_samples
from leam_mm.files import file_sha256


def test_each_process_opens_the_encoder_for_itself(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    teacher = save_checkpoint(tmp_path / "clip.ckpt", clip_recipe(tmp_path, toy_shards, toy_tokenizer)["model"])
    key, members = next(iter(read_samples(toy_shards)))
    sample = Sample(key, yaml.safe_load(members["json"]), "png", members["png"])
    for rule in (SemanticDuplicates(str(teacher)), ClipScore(str(teacher), threshold=0.1)):
        assert rule._opened is None  # nothing is opened before it is asked for
        setting, image = rule.setting(), rule.embed_images([sample])
        assert setting["teacher"] == file_sha256(teacher) and str(tmp_path) not in str(setting)
        assert "_opened" not in setting and "_sha256" not in setting
        assert rule.encoder() is rule.encoder()
        travelled = pickle.loads(pickle.dumps(rule))
        assert travelled._opened is None
        np.testing.assert_array_equal(travelled.embed_images([sample]), image)
        assert [len(text) for text in rule.embed_texts([sample])] == [len(sample.captions)]

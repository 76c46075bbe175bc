"""data_tools/withdrawal/affected_models.py: runs on withdrawn samples are found, with what they drew."""

import hashlib
import json
from pathlib import Path

import torch
import yaml
from toys.published import derived_from, keys_of, withdraw, write_published

from leam_mm.checkpoint import EVIDENCE
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardFolder


def checkpoint(path: Path, roots: dict[str, str], seen: int, config: dict, frozen: dict | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    evidence = {"config": yaml.safe_dump(config), "data": roots, "samples_seen": seen, "frozen": frozen or {}}
    torch.save({EVIDENCE: evidence, "state_dict": {}}, path)


def test_runs_on_the_samples_are_found_with_what_they_drew(tmp_path: Path) -> None:
    folder, other = write_published(tmp_path / "shards"), write_published(tmp_path / "other", 7)
    root = ShardFolder(folder).merkle_root
    config = {"data": {"init_args": {"train": str(folder), "seed": 3, "batch_size": 4}}, "trainer": {}}
    order = SamplePlan([Source(folder)], 3, True)
    places = [order.locate(n)[1:] for n in range(46)]
    wanted = (1, 1)  # key 0000006
    first = places.index(wanted)
    runs = tmp_path / "runs"
    for name, seen in (("before", first), ("after", first + 1), ("long", 46)):
        checkpoint(runs / name / "checkpoints/last.ckpt", {str(folder): root}, seen, config)
    checkpoint(runs / "innocent/last.ckpt", {str(other): ShardFolder(other).merkle_root}, 9, config)
    clip = hashlib.sha256((runs / "after/checkpoints/last.ckpt").read_bytes()).hexdigest()
    checkpoint(runs / "generator/last.ckpt", {"latents": "f" * 64}, 9, config, {"clip": {"sha256": clip}})
    sources = [{"path": str(folder)}, {"init_args": {"path": str(other), "weight": 2.0}}]  # configs have both forms
    mixed = {"data": {"init_args": {"train": sources, "seed": 3, "batch_size": 4}}}
    roots = {str(folder): root, str(other): ShardFolder(other).merkle_root}
    checkpoint(runs / "mixture/last.ckpt", roots, 300, mixed)
    (runs / "release").mkdir()
    stage = {"data": {root: "shards"}, "checkpoint_sha256": "0" * 64, "base": {}}
    (runs / "release/leam_mm_release.json").write_text(json.dumps({"stages": {"clip": stage}}))
    (runs / "broken.ckpt").write_bytes(b"no checkpoint")
    withdraw("--shards", folder, "--url", "https://img.site1.example/6.png", "--runs", runs, "--apply", "--unsigned")
    said = json.loads((folder / "withdrawals/0001.json").read_text())["models"]
    found = {model["name"].partition("/")[0]: model for model in said["affected"]}
    assert {name: model["drawn"] for name, model in found.items()} == {
        "before": "no", "after": "yes", "long": "yes", "generator": "not known", "mixture": "yes",
        "release": "not known",
    }  # fmt: skip
    assert found["after"]["first"] == first and found["after"]["times"] == 1 and found["long"]["times"] == 2
    assert found["generator"]["reason"] == "built on an affected model"
    assert said["unreadable"] == ["broken.ckpt"] and said["looked_at"] == 7
    # Later withdrawals know that earlier states held the samples, too.
    withdraw("--shards", folder, "--url", "https://img.site2.example/7.png", "--runs", runs, "--apply", "--unsigned")
    said = json.loads((folder / "withdrawals/0002.json").read_text())["models"]
    assert {model["name"].partition("/")[0] for model in said["affected"]} == set(found)
    assert all(model["drawn"] == "not known" for model in said["affected"])


def test_a_run_on_a_keep_list_is_replayed_in_its_own_order(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "shards")
    kept, _ = derived_from(folder, tmp_path)
    opened = ShardFolder(kept)
    order = SamplePlan([Source(kept)], 3, True)
    seen = [opened.index(shard).keys[row] for _, shard, row in (order.locate(n) for n in range(opened.samples))]
    config = {"data": {"init_args": {"train": str(kept), "seed": 3, "batch_size": 4}}, "trainer": {}}
    first = seen.index("0000007")
    for name, count in (("before", first), ("after", first + 1)):
        checkpoint(tmp_path / "runs" / name / "last.ckpt", {str(kept): opened.merkle_root}, count, config)
    withdraw("--shards", folder, "--derived", kept, "--url", "https://img.site2.example/7.png", "--runs",
        tmp_path / "runs", "--apply", "--unsigned")  # fmt: skip
    said = json.loads((kept / "withdrawals/0001.json").read_text())["models"]["affected"]
    assert [(model["name"].partition("/")[0], model["drawn"]) for model in said] == [("after", "yes"), ("before", "no")]
    assert said[0]["first"] == first and "0000007" not in keys_of(kept)

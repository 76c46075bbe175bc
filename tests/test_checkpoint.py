import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys.recipes import clip_recipe

from leam_mm.checkpoint import (
    EVIDENCE,
    AtomicCheckpointIO,
    build_module,
    checkpoint_config,
    find_checkpoint,
    load_module,
    load_part,
    read_checkpoint,
)
from leam_mm.codec_module import LatentCodecModule
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.errors import UserError
from leam_mm.files import file_sha256


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """A checkpoint in the form that train.py writes, without a training."""
    run = tmp_path_factory.mktemp("checkpoint")
    recipe = clip_recipe(run, toy_shards, toy_tokenizer)
    torch.manual_seed(3)
    content = {
        "state_dict": build_module(recipe["model"]).state_dict(),
        EVIDENCE: {
            "config": yaml.safe_dump(recipe),
            "model_class": "leam_mm.contrastive_module.ContrastiveModule",
            "data": {"shards": "ab"},
            "samples_seen": 64,
            "versions": {},
        },
    }
    AtomicCheckpointIO().save_checkpoint(content, run / "checkpoints" / "last.ckpt")
    return run


def changed(written: Path, folder: Path, **entries: Any) -> Path:
    content = torch.load(find_checkpoint(written), weights_only=True)
    content[EVIDENCE].update(entries.pop("evidence", {}))
    content.update(entries)
    torch.save(content, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_module_comes_back_from_the_file_alone(written: Path) -> None:
    module = load_module(written, ContrastiveModule)
    stored = torch.load(find_checkpoint(written), weights_only=True)["state_dict"]
    assert module.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in module.state_dict().items())
    assert not module.training and module.encoder.image_size == 16
    evidence: Any = module.checkpoint_evidence
    assert evidence["samples_seen"] == 64 and evidence["data"] == {"shards": "ab"}
    assert evidence["sha256"] == file_sha256(find_checkpoint(written))
    assert "config" not in evidence


def test_file_and_run_folder_name_the_same(written: Path, tmp_path: Path) -> None:
    file = written / "checkpoints" / "last.ckpt"
    assert find_checkpoint(written) == find_checkpoint(file.parent) == find_checkpoint(str(file)) == file
    with pytest.raises(UserError, match=r"no checkpoint at .*checkpoints/last\.ckpt"):
        find_checkpoint(tmp_path)


def test_config_inside_is_the_recipe(written: Path) -> None:
    config = checkpoint_config(read_checkpoint(written))
    assert config["model"]["class_path"] == "leam_mm.contrastive_module.ContrastiveModule"
    assert config["max_samples"] == 64


@pytest.mark.parametrize("keep", [0, 10, 1000, -1000])
def test_damaged_file_is_one_line(written: Path, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "cut.ckpt"
    file.write_bytes(find_checkpoint(written).read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.ckpt cannot be read as a checkpoint") as caught:
        load_module(file)
    assert "\n" not in str(caught.value)


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_inside_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    target, file = tmp_path / "harm", tmp_path / "harmful.ckpt"
    if zipped:
        torch.save({EVIDENCE: Harmful(str(target))}, file)
    else:
        file.write_bytes(pickle.dumps({EVIDENCE: Harmful(str(target))}))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_module(file)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(file, weights_only=False)  # as the trainer does when it resumes
    assert not target.exists()
    pickle.loads(pickle.dumps(Harmful(str(target))))
    assert target.exists()  # it would have worked


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2)])
def test_foreign_file_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"was not written by train\.py"):
        load_module(tmp_path / "foreign.ckpt")


def test_other_model_is_named(written: Path) -> None:
    with pytest.raises(UserError, match=r"holds a ContrastiveModule, but a LatentCodecModule is needed"):
        load_module(written, LatentCodecModule)


def test_part_is_loaded_by_its_name(written: Path) -> None:
    part, module = load_part(written, "ema_encoder"), load_module(written, ContrastiveModule)
    assert type(part) is type(module.ema_encoder()) and not part.training
    assert part.checkpoint_evidence == module.checkpoint_evidence
    stored = module.ema_encoder().state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in part.state_dict().items())
    assert load_part(written, "loss").__class__.__name__ == type(module.loss).__name__  # an attribute, not a method


@pytest.mark.parametrize(
    ("name", "needed"),
    [("ema_codec", "LatentCodecModule"), ("ema_denoiser", "LatentDiffusionModule"), ("gone", "module with gone")],
)
def test_missing_part_names_the_run_that_is_needed(written: Path, name: str, needed: str) -> None:
    with pytest.raises(UserError, match=f"last.ckpt holds a ContrastiveModule, but a {needed} is needed here: give"):
        load_part(written, name)


def test_edited_weights_are_noticed(written: Path, tmp_path: Path) -> None:
    state = torch.load(find_checkpoint(written), weights_only=True)["state_dict"]
    name = "encoder.clip.token_embedding.weight"
    for edited in ({**state, "stray": torch.zeros(1)}, {**state, name: state[name][:5]}, {}):
        with pytest.raises(UserError, match="weights and config inside do not fit"):
            load_module(changed(written, tmp_path, state_dict=edited))


def test_config_that_cannot_be_rebuilt_says_why(written: Path, tmp_path: Path) -> None:
    recipe = checkpoint_config(read_checkpoint(written))
    recipe["model"]["init_args"]["loss"]["class_path"] = "my_lab.gone.Loss"
    file = changed(written, tmp_path, evidence={"config": yaml.safe_dump(recipe)})
    with pytest.raises(UserError, match=r"cannot be rebuilt here \(.*my_lab") as caught:
        load_module(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", ["", "- a", "model: 3", "{unclosed", 5])
def test_broken_config_inside_is_one_line(written: Path, tmp_path: Path, config: object) -> None:
    with pytest.raises(UserError, match=r"changed\.ckpt"):
        load_module(changed(written, tmp_path, evidence={"config": config}))


def test_kill_between_write_and_rename_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        AtomicCheckpointIO().save_checkpoint({"step": 2}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    AtomicCheckpointIO().save_checkpoint({"step": 3}, target)
    assert torch.load(target, weights_only=True) == {"step": 3}
    older, newer = (target.with_name(f"generation-{number:06d}.ckpt") for number in (1, 2))
    assert sorted(target.parent.iterdir()) == [older, newer, target] and newer.samefile(target)
    assert torch.load(older, weights_only=True) == {"step": 1}


def test_kill_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)

    def torn(content: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(torch, "save", torn)
        AtomicCheckpointIO().save_checkpoint({"step": 2}, target)
    assert torch.load(target, weights_only=True) == {"step": 1}

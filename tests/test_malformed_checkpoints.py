"""Checkpoints that somebody edited or made up: one line in every program, never a traceback."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys.recipes import CODEC_SECTION, clip_recipe, save_checkpoint

from data_tools.latents.latent_encoder import trained_image_size
from leam_mm import cli, finetune_plan
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import EVIDENCE, load_module, load_part
from leam_mm.codecs.pretrained_codec import PretrainedCodec, load_codec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.encoders.patch_features import open_patch_features
from leam_mm.errors import UserError
from leam_mm.release.release_folder import write_release


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sound")
    recipe = clip_recipe(folder, toy_shards, toy_tokenizer)
    content = torch.load(save_checkpoint(folder / "a.ckpt", recipe["model"]), weights_only=True)
    content[EVIDENCE] |= {"data": {"x": "ab"}, "samples_seen": 8, "versions": {}, "frozen": {}}
    energy = {"joules": 1.0, "coverage": "GPU", "source": "x", "seconds": 1.0, "cpu_seconds": 1.0}
    energy |= {"node_seconds": 1.0, "measured_node_seconds": 1.0}
    return content | {"callbacks": {"EnergyRecord": energy}, "pytorch-lightning_version": "2.6.0"}


def change(*path: Any, to: Any = None, drop: bool = False) -> Callable[[dict[str, Any]], Any]:
    """An edit of one entry."""

    def edit(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        if drop:
            del content[path[-1]]
        else:
            content[path[-1]] = to

    return edit


WEIGHT = "encoder.clip.token_embedding.weight"
ENERGY = ("callbacks", "EnergyRecord")
DEEP = "[" * 5000
KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no state_dict": change("state_dict", drop=True),
    "state_dict is a list": change("state_dict", to=[1]),
    "state_dict is empty": change("state_dict", to={}),
    "a weight is a number": change("state_dict", WEIGHT, to=3),
    "a weight is a list": change("state_dict", WEIGHT, to=[[0.5]]),
    "a weight has another shape": change("state_dict", WEIGHT, to=torch.zeros(2, 2)),
    "a weight is an integer": change("state_dict", WEIGHT, to=torch.zeros(1, dtype=torch.int64)),
    "a weight is sparse": change("state_dict", WEIGHT, to=torch.zeros(2, 2).to_sparse()),
    "a weight is complex": change("state_dict", WEIGHT, to=torch.zeros(2, 2, dtype=torch.complex64)),
    "a name is a number": change("state_dict", 5, to=torch.zeros(2)),
    "evidence is a list": change(EVIDENCE, to=[1]),
    "evidence is a text": change(EVIDENCE, to="leam"),
    "evidence is nothing": change(EVIDENCE, to=None),
    "evidence is a tensor": change(EVIDENCE, to=torch.zeros(2)),
    "no config": change(EVIDENCE, "config", drop=True),
    "config is a number": change(EVIDENCE, "config", to=5),
    "config is a mapping": change(EVIDENCE, "config", to={"model": {}}),
    "config is empty": change(EVIDENCE, "config", to=""),
    "config is no YAML": change(EVIDENCE, "config", to="{a: [b"),
    "config is deep": change(EVIDENCE, "config", to=DEEP),
    "config is huge": change(EVIDENCE, "config", to="model: {}\n#" + "x" * (2 << 20)),
    "config is a list": change(EVIDENCE, "config", to="- model"),
    "config constructs an object": change(EVIDENCE, "config", to="model: !!python/object/apply:os.system [exit]"),
    "model is a text": change(EVIDENCE, "config", to="model: x"),
    "model is nothing": change(EVIDENCE, "config", to="model: null"),
    "model has no class": change(EVIDENCE, "config", to="model: {init_args: {}}"),
    "init_args is a list": change(EVIDENCE, "config", to="{model: {class_path: a.b, init_args: [1]}}"),
    "data is a text": change(EVIDENCE, "config", to="{model: {class_path: a.b}, data: x}"),
    "image is a list": change(EVIDENCE, "config", to="{model: {class_path: a.b}, data: {init_args: {image: [1]}}}"),
    "roots are a list": change(EVIDENCE, "data", to=["ab"]),
    "samples_seen is a text": change(EVIDENCE, "samples_seen", to="many"),
    "versions are a text": change(EVIDENCE, "versions", to="new"),
    "frozen is a list": change(EVIDENCE, "frozen", to=["clip"]),
    "a frozen part is a text": change(EVIDENCE, "frozen", "clip", to="path"),
    "a frozen digest is a number": change(EVIDENCE, "frozen", "clip", to={"sha256": 3}),
    "pretrained is a text": change(EVIDENCE, "pretrained", to="weights"),
    "callbacks are a list": change("callbacks", to=[1]),
    "energy is a text": change(*ENERGY, to="much"),
    "joules are a text": change(*ENERGY, "joules", to="many"),
    "seconds are a list": change(*ENERGY, "seconds", to=[1]),
    "seconds are missing": change(*ENERGY, to={"joules": 5}),
}
HARMLESS = {"seconds are missing"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_checkpoint_is_one_line(tmp_path: Path, sound: dict[str, Any], kind: str) -> None:
    content = copy.deepcopy(sound)
    KINDS[kind](content)
    for name in ("", "codec", "clip", "generator"):
        (tmp_path / name).mkdir(exist_ok=True)
        torch.save(content, tmp_path / name / "last.ckpt")
    programs: dict[str, Callable[[], object]] = {
        "evaluate": lambda: load_module(tmp_path, ContrastiveModule),
        "load_codec": lambda: load_codec(tmp_path),
        "load_part": lambda: load_part(tmp_path, "ema_encoder"),
        "patch features": lambda: open_patch_features(str(tmp_path)),
        "encode_latents": lambda: trained_image_size(tmp_path),
        "release": lambda: write_release(tmp_path / "out", "x", "MIT", tmp_path),
        "finetune_plan": lambda: finetune_plan.main(["--base", str(tmp_path), "--run", str(tmp_path / "plan")]),
    }
    refused = 0
    for program, call in programs.items():
        try:
            call()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, program
    assert refused >= (1 if kind in HARMLESS else 4)
    assert kind in HARMLESS or not (tmp_path / "out").exists()


RESUMED = {
    "a weight is a list": KINDS["a weight is a list"],
    "version is a number": change("pytorch-lightning_version", to=3),
    "no optimizer": change("optimizer_states", drop=True),
    "groups of an optimizer are missing": change("optimizer_states", 0, to={"state": {}}),
    "a loop is a text": change("loops", "fit_loop", to="x"),
    "no model_class": change(EVIDENCE, "model_class", drop=True),
}


def test_a_run_does_not_resume_from_a_malformed_checkpoint(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=8)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    cli.main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    for kind, edit in RESUMED.items():
        edited = copy.deepcopy(content)
        edit(edited)
        torch.save(edited, file)
        with pytest.raises(UserError) as caught:
            cli.main(["fit", "--config", str(tmp_path / "recipe.yaml"), "--max_samples", "16"])
        assert "\n" not in str(caught.value) and "last.ckpt" in str(caught.value), kind


def test_config_of_a_codec_of_the_wrong_type_is_one_line(tmp_path: Path) -> None:
    load_codec(save_checkpoint(tmp_path / "codec.ckpt", CODEC_SECTION)).save(tmp_path / "vae")
    assert isinstance(load_codec(tmp_path / "vae"), PretrainedCodec)
    file = tmp_path / "vae" / "config.json"
    whole = json.loads(file.read_text())
    changes = [("latent_channels", value) for value in ("four", 5, None, -1, [4])]
    changes += [("scaling_factor", "x"), ("decoder_block_out_channels", 3), ("encoder_block_out_channels", [8])]
    texts = [json.dumps({**whole, key: value}) for key, value in changes]
    for text in [*texts, "", "[]", "3", '{"_class_name": ["AutoencoderKL"]}', DEEP]:
        file.write_text(text)
        with pytest.raises(UserError) as caught:
            load_codec(tmp_path / "vae")
        assert "\n" not in str(caught.value) and str(tmp_path / "vae") in str(caught.value), text


def test_frozen_parts_without_a_record_are_one_line(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "codec.ckpt", CODEC_SECTION)
    parts = FrozenParts(codec=str(tmp_path / "codec.ckpt"))
    parts.recorded = {}  # as a checkpoint may say
    with pytest.raises(UserError, match="has changed since this generator was trained"):
        parts.latent_codec(4)

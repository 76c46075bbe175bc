"""A stranger's checkpoint, with code beside it: no program imports that code, unless a person trusts it by name."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys.recipes import CODEC_SECTION, ROOT, clip_recipe, save_checkpoint

import evaluate
from data_tools import embed_shards, encode_latents, vet_shards
from leam_mm import cli, finetune_plan
from leam_mm.captions.caption_encoders import open_caption_encoder
from leam_mm.checkpoint import EVIDENCE, build_module, load_module, load_part
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.encoders.patch_features import open_patch_features
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.files import file_sha256
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.recorded_classes import MODEL_CLASSES, TRUST, check_classes, only_classes_of, trust_modules
from leam_mm.release import __main__ as release
from leam_mm.release import reconstruct_ema

CODE = """
from pathlib import Path
from leam_mm.losses.contrastive import InfoNCE
Path(__file__).with_name("ran").touch()
class Loss(InfoNCE): pass
Module = Rule = Process = Loss
"""


class NoRunError(Exception):
    """Ends a program before it trains."""


FOREIGN = {"class_path": "evil_module.Loss"}


class Opens(Evaluator):
    """An evaluator that only opens the encoder."""

    def run(self, context: EvaluationContext) -> list[Metric]:
        context.require_clip()
        return [Metric("opened", 1.0, None, None, "count", 1)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> dict[str, Any]:
    """Content of a sound checkpoint of an encoder."""
    folder = tmp_path_factory.mktemp("sound")
    recipe = clip_recipe(folder, toy_shards, toy_tokenizer)
    return torch.load(save_checkpoint(folder / "clip.ckpt", recipe["model"]), weights_only=True)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sound: dict[str, Any]) -> Iterator[Path]:
    """A folder with code and a checkpoint that names it; the folder is the current one and the first on the path."""
    (tmp_path / "evil_module.py").write_text(CODE)
    write(tmp_path / "last.ckpt", sound, loss=FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv(TRUST, "")
    yield tmp_path
    sys.modules.pop("evil_module", None)


def write(path: Path, sound: dict[str, Any], model: Any = None, evidence: Any = (), **settings: Any) -> Path:
    """The sound checkpoint with other settings of its model, or another model."""
    config = yaml.safe_load(sound[EVIDENCE]["config"])
    config["model"]["init_args"] |= settings
    config["model"] = model or config["model"]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({**sound, EVIDENCE: {**sound[EVIDENCE], "config": yaml.safe_dump(config), **dict(evidence)}}, path)
    return path


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "evil_module" not in sys.modules and not Path("ran").exists()
    return str(caught.value)


def programs(folder: Path, shards: Path) -> dict[str, Callable[[], object]]:
    """Everything that opens a checkpoint or a list of rules, on the hostile folder."""
    here, out = str(folder), str(folder / "out")
    evaluators = {"evaluators": [{"class_path": f"{__name__}.Opens"}], "output": out, "clip": here, "device": "cpu"}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(evaluators))
    (folder / "rules.yaml").write_text("rules: [{class_path: evil_module.Rule}]")
    (folder / "words.yaml").write_text("rules: [evil_module.Rule]")
    vetting = ["--shards", str(shards), "--output", out, "--rules"]
    encoding = ["--shards", str(shards), "--output", out, "--clip", here, "--codec"]
    return {
        "evaluate": lambda: evaluate.main(["--config", "evaluate.yaml"]),
        "release": lambda: release.main(["build", "--clip", here, "--name", "x", "--output", out]),
        "reconstruct_ema": lambda: reconstruct_ema.main(["--run", here, "--widths", "0.1"]),
        "encode_latents": lambda: encode_latents.main([*encoding, here]),
        "embed_shards": lambda: embed_shards.main(["--shards", str(shards), "--teacher", here, "--output", out]),
        "vet_shards": lambda: vet_shards.main([*vetting, "rules.yaml"]),
        "vet_shards, a bare name": lambda: vet_shards.main([*vetting, "words.yaml"]),
        "load_codec": lambda: load_codec(folder),
        "open_caption_encoder": lambda: open_caption_encoder(folder),
        "open_patch_features": lambda: open_patch_features(here),
        "load_part": lambda: load_part(folder, "ema_encoder"),
    }


def test_no_program_imports_code_beside_a_checkpoint(hostile: Path, toy_shards: Path) -> None:
    for name, call in programs(hostile, toy_shards).items():
        line = refused(call)
        assert "evil_module" in line, f"{name}: {line}"
        assert "--trust evil_module" in line or "words.yaml" in line, f"{name}: {line}"
    assert not (hostile / "out").exists() or not any((hostile / "out").iterdir())


def test_a_person_trusts_a_module_by_name(hostile: Path, toy_shards: Path) -> None:
    evaluators = programs(hostile, toy_shards)
    assert "evaluate" in evaluators
    evaluate.main(["--config", "evaluate.yaml", "--trust", "evil_module"])
    assert (hostile / "ran").exists() and isinstance(load_module(hostile).loss, InfoNCE)
    with pytest.raises(UserError, match=r"--trust 'a/b' is not the name of a module"):
        trust_modules("my_lab,a/b")


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "evil_module.Module"},
        {"model": {"class_path": "evil_module.Module"}},
        {"loss": "evil_module.Loss"},
        {"loss": {"class_path": "evil_module"}},
        {"loss": {"class_path": 3}},
        {"loss": {"class_path": ["evil_module.Loss"]}},
        {"optimizer": "evil_module.Loss"},
        {"optimizer": {"class_path": "os.system", "init_args": {"command": "touch ran"}}},
        {"optimizer": "os.system"},
        {"optimizer": {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}},
        {"optimizer": {"class_path": "leam_mm.files.os.system", "init_args": {"command": "touch ran"}}},
        {"optimizer": {"class_path": "leam_mm.optim.ema.torch.hub.load", "init_args": {"repo_or_dir": "."}}},
        {"loss": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "."}}},
        {"encoder": {"class_path": "leam_mm.checkpoint.load_part", "init_args": {"path": "other.ckpt", "name": "x"}}},
        {"encoder": "evil_module.Module"},
        {"layer_decay": {"class_path": "evil_module.Module"}},
        {"schedule": {"class_path": "evil_module.Module"}},
        {"schedule": {"warmup_steps": {"class_path": "evil_module.Module"}}},
        {"loss": {"class_path": "leam_mm.losses.contrastive.InfoNCE", "dict_kwargs": {"x": FOREIGN}}},
    ],
)
def test_no_way_of_naming_it_works(hostile: Path, sound: dict[str, Any], settings: dict[str, Any]) -> None:
    file = write(hostile / "last.ckpt", sound, **settings)
    assert "last.ckpt: the model of its config cannot be rebuilt here" in refused(lambda: load_module(file))


def test_a_function_that_returns_a_module_is_not_called(hostile: Path, sound: dict[str, Any]) -> None:
    save_checkpoint(hostile / "private.ckpt", CODEC_SECTION)
    model = {"class_path": "leam_mm.codec_module.LatentCodecModule", "init_args": {}}
    model["init_args"] = {
        "codec": {
            "class_path": "leam_mm.codecs.pretrained_codec.load_codec",
            "init_args": {"path": str(hostile / "private.ckpt")},
        }
    }
    assert "is not a class of" in refused(lambda: load_module(write(hostile / "last.ckpt", sound, model=model)))


def test_no_other_file_is_read_in_place_of_a_class(hostile: Path) -> None:
    (hostile / "secret.yaml").write_text("kl_weight: 0.5\n")
    section = {**CODEC_SECTION, "init_args": {**CODEC_SECTION["init_args"], "losses": str(hostile / "secret.yaml")}}
    with pytest.raises(Exception, match="secret"):
        build_module(section)
    section["init_args"]["losses"] = {"kl_weight": 0.0}  # a value in place of the file is taken
    build_module(section)


@pytest.mark.parametrize("name", ["hf-hub:evil/tower", "local-dir:.", "timm/test_resnet", "../x", "no_such_model"])
def test_names_of_towers_reach_no_hub_and_no_folder(
    hostile: Path, sound: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("timm.models._hub", "open_clip.factory"):
        for function in ("download_from_hf", "_get_hf_config", "load_model_config_from_hf"):
            monkeypatch.setattr(f"{module}.{function}", lambda *_: pytest.fail("asked the hub"), raising=False)
    encoder = yaml.safe_load(sound[EVIDENCE]["config"])["model"]["init_args"]["encoder"]
    tower = {**encoder, "vision": {"image_size": 16, "timm_model_name": name}}
    assert "is no model of timm" in refused(lambda: load_module(write(hostile / "a.ckpt", sound, encoder=tower)))
    (hostile / "weights.pt").touch()
    arguments = {"weights": "weights.pt", "model": name}
    zoo = {"class_path": "leam_mm.encoders.pretrained_encoder.PretrainedEncoder", "init_args": arguments}
    assert "open_clip has no model" in refused(lambda: load_module(write(hostile / "b.ckpt", sound, encoder=zoo)))


def test_a_plan_of_fine_tuning_takes_no_foreign_class_over(hostile: Path, sound: dict[str, Any]) -> None:
    frozen = {}
    for name in ("clip", "codec"):
        file = write(hostile / "base" / name / "last.ckpt", sound)
        frozen[name] = {"path": "then", "sha256": file_sha256(file)}
    evidence = {"frozen": {**frozen, "latents": {"sha256": "0", "statistics": {}}}}
    for process in (FOREIGN, "evil_module.Process", {"class_path": "leam_mm.diffusion.process.torch.load"}):
        settings = {"process": process, "latent_size": 4, "frozen": {"clip": "a", "codec": "b"}}
        write(hostile / "base" / "generator" / "last.ckpt", sound, evidence=evidence, **settings)
        line = refused(lambda: finetune_plan.main(["--base", "base", "--run", "run"]))
        assert "the process of its config cannot be taken over" in line


def test_training_takes_no_settings_from_a_checkpoint(
    hostile: Path, sound: dict[str, Any], toy_shards: Path, toy_tokenizer: Path
) -> None:
    recipe = clip_recipe(hostile / "run", toy_shards, toy_tokenizer)
    (hostile / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    parameters = {"_class_path": "evil_module.Module", "x": 1}
    torch.save({**sound, "hyper_parameters": parameters}, hostile / "last.ckpt")
    line = refused(lambda: cli.main(["fit", "--config", "recipe.yaml", "--ckpt_path", "last.ckpt"]))
    assert "last.ckpt cannot be restored here (" in line


def test_a_recipe_is_the_persons_own(
    hostile: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = clip_recipe(hostile / "run", toy_shards, toy_tokenizer)
    recipe["model"]["init_args"]["loss"] = FOREIGN
    (hostile / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(cli.LeamCLI, "_run_subcommand", lambda *_: (_ for _ in ()).throw(NoRunError))
    with pytest.raises(NoRunError):
        cli.main(["fit", "--config", "recipe.yaml"])
    assert os.environ[TRUST].split(",").count("evil_module.Loss") == 1
    load_module(hostile)  # this run may open a checkpoint with its own loss


def test_a_config_that_expands_without_end_is_refused() -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    for text in ("\n".join(lines), "a: &a [*a]"):
        with pytest.raises(UserError, match="more than 100000 entries"):
            check_classes(yaml.safe_load(text), MODEL_CLASSES)


def test_what_a_person_configures_is_not_restricted(hostile: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=InfoNCE)
    with pytest.raises(Exception, match="evil_module"), only_classes_of(MODEL_CLASSES):
        parser.parse_object({"loss": "evil_module.Loss"})
    parser.parse_object({"loss": "evil_module.Loss"})
    assert (hostile / "ran").exists()


def test_a_module_in_the_current_folder_stands_in_for_no_library(tmp_path: Path) -> None:
    for name in ("yaml", "torch", "argparse", "my_module"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\nraise SystemExit(9)\n")
    # As if leam_mm were installed: its folder is on the path, but not the current one.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "leam_mm.release", "build", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "--trust" in done.stdout
    assert not (tmp_path / "ran").exists()

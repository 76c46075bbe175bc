"""The plan of a fine-tuning run: what it takes over from a base, and that the programs parse it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from toys.command_line import CONFIGS, printed_config

import evaluate
from leam_mm.checkpoint import EVIDENCE
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.finetune_plan import Split, expectation, latent_statistics, main

STATISTICS = {"shift": 0.0, "scale": 2.0, "mean": [0.0] * 4, "std": [0.5] * 4, "count": 7}
MODEL = {
    "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow", "init_args": {"shift": 2.5}},
    "latent_size": 8,
    "frozen": {"clip": "somewhere/clip", "codec": "somewhere/codec"},
}

KIND: dict[str, Any] = {
    "class_path": "leam_mm.codecs.latent_codec.KLCodec",
    "init_args": {"latent_channels": 4, "widths": [32, 64], "layers": 1},
}


def write_base(base: Path, **changes: Any) -> Path:
    """Three checkpoints of a pipeline; text tower and codec are digests and recipes only."""
    frozen: dict[str, Any] = {"latents": {"sha256": "0" * 64, "statistics": STATISTICS}}
    for name in ("clip", "codec", "generator"):
        file = base / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        model = {"init_args": {"codec": KIND}} if name == "codec" else {"init_args": {**MODEL, **changes}}
        config = yaml.safe_dump({"model": model, "data": {"init_args": {"image": {"image_size": 48}}}})
        torch.save({"name": name, EVIDENCE: {"config": config, "frozen": frozen}}, file)
        frozen[name] = {"path": "then", "sha256": file_sha256(file)}
    return base


def test_the_plan_follows_from_the_base_and_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, run = write_base(tmp_path / "base"), tmp_path / "run"
    main(["--base", str(base), "--run", str(run), "--language", "de"])
    assert json.loads((run / "plan" / "codec_statistics.json").read_text()) == STATISTICS
    files = [CONFIGS / "finetune_generator.yaml", CONFIGS / "overlay_generator_lora.yaml", run / "plan" / "recipe.yaml"]
    for chosen in (files, [files[0], files[2]]):
        config = printed_config(capsys, *chosen)
        settings = config["model"]["init_args"]
        assert settings["process"]["init_args"]["shift"] == 2.5 and settings["latent_size"] == 8
        frozen = {"clip": str(base / "clip"), "codec": str(run / "codec"), "latents": str(run / "plan")}
        assert settings["frozen"] == frozen
        denoiser = settings["denoiser"]["init_args"]
        assert denoiser["weights"] == str(base / "generator")
        assert (denoiser["low_rank"] is None) == (len(chosen) == 2)
        assert config["trainer"]["default_root_dir"] == str(run / "generator")
        assert config["data"]["init_args"]["validation"] == str(run / "latents" / "held_out")


def test_caption_tower_of_the_base_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = {"context_length": 32, "vocab_size": 2048, "width": 128, "heads": 4, "layers": 2}
    resolved = {"class_path": "leam_mm.captions.caption_tower.CaptionTower", "init_args": {"text": text}}
    base, run = write_base(tmp_path / "base", caption_tower=resolved), tmp_path / "run"
    main(["--base", str(base), "--run", str(run)])
    config = printed_config(capsys, CONFIGS / "finetune_generator.yaml", run / "plan" / "recipe.yaml")
    tower = config["model"]["init_args"]["caption_tower"]["init_args"]
    assert (tower["text"], tower["weights"], tower["trained"]) == (text, str(base / "generator"), True)


def test_base_is_rehearsed_if_its_latents_exist(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, run = write_base(tmp_path / "base"), tmp_path / "run"

    def mixed(*words: str) -> Any:
        main(["--base", str(base), "--run", str(run), *words])
        return yaml.safe_load((run / "plan" / "recipe.yaml").read_text())["data"]["init_args"]["train"]

    assert mixed() == str(run / "latents" / "train") and "no training samples of the base" in caplog.text
    old = base / "latents" / "train"
    old.mkdir(parents=True)
    (old / "codec_statistics.json").write_text(json.dumps(STATISTICS))
    own, rehearsed = mixed("--rehearse", "0.4")
    assert (own["path"], rehearsed["path"]) == (str(run / "latents" / "train"), str(old))
    assert (own["weight"], rehearsed["weight"]) == (0.6, 0.4)
    assert mixed("--rehearse", "0") == own["path"]
    (old / "codec_statistics.json").write_text(json.dumps({**STATISTICS, "scale": 3.0}))
    with pytest.raises(UserError, match="normalised with other statistics"):
        mixed()
    with pytest.raises(UserError, match="--rehearse is 1"):
        mixed("--rehearse", "1")


def test_captions_are_stored_as_those_of_the_base(tmp_path: Path) -> None:
    """A batch mixes both, and a caption tower reads no states."""
    tower = {"class_path": "leam_mm.captions.caption_tower.CaptionTower"}
    tower["init_args"] = {"text": {"context_length": 32, "vocab_size": 2048, "width": 128, "heads": 4, "layers": 2}}  # type: ignore[assignment]
    bases = {name: write_base(tmp_path / name, caption_tower=found) for name, found in (("a", tower), ("b", None))}

    def stored(name: str, *words: str) -> Any:
        main(["--base", str(bases[name]), "--run", str(tmp_path / "run"), *words])
        return yaml.safe_load((tmp_path / "run" / "plan" / "latents.yaml").read_text())

    texts, states = {"texts_only": True}, {"text_encoders": [f"clip={bases['b'] / 'clip'}"]}
    assert (stored("a"), stored("b")) == (texts, states)
    for base, encoders in ((bases["a"], ["0" * 64]), (bases["b"], [])):
        old = base / "latents" / "train"
        old.mkdir(parents=True)
        (old / "codec_statistics.json").write_text(json.dumps(STATISTICS))
        (old / "encoding.json").write_text(json.dumps({"text_sha256": encoders}))
    assert stored("a") == {"text_encoders": [f"clip={bases['a'] / 'clip'}"]} and stored("b") == texts
    assert stored("a", "--rehearse", "0") == texts and stored("b", "--rehearse", "0") == states
    (bases["b"] / "latents" / "train" / "encoding.json").write_text("[]")
    with pytest.raises(UserError, match="how captions are stored"):
        stored("b")


def test_decoder_also_learns_from_images_of_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, run = write_base(tmp_path / "base"), tmp_path / "run"

    def planned() -> Any:
        main(["--base", str(base), "--run", str(run), "--rehearse", "0.4"])
        return printed_config(capsys, CONFIGS / "finetune_codec.yaml", run / "plan" / "codec.yaml")

    config = planned()
    settings, data = config["model"]["init_args"], config["data"]["init_args"]
    assert (settings["weights"], settings["trained"]) == (str(base / "codec"), "decoder")
    assert settings["codec"]["class_path"] == KIND["class_path"]
    assert settings["codec"]["init_args"]["widths"] == KIND["init_args"]["widths"]
    assert config["trainer"]["default_root_dir"] == str(run / "codec")
    assert data["image"]["init_args"]["image_size"] == 48 and data["train"] == str(run / "shards" / "train")
    (base / "shards" / "train").mkdir(parents=True)
    (base / "shards" / "train" / "manifest.jsonl").write_text("")
    own, old = planned()["data"]["init_args"]["train"]
    assert (own["path"], own["weight"]) == (str(run / "shards" / "train"), 0.6)
    assert (old["path"], old["weight"]) == (str(base / "shards" / "train"), 0.4)


def test_task_of_the_base_is_measured_where_possible(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(evaluate.evaluate, as_positional=False)
    base = write_base(tmp_path / "base")

    def measured(run: Path) -> list[str]:
        main(["--base", str(base), "--run", str(run), "--language", "de"])
        content = yaml.safe_load((run / "plan" / "evaluate.yaml").read_text())
        judged, settings = (each.init_args for each in parser.parse_object(content).evaluators)
        assert judged.language == "de" and str(judged.pictures) == str(run / "shards" / "train")
        assert len(judged.features) == 2 and str(judged.base) == str(base / "generator")
        assert settings.evaluators[0].init_args.languages == ["de"]
        return [f"{each.class_path.rpartition('.')[2]} {each.init_args.get('name')}" for each in settings.evaluators]

    assert measured(tmp_path / "plain") == ["Generation own_pictures"]
    (base / "shards" / "test").mkdir(parents=True)
    assert measured(tmp_path / "shards") == ["Generation own_pictures", "Generation base_pictures"]
    (base / "scenes").mkdir()
    (base / "scenes" / "scenes.json").write_text("{}")
    assert measured(tmp_path / "scenes") == ["Generation own_pictures", "Compositional None"]


def test_inconsistent_base_is_refused(tmp_path: Path) -> None:
    several = write_base(tmp_path / "several", frozen={"clip": ["a", "b"], "codec": "c"})
    with pytest.raises(UserError, match="was not trained with one clip"):
        main(["--base", str(several), "--run", str(tmp_path / "run")])
    base = write_base(tmp_path / "base")
    torch.save({"another": 1}, base / "codec" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"codec is not the codec that .*generator was trained with"):
        main(["--base", str(base), "--run", str(tmp_path / "run")])
    with pytest.raises(UserError, match="no checkpoint at"):
        main(["--base", str(tmp_path), "--run", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_without_latents_the_codecs_own_statistics_count(tmp_path: Path) -> None:
    from toys.recipes import CODEC_SECTION, save_checkpoint

    (tmp_path / "codec").mkdir()
    path = save_checkpoint(tmp_path / "codec" / "last.ckpt", CODEC_SECTION)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["codec.latent_count"].fill_(9)
    torch.save(checkpoint, path)
    assert latent_statistics(tmp_path, {})["count"] == 9


def test_without_held_out_images_those_of_the_training_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = write_base(tmp_path / "base"), tmp_path / "run"
    (run / "tables").mkdir(parents=True)
    split = run / "tables" / "split.json"
    split.write_text(json.dumps({"train": 2, "held_out": 0}))
    main(["--base", str(base), "--run", str(run)])
    assert "2 images to train on, so few that" in capsys.readouterr().out
    for overlay in ("recipe", "codec"):
        config = printed_config(
            capsys,
            CONFIGS / f"finetune_{overlay.replace('recipe', 'generator')}.yaml",
            run / "plan" / f"{overlay}.yaml",
        )
        assert config["data"]["init_args"]["validation"] is None
    _, settings = yaml.safe_load((run / "plan" / "evaluate.yaml").read_text())["evaluators"]
    settings = settings["init_args"]
    assert settings["seen"] and settings["held_out"] == str(run / "shards" / "train")
    assert settings["latents"] == str(run / "latents" / "train")
    assert settings["evaluators"][0]["init_args"]["prompts_from"] == str(run / "shards" / "train")
    split.write_text(json.dumps({"train": 3, "held_out": 1}))
    main(["--base", str(base), "--run", str(run)])
    _, settings = yaml.safe_load((run / "plan" / "evaluate.yaml").read_text())["evaluators"]
    assert "seen" not in settings["init_args"]
    split.write_text("{}")
    with pytest.raises(UserError, match=r"split\.json holds no counts"):
        main(["--base", str(base), "--run", str(run)])


@pytest.mark.parametrize(
    "train, held_out, says, says_not",
    [
        (1, 0, ["1 image to train on", "mostly repeat it;", "the image trained on", "distances"], ["precision"]),
        (3, 1, ["3 images to", "mostly repeat them", "1 held-out image (no interval below 6)"], ["trained on"]),
        (48, 12, ["12 held-out images;", "Fréchet distance and precision, which take 200"], ["repeat", "interval"]),
        (240, 60, ["60 held-out images"], ["not measured", "repeat"]),
    ],
)
def test_what_is_learnt_and_measured_is_said_in_one_line(
    train: int, held_out: int, says: list[str], says_not: list[str]
) -> None:
    line = expectation(Split(train, held_out))
    assert all(part in line for part in says) and not any(part in line for part in says_not) and "\n" not in line

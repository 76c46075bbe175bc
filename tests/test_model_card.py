import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from test_open_clip_folder import run_without_us

from leam_mm.checkpoint import build_module, file_sha256
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.release.__main__ import main
from leam_mm.release.model_card import DataFacts, ReleaseFacts, StageFacts, energy_words, escape, model_card, table
from leam_mm.release.release_folder import EVIDENCE_FILE, base_facts

RECORD = {
    "joules": 7.2e6, "estimated_joules": None, "seconds": 3600.0, "node_seconds": 3600.0,
    "measured_node_seconds": 3600.0, "cpu_seconds": 7200.0, "samples": 640, "source": "a counter", "coverage": "node",
}  # fmt: skip


def metric(name: str, value: float | None = 0.5, **more: object) -> dict:
    row = {"name": name, "value": value, "low": 0.4, "high": 0.6, "unit": "fraction", "samples": 96, "note": ""}
    return row | more


def facts(**more: object) -> ReleaseFacts:
    stage = StageFacts("clip", 1234567, 640, "ab" * 32, {"cd" * 32: "train"}, RECORD, {"torch": "2"})
    return ReleaseFacts(**({"name": "a name", "licence": "Apache-2.0", "image_size": 32, "context_length": 12,
                            "stages": [stage]} | more))  # fmt: skip


def test_front_matter_holds_what_was_measured() -> None:
    card = model_card(
        facts(metrics=[metric("scenes/top1/de"), metric("scenes/top1/fr", None), metric("scenes/top1/mean")])
    )
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "open_clip"
    assert front["language"] == ["de"] and front["metrics"] == ["accuracy"]
    assert "diffusers" not in front["tags"]
    other = yaml.safe_load(model_card(facts(licence="LicenseRef-House: rules")).split("---\n")[1])
    assert other["license"] == "other" and other["license_name"] == "LicenseRef-House: rules"


def test_language_rows_carry_value_interval_and_samples() -> None:
    card = model_card(facts(metrics=[metric("scenes/top1/de"), metric("scenes/top1/mt", None, low=None, high=None)]))
    assert "| German (de) | 50.0 % | 40.0 % to 60.0 % | 96 |" in card
    assert "| Maltese (mt) | not measured | none | 96 |" in card
    assert "without a measured result" in card and "Maltese" in card.split("## Limits")[1]


def test_lines_for_editing_are_shown_for_straight_paths_only() -> None:
    flow, other = (model_card(facts(drawn_size=32, straight_paths=straight)) for straight in (True, False))
    assert "image-to-image" in flow and "image-to-image" not in other
    assert "generator" in other and "num_inference_steps" in other  # it still says how to draw


def test_nothing_unknown_becomes_a_number() -> None:
    stage = StageFacts("clip", 10, None, "ab" * 32, {}, None, {})
    card = model_card(facts(stages=[stage]))
    assert "| clip | 10 | not measured |" in card
    assert "| clip | not measured | not measured | not measured | not measured |" in card
    assert "## Results\n\nNot measured." in card
    assert "1.00 h | 2.00 h" in model_card(facts())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "2 kWh (node)"),
        ({"measured_node_seconds": 900.0}, "2 kWh (node), measured in 25% of the time"),
        ({"joules": None}, "not measured"),
        ({"joules": None, "estimated_joules": 3.6e5}, "0.1 kWh, estimated from processor time"),
    ],
)
def test_energy_words_name_gaps_and_estimates(change: dict, expected: str) -> None:
    assert energy_words(RECORD | change) == expected


def test_strangers_strings_cannot_break_out() -> None:
    hostile = "x | <script>alert(1)</script> [a](http://b) `c`\n## heading"
    row = table(["a"], [[hostile]]).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", row)) == 2 and "<script>" not in row and "](" not in row
    entry = DataFacts("train", "cd" * 32, 5, {hostile: 5}, {"synthetic": 5})
    card = model_card(facts(name=hostile, data=[entry], metrics=[metric("a/b", note=hostile)]))
    assert "<script>" not in card.split("---\n", 2)[2] and "\n## heading" not in card
    assert escape("ä ő α") == "ä ő α"


def test_weights_that_a_training_started_from_are_named_with_their_licence() -> None:
    card = model_card(facts())
    assert "started from" not in card and "base_model" not in card
    stage = StageFacts("clip", 10, 640, "ab" * 32, {}, None, {}, {"weights": "ViT-B-32:x", "sha256": "ef" * 32})
    other = {"weights": "runs/base", "sha256": "12" * 32, "name": "lab/base", "licence": "EUPL-1.2 | <b>"}
    card = model_card(facts(stages=[stage, replace(stage, kind="generator", base=other)], drawn_size=32, low_rank=True))
    assert f"| clip | ViT-B-32:x | not stated | {'ef' * 32} |" in card
    assert f"| generator | lab/base | EUPL-1.2 &#124; &lt;b&gt; | {'12' * 32} |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["lab/base"]
    assert "peft.PeftModel.from_pretrained" in card
    evidence = {"pretrained": {"weights": "/data/me/runs/base/generator", "sha256": "12" * 32, "config": {"depth": 1}}}
    assert base_facts(evidence) == {"weights": "base/generator", "sha256": "12" * 32}
    assert base_facts({}) == {}


def write_checkpoint(folder: Path, section: dict, data: dict[str, str], seed: int, **extra: object) -> Path:
    """A checkpoint as train.py writes it, with fresh weights."""
    torch.manual_seed(seed)
    module = build_module(section)
    for name, value in module.state_dict().items():
        if name.endswith("latent_count"):
            value.fill_(16)
    evidence = {"config": yaml.safe_dump({"model": section}), "data": data, "samples_seen": 640, "versions": {}}
    evidence |= {"model_class": section["class_path"], **extra}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    state = {"state_dict": module.state_dict(), "leam_mm": evidence, "callbacks": {"EnergyRecord": RECORD}}
    torch.save(state, path)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Path:
    from conftest import clip_recipe, write_toy_shards

    root = tmp_path_factory.mktemp("runs")
    shards = write_toy_shards(root / "shards", samples=8)
    ledger = pa.table({"licence": ["CC-BY-4.0"] * 8 + ["refused"], "kept": [True] * 8 + [False]})
    pq.write_table(ledger, shards / "ledger.parquet")
    data = {str(shards): ShardFolder(shards).merkle_root}
    clip = write_checkpoint(root / "clip", clip_recipe(root, shards, toy_tokenizer)["model"], data, seed=0)
    codec = {
        "class_path": "leam_mm.codec_module.LatentCodecModule",
        "init_args": {
            "codec": {
                "class_path": "leam_mm.models.latent_codec.DCCodec",
                "init_args": {"latent_channels": 4, "widths": [8, 8, 16], "layers": [0, 1, 1]},
            }
        },
    }
    codec_run = write_checkpoint(root / "codec", codec, data, seed=1)
    generator = {
        "class_path": "leam_mm.diffusion_module.LatentDiffusionModule",
        "init_args": {
            "denoiser": {
                "class_path": "leam_mm.models.denoiser.PRXDenoiser",
                "init_args": {"in_channels": 4, "context_dim": 32, "hidden_size": 32, "depth": 1, "num_heads": 2},
            },
            "process": {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"},
            "latent_size": 4,
            "clip": str(clip),
            "codec": str(codec_run),
        },
    }
    frozen = {
        name: {"path": "gone", "sha256": file_sha256(root / name / "checkpoints" / "last.ckpt")}
        for name in ("clip", "codec")
    }
    write_checkpoint(root / "generator", generator, {"latents": "ef" * 32}, seed=2, frozen=frozen)
    return root


def write_results(folder: Path, runs: Path, digest: str | None = None) -> Path:
    digest = digest or file_sha256(runs / "clip" / "checkpoints" / "last.ckpt")
    rows = [metric("toy/top1/de", 0.25), metric("toy/top1/de", 0.75), metric("toy/top1/en")]
    rows = [row | {"checkpoints": {"clip": {"sha256": digest}, "generator": None}} for row in rows]
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.jsonl"


def test_release_is_complete_and_its_card_s_code_runs_without_us(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "release"
    arguments = ["--clip", str(runs / "clip"), "--generator", str(runs / "generator"), "--output", str(output)]
    arguments += ["--name", "toy", "--results", str(write_results(tmp_path / "evaluation", runs))]
    main([*arguments, "--shards", str(runs / "shards")])
    evidence = json.loads((output / EVIDENCE_FILE).read_text())
    files = {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()}
    assert files == evidence["files"].keys() | {EVIDENCE_FILE}
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors", ".yaml", ".md"}
    assert all(file_sha256(output / name) == entry["sha256"] for name, entry in evidence["files"].items())
    assert evidence["stages"].keys() == {"clip", "generator", "codec"}
    card = (output / "README.md").read_text()
    assert ShardFolder(runs / "shards").merkle_root in card and "ef" * 32 in card
    assert "| shards | CC-BY-4.0 | 8 |" in card and "refused" not in card
    assert "| shards | synthetic | 8 |" in card  # not in the ledger, so counted in the samples
    assert "75.0 %" in card and "25.0 %" not in card
    config = yaml.safe_load((output / "configs" / "generator.yaml").read_text())
    assert config["model"]["init_args"]["latent_size"] == 4
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 4
    printed = run_without_us("\n".join(blocks), output)
    assert "tensor(" in printed
    assert all((output / f"{name}.png").is_file() for name in ("picture", "redrawn", "inpainted"))


def test_release_replaces_only_its_like_and_leaves_nothing_half_written(runs: Path, tmp_path: Path) -> None:
    arguments = ["--clip", str(runs / "clip"), "--name", "toy", "--output"]
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "picture.jpg").write_bytes(b"dear")
    with pytest.raises(UserError, match="no release"):
        main([*arguments, str(foreign)])
    assert (foreign / "picture.jpg").read_bytes() == b"dear"
    main([*arguments, str(tmp_path / "release")])
    (tmp_path / "release" / "stale").write_text("old")
    main([*arguments, str(tmp_path / "release")])
    assert not (tmp_path / "release" / "stale").exists()
    before = (tmp_path / "release" / EVIDENCE_FILE).read_bytes()
    with pytest.raises(UserError, match="another clip checkpoint"):
        main([*arguments, str(tmp_path / "release"), "--results", str(write_results(tmp_path / "e", runs, "00" * 32))])
    assert (tmp_path / "release" / EVIDENCE_FILE).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"holiday", "release", "e"}


def test_shards_of_another_training_are_refused(runs: Path, tmp_path: Path) -> None:
    from conftest import write_toy_shards

    other = write_toy_shards(tmp_path / "other", samples=4)
    with pytest.raises(UserError, match="no part of this release was trained on"):
        main(["--clip", str(runs / "clip"), "--name", "x", "--output", str(tmp_path / "r"), "--shards", str(other)])
    assert not (tmp_path / "r").exists()

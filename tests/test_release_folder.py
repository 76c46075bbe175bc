"""Whole releases: content of the folder, the card, and refused input."""

import json
import os
import re
import stat
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from toys.built_releases import toy_run
from toys.encoders import write_caption_encoder
from toys.pages import metric_row
from toys.recipes import clip_recipe, codec_section, generator_section
from toys.releases import BUILD
from toys.runs import run_without_us
from toys.shards import write_toy_shards

from leam_mm.captions.caption_encoders import encoder_file
from leam_mm.checkpoint import load_module
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.data.shard_index import ShardFolder
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.documents.contradictions import contradictions
from leam_mm.documents.write_documents import BY_LANGUAGE
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.model_address import load_generator
from leam_mm.release.__main__ import main
from leam_mm.release.licence_text import write_licence
from leam_mm.release.release_folder import EVIDENCE_FILE
from leam_mm.release.stage_facts import stated_licence


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    shards = write_toy_shards(root / "shards", samples=8)
    ledger = pa.table({"licence": ["CC-BY-4.0"] * 8 + ["refused"], "kept": [True] * 8 + [False]})
    pq.write_table(ledger, shards / "ledger.parquet")
    data = {str(shards): ShardFolder(shards).merkle_root}
    clip = toy_run(root / "clip", clip_recipe(root, shards, toy_tokenizer)["model"], data, seed=0)
    codec = toy_run(root / "codec", codec_section(), data, seed=1)
    generator = generator_section(clip, codec)
    frozen = {
        name: {"path": "gone", "sha256": file_sha256(root / name / "checkpoints" / "last.ckpt")}
        for name in ("clip", "codec")
    }
    toy_run(root / "generator", generator, {"latents": "ef" * 32}, seed=2, frozen=frozen)
    return root


def write_results(folder: Path, runs: Path, digest: str | None = None) -> Path:
    digest = digest or file_sha256(runs / "clip" / "checkpoints" / "last.ckpt")
    rows = [metric_row("toy/top1/de", 0.25), metric_row("toy/top1/de", 0.75), metric_row("toy/top1/en")]
    rows = [row | {"checkpoints": {"clip": {"sha256": digest}, "generator": None}} for row in rows]
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.jsonl"


def test_release_is_complete_and_the_code_of_its_card_runs_without_us(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "release"
    arguments = [*BUILD, "--clip", str(runs / "clip"), "--generator", str(runs / "generator"), "--output", str(output)]
    arguments += ["--name", "toy", "--results", str(write_results(tmp_path / "evaluation", runs))]
    main([*arguments, "--shards", str(runs / "shards")])
    evidence = json.loads((output / EVIDENCE_FILE).read_text())
    files = {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()}
    assert files == evidence["files"].keys() | {EVIDENCE_FILE}
    suffixes = {".json", ".jsonl", ".csv", ".safetensors", ".yaml", ".md"}
    assert {Path(file).suffix for file in files - {"LICENSE"}} <= suffixes
    documents = {*BY_LANGUAGE, "data_table.csv", "ml_bom.cdx.json", "croissant.json", "mof.yaml"}
    assert documents <= {Path(file).name for file in files if file.startswith("documents/")}
    assert (
        evidence["files"]["open_clip_model.safetensors"]["sha256"] in (output / "documents/ml_bom.cdx.json").read_text()
    )
    assert evidence["format"] == "leam_mm release 2"
    assert "Apache License" in (output / "LICENSE").read_text()
    assert all(file_sha256(output / name) == entry["sha256"] for name, entry in evidence["files"].items())
    assert evidence["stages"].keys() == {"clip", "generator", "codec"}
    card = (output / "README.md").read_text()
    assert contradictions(output) == []
    assert ShardFolder(runs / "shards").merkle_root in card and "ef" * 32 in card
    assert "| shards | CC-BY-4.0 | 8 |" in card and "refused" not in card
    assert "| shards | synthetic | 8 |" in card  # not in the ledger, so counted in the samples
    assert "75.0 %" in card and "25.0 %" not in card
    config = yaml.safe_load((output / "configs" / "generator.yaml").read_text())
    assert config["model"]["init_args"]["latent_size"] == 4
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 7 and evidence["formats"].keys() >= {"transformers", "sentence_transformers", "diffusers"}
    blocks = [block for block in blocks if "sentence_transformers" not in block or find_spec("sentence_transformers")]
    printed = run_without_us("\n".join(blocks), output)
    assert "tensor(" in printed
    assert all((output / f"{name}.png").is_file() for name in ("image", "redrawn", "inpainted"))


@pytest.mark.slow
def test_the_networks_are_exported_and_their_differences_recorded(runs: Path, tmp_path: Path) -> None:
    for library in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(library)
    output = tmp_path / "release"
    parts = ["--clip", str(runs / "clip"), "--generator", str(runs / "generator"), "--codec", str(runs / "codec")]
    main([*BUILD, *parts, "--name", "toy", "--output", str(output), "--onnx"])
    evidence = json.loads((output / EVIDENCE_FILE).read_text())
    assert len(evidence["onnx"]) == 6 and evidence["formats"]["onnx"] == "onnx"
    for record in evidence["onnx"]:
        assert record["max_difference"] < 1e-4 and f"onnx/{record['files'][0]}" in evidence["files"]


def test_a_text_encoder_of_transformers_is_released_with_its_stated_licence(runs: Path, tmp_path: Path) -> None:
    folder = write_caption_encoder(tmp_path / "lab" / "t5")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# An encoder\n")
    section = generator_section(folder, runs / "codec")
    section["init_args"]["denoiser"]["init_args"]["context_dim"] = 24
    frozen = {"clip": {"path": "gone", "sha256": encoder_file(folder)[1]}}
    frozen["codec"] = {"path": "gone", "sha256": encoder_file(runs / "codec")[1]}
    toy_run(tmp_path / "generator", section, {"latents": "ef" * 32}, seed=2, frozen=frozen)
    output = tmp_path / "release"
    main([*BUILD, "--generator", str(tmp_path / "generator"), "--output", str(output), "--name", "toy"])
    evidence = json.loads((output / EVIDENCE_FILE).read_text())
    stage = evidence["stages"]["text_encoder"]
    assert stage["base"]["licence"] == "apache-2.0" and stage["base"]["weights"] == "lab/t5"
    assert "| text encoder | lab/t5 | apache-2.0 |" in (output / "README.md").read_text()
    main(["verify", str(output)])
    expected = load_generator(tmp_path / "generator").sample(["ein Kreis"], seed=1, steps=2)
    torch.testing.assert_close(load_generator(output).sample(["ein Kreis"], seed=1, steps=2), expected)


def test_a_generator_is_released_alone(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "release"
    main(
        [
            *BUILD,
            "--generator",
            str(runs / "generator"),
            "--codec",
            str(runs / "codec"),
            "--name",
            "toy",
            "--output",
            str(output),
        ]
    )
    assert not (output / "open_clip_config.json").exists() and (output / "model_index.json").is_file()
    evidence = json.loads((output / EVIDENCE_FILE).read_text())
    assert evidence["stages"].keys() == {"generator", "codec"}
    card = (output / "README.md").read_text()
    assert (
        "open_clip" not in card
        and "pipeline_tag: text-to-image" in card
        and "holds a generator of images of 16 x 16" in card
    )
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    run_without_us("\n".join(blocks), output)
    assert (output / "image.png").is_file()
    with pytest.raises(UserError, match="give --clip, --generator or both"):
        main([*BUILD, "--name", "toy", "--output", str(tmp_path / "nothing")])


def test_release_replaces_only_a_release_and_leaves_nothing_half_written(runs: Path, tmp_path: Path) -> None:
    arguments = [*BUILD, "--clip", str(runs / "clip"), "--name", "toy", "--output"]
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


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_and_folders_have_the_permissions_that_the_umask_gives(runs: Path, tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        words = [*BUILD, "--generator", str(runs / "generator"), "--clip", str(runs / "clip"), "--name", "toy"]
        main([*words, "--output", str(tmp_path / "release")])
    finally:
        os.umask(before)
    for path in [tmp_path / "release", *(tmp_path / "release").rglob("*")]:
        allowed = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == allowed & ~umask, path


def test_the_folder_loads_from_any_directory(runs: Path, tmp_path: Path) -> None:
    """One folder for both libraries, as one repository of a hub is."""
    output = tmp_path / "release"
    words = ["--clip", str(runs / "clip"), "--generator", str(runs / "generator"), "--name", "lab/toy"]
    main([*BUILD, *words, "--output", str(output), "--variants", "float16", "bfloat16"])
    (tmp_path / "elsewhere").mkdir()
    code = f"""
import open_clip
import torch
from diffusers import DiffusionPipeline
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{output}")
tokenizer = open_clip.get_tokenizer("local-dir:{output}")
model.encode_text(tokenizer(["ein Kreis"])), model.encode_image(preprocess(Image.new("RGB", (40, 32)))[None])
pipeline = DiffusionPipeline.from_pretrained("{output}")
half = DiffusionPipeline.from_pretrained("{output}", variant="fp16", torch_dtype=torch.float16)
networks = [part for part in half.components.values() if isinstance(part, torch.nn.Module)]
assert len(networks) == 3 and all(part.dtype == torch.float16 for part in networks)
print(type(pipeline).__name__)
"""
    assert "PRXPipeline" in run_without_us(code, tmp_path / "elsewhere")
    variants = json.loads((output / EVIDENCE_FILE).read_text())["variants"]
    assert (
        variants.keys() == {"float16", "bfloat16"} and variants["float16"]["image_embedding_largest_difference"] < 2e-3
    )
    assert (output / "transformer" / "diffusion_pytorch_model.bf16.safetensors").is_file()


@pytest.mark.parametrize("licence", ["", "  ", "a\nb", "x" * 300])
def test_a_licence_must_be_named(runs: Path, tmp_path: Path, licence: str) -> None:
    with pytest.raises(UserError, match="is no licence: give an SPDX identifier"):
        main(
            [
                *BUILD,
                "--clip",
                str(runs / "clip"),
                "--name",
                "x",
                "--output",
                str(tmp_path / "r"),
                "--licence",
                licence,
            ]
        )
    assert not (tmp_path / "r").exists()


def test_the_text_of_other_licences_is_not_invented(tmp_path: Path) -> None:
    write_licence(tmp_path, "EUPL-1.2")
    text = (tmp_path / "LICENSE").read_text()
    assert "licence EUPL-1.2" in text and "not part of this folder. It is at https://spdx.org/licenses/EUPL" in text
    write_licence(tmp_path, "terms of our lab")
    assert "https" not in (tmp_path / "LICENSE").read_text()


def test_a_release_without_audits_is_refused_until_the_card_says_why(runs: Path, tmp_path: Path) -> None:
    words = ["--clip", str(runs / "clip"), "--name", "toy", "--output", str(tmp_path / "release")]
    with pytest.raises(
        UserError, match=r"audit/provenance \(missing\).*write the reason of each into audit_except"
    ) as caught:
        main(["build", *words])
    assert "\n" not in str(caught.value) and not (tmp_path / "release").exists()
    fields = tmp_path / "release.yaml"
    fields.write_text(Path(BUILD[2]).read_text() + "release_date: 2026-11-01\nlanguages: [fr]\n")
    with pytest.raises(UserError, match=r"contradicts itself: release\.yaml: languages: names fr, without a meas"):
        main(["build", "--publisher", str(fields), *words])
    main([*BUILD, *words])
    assert "| provenance | not run | a toy |" in (tmp_path / "release/README.md").read_text()
    assert contradictions(tmp_path / "release") == []


def test_shards_of_another_training_are_refused(runs: Path, tmp_path: Path) -> None:
    other = write_toy_shards(tmp_path / "other", samples=4)
    with pytest.raises(UserError, match="no part of this release was trained on"):
        main(
            [
                *BUILD,
                "--clip",
                str(runs / "clip"),
                "--name",
                "x",
                "--output",
                str(tmp_path / "r"),
                "--shards",
                str(other),
            ]
        )
    assert not (tmp_path / "r").exists()


def test_a_codec_of_diffusers_is_released_with_its_stated_licence(runs: Path, tmp_path: Path) -> None:
    """It has no run of ours: its weights are named by digest, its licence is that of its card."""
    folder = tmp_path / "private" / "vae"
    load_codec(runs / "codec").save(folder)
    (tmp_path / "private" / "README.md").write_text("---\nlicense: other\nlicense_name: lab | terms\n---\n# A codec\n")
    assert stated_licence(folder) == {}  # of some folder around it, not of a pipeline
    (tmp_path / "private" / "model_index.json").write_text("{}")
    weights = file_sha256(folder / "diffusion_pytorch_model.safetensors")
    checkpoint = torch.load(runs / "generator/checkpoints/last.ckpt", weights_only=True)
    evidence = checkpoint["leam_mm"]
    config = yaml.safe_load(evidence["config"])
    config["model"]["init_args"]["frozen"]["codec"] = str(folder)
    evidence["config"] = yaml.safe_dump(config)
    evidence["frozen"]["codec"] = {"path": "gone", "sha256": encoder_file(folder)[1]}
    (tmp_path / "generator").mkdir()
    torch.save(checkpoint, tmp_path / "generator/last.ckpt")
    output = tmp_path / "release"
    main([*BUILD, "--clip", str(runs / "clip"), "--generator", str(tmp_path / "generator"), "--output", str(output),
          "--name", "toy"])  # fmt: skip
    card = (output / "README.md").read_text()
    assert f"| latent codec | private/vae | lab &#124; terms | {weights} |" in card
    assert re.search(r"\| latent codec \| [\d,]+ \| not measured \|", card)
    stage = json.loads((output / EVIDENCE_FILE).read_text())["stages"]["codec"]
    assert stage["checkpoint_sha256"] == weights and stage["samples_seen"] is None and stage["energy"] is None
    kept = [file for file in output.rglob("*.json") if str(tmp_path) in file.read_text()]
    assert not kept  # no path of this machine
    drawing = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[1:3]
    run_without_us("\n".join(drawing), output)
    assert (output / "image.png").is_file()


def test_a_tower_trained_with_the_generator_is_counted_and_released_with_it(runs: Path, tmp_path: Path) -> None:
    files = [runs / name / "checkpoints/last.ckpt" for name in ("clip", "generator")]
    records = [torch.load(file, weights_only=True)["leam_mm"] for file in files]
    of_clip, of_generator = (yaml.safe_load(evidence["config"])["model"] for evidence in records)
    of_generator["init_args"]["caption_tower"] = {"text": of_clip["init_args"]["encoder"]["text"]}
    frozen = records[1]["frozen"]
    toy_run(tmp_path / "generator", of_generator, {"latents": "ef" * 32}, seed=3, frozen=frozen)
    output = tmp_path / "release"
    main([*BUILD, "--clip", str(runs / "clip"), "--generator", str(tmp_path / "generator"), "--output", str(output),
          "--name", "toy"])  # fmt: skip
    module = load_module(tmp_path / "generator", LatentDiffusionModule)
    tower = module.ema_denoiser().caption_tower
    assert tower is not None
    stage = json.loads((output / EVIDENCE_FILE).read_text())["stages"]["generator"]
    assert stage["parameters"] == sum(weight.numel() for weight in module.ema_denoiser().parameters())
    released = load_file(output / "text_encoder/model.safetensors")
    assert any(torch.equal(value, tower.text.token_embedding.weight) for value in released.values())


def test_hostile_cards_state_no_licence(tmp_path: Path) -> None:
    for text in (
        "---\nlicense: [a, b]\n---",
        "---\n!!python/object:os.system {}\n---",
        "license: mit",
        "---\n- a\n---",
        "---\nlicense: {a: b\n---",
    ):
        (tmp_path / "README.md").write_text(text)
        assert stated_licence(tmp_path) == {}
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n---\nlicense: none\n")
    assert stated_licence(tmp_path) == {"licence": "mit"}


def test_a_marked_codec_takes_the_place_of_the_generators_own(runs: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(runs / "codec/checkpoints/last.ckpt", weights_only=True)
    digest = file_sha256(runs / "codec/checkpoints/last.ckpt")
    name = "codec.autoencoder.decoder.conv_out.bias"
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name] + 0.25
    checkpoint["leam_mm"]["pretrained"] = {"weights": "runs/codec", "sha256": digest, "decoder_mark": "32 bits"}
    for folder, evidence in (("marked", {}), ("unmarked", {"decoder_mark": ""})):
        checkpoint["leam_mm"]["pretrained"] |= evidence
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        torch.save(checkpoint, tmp_path / folder / "checkpoints/last.ckpt")
    words = [*BUILD, "--generator", str(runs / "generator"), "--name", "toy", "--output", str(tmp_path / "release")]
    main([*words, "--codec", str(tmp_path / "marked")])
    released, original = load_codec(tmp_path / "release"), load_codec(runs / "codec")
    latent = torch.ones(1, 4, 2, 2)
    assert torch.allclose(released.decode_raw(latent), original.decode_raw(latent) + 0.25, atol=1e-5)
    base = json.loads((tmp_path / "release" / EVIDENCE_FILE).read_text())["stages"]["codec"]["base"]
    assert base == {"weights": "runs/codec", "sha256": digest, "decoder_mark": "32 bits"}
    with pytest.raises(UserError, match="has changed since this generator was trained with it"):
        main([*words, "--codec", str(tmp_path / "unmarked")])

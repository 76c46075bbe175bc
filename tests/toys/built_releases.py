"""A whole release of untrained toys, built by the release program, and its key."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from leam_mm.checkpoint import EVIDENCE, build_module
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.data.shard_index import ShardFolder
from leam_mm.files import file_sha256
from leam_mm.release.__main__ import main
from toys.pages import ENERGY_RECORD, metric_row
from toys.recipes import clip_recipe, codec_section, generator_section
from toys.releases import BUILD
from toys.shards import write_toy_shards


def toy_run(folder: Path, section: dict, data: dict[str, str], seed: int, **extra: object) -> Path:
    """A run with a checkpoint as train.py writes it, with fresh weights."""
    torch.manual_seed(seed)
    module = build_module(section)
    for name, value in module.state_dict().items():
        if name.endswith("latent_count"):
            value.fill_(16)
    evidence = {"config": yaml.safe_dump({"model": section}), "data": data, "samples_seen": 640, "versions": {}}
    evidence |= {"model_class": section["class_path"], "random_stream": PhiloxStream.name, **extra}
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    state = {"state_dict": module.state_dict(), EVIDENCE: evidence, "callbacks": {"EnergyRecord": ENERGY_RECORD}}
    torch.save(state, path)
    return folder


def build_release(root: Path, tokenizer: Path, name: str = "lab/toy") -> Path:
    """Build a release of an encoder, a generator and a codec with results below ``root``."""
    shards = write_toy_shards(root / "shards", samples=8)
    data = {str(shards): ShardFolder(shards).merkle_root}
    clip = toy_run(root / "clip", clip_recipe(root, shards, tokenizer)["model"], data, seed=0)
    codec = toy_run(root / "codec", codec_section(), data, seed=1)
    frozen = {
        kind: {"path": "gone", "sha256": file_sha256(root / kind / "checkpoints/last.ckpt")}
        for kind in ("clip", "codec")
    }
    generator = toy_run(root / "generator", generator_section(clip, codec), {"l": "ef" * 32}, seed=2, frozen=frozen)
    tested = {"clip": {"sha256": frozen["clip"]["sha256"]}, "generator": None}
    rows = [metric_row(f"toy/top1/{code}", 0.75) | {"checkpoints": tested} for code in ("de", "en")]
    (root / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--clip", str(clip), "--generator", str(generator), "--codec", str(codec), "--name", name]
    words += ["--results", str(root / "results.jsonl"), "--shards", str(shards), "--output", str(root / "release")]
    main([*BUILD, *words])
    return root / "release"


def write_keys(folder: Path, seed: int = 1) -> tuple[Path, Path]:
    """Private and public key on P-256, as PEM files."""
    key = ec.derive_private_key(seed + 10**9, ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture(scope="session")
def built_release(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: Path) -> Path:
    """A release that tests only read."""
    return build_release(tmp_path_factory.mktemp("built"), toy_tokenizer)


@pytest.fixture
def release(built_release: Path, tmp_path: Path) -> Path:
    """A copy of the release that a test may change."""
    return Path(shutil.copytree(built_release, tmp_path / "release"))

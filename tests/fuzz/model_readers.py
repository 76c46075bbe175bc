"""Readers of checkpoints, snapshots of averages, results, reports, prompts, and statements of withdrawals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy
import torch
from toys.images import encoded_image, soft_image
from toys.pages import metric_row
from toys.recipes import CODEC_SECTION, save_checkpoint

from data_tools.withdrawal.shard_withdrawal import Change
from data_tools.withdrawal.withdrawal_statement import verify_statement
from data_tools.work.signature import sign_file, verify_file
from fuzz.hunt import Reader
from fuzz.mutation import damage_bytes, damage_json, damage_png, wrapped
from leam_mm.callbacks.ema_snapshots import FOLDER, Snapshot, read_snapshots, write_snapshot
from leam_mm.checkpoint import checkpoint_config, load_module, read_checkpoint
from leam_mm.data.shard_manifest import ShardEntry
from leam_mm.distances.feature_statistics import FeatureMoments
from leam_mm.distances.statistics_file import read_statistics, write_statistics
from leam_mm.evaluators.compared_images import read_rgb
from leam_mm.evaluators.results import RESULTS, read_results
from leam_mm.prompts.prompt_set import read_prompt_set
from leam_mm.release.reconstruct_ema import check_names
from leam_mm.report.report_page import write_report

Read = Callable[[bytes], object]


def checkpoint_seeds(folder: Path) -> list[bytes]:
    """Return a checkpoint of a small codec."""
    folder.mkdir(exist_ok=True)
    return [save_checkpoint(folder / "codec.ckpt", CODEC_SECTION).read_bytes()]


def small_checkpoint_seeds(folder: Path) -> list[bytes]:
    """Return a checkpoint with few weights."""
    folder.mkdir(exist_ok=True)
    content = {
        "leam_mm": {"config": "model:\n  class_path: x\n", "samples_seen": 3},
        "state_dict": {"w": torch.arange(6.0)},
    }
    torch.save(content, folder / "a.ckpt")
    return [(folder / "a.ckpt").read_bytes()]


def checkpoint(folder: Path) -> Read:
    """Read a checkpoint and its config."""

    def read(data: bytes) -> None:
        (folder / "a.ckpt").write_bytes(data)
        checkpoint_config(read_checkpoint(folder / "a.ckpt"))

    return read


def module(folder: Path) -> Read:
    """Rebuild a module from its checkpoint."""

    def read(data: bytes) -> None:
        (folder / "a.ckpt").write_bytes(data)
        load_module(folder / "a.ckpt")

    return read


def snapshot_seeds(folder: Path) -> list[bytes]:
    """Return a snapshot of averages (safetensors)."""
    return [
        write_snapshot(folder, Snapshot(64, 2, (0.05, 0.1)), {f"{n}.w": torch.ones(3) for n in range(2)}).read_bytes()
    ]


def snapshots(folder: Path) -> Read:
    """Read the header of safetensors as the reconstruction of averages does."""
    (folder / FOLDER).mkdir()

    def read(data: bytes) -> None:
        (folder / FOLDER / "000000000064.safetensors").write_bytes(data)
        check_names(read_snapshots(folder), {"w": torch.ones(3)})

    return read


def _tensor_header(data: bytes) -> bytes:
    return data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip(b" ")


def _with_tensor_header(data: bytes, header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :]


def result_seeds(folder: Path) -> list[bytes]:
    """Return results of the kinds that the report has sections for."""
    parts = {
        "slices": {
            "confusions": [{"true": "a", "predicted": "b", "count": 3}],
            "de": {"value": 0.25, "low": 0.1, "high": 0.3},
        }
    }
    evidence = {"checkpoints": {"clip": {"path": "a", "sha256": "b", "samples_seen": 3}}, "versions": {"torch": "2"}}
    names = [
        f"zero_shot/{top}/{code}" for top in ("top1", "top5") for code in ("de", "en", "mean", "min", "min_over_mean")
    ]
    ways = ("image_to_text", "text_to_image")
    names += [f"retrieval/{way}/r{top}/{code}" for way in ways for top in (1, 5, 10) for code in ("de", "mean", "min")]
    names += [f"generation/{name}/{kind}" for name in ("frechet_distance", "recall") for kind in ("generated", "real")]
    names += ["compositional/pair", "toxicity/share", "before/a/b", "after/a/b", "fine_tuning/change/a/b"]
    rows = [metric_row(name, note="chance 25.00%; worst language: de", **parts, **evidence) for name in names]
    return [b"".join(json.dumps(row).encode() + b"\n" for row in rows), json.dumps(rows[0]).encode() + b"\n"]


def results(folder: Path) -> Read:
    """Read results.jsonl."""

    def read(data: bytes) -> None:
        (folder / RESULTS).write_bytes(data)
        read_results(folder)

    return read


def prompt_set_seeds(folder: Path) -> list[bytes]:
    """Return parallel prompts with atoms of their own, and about a scene."""
    texts = {"de": "eine Tasse", "en": "a cup"}
    german = {"question": "Ist da eine Tasse?", "statement": "eine Tasse", "foils": ["ein Teller"]}
    atom = {"question": "Is there a cup?", "answer": True, "statement": "a cup", "foils": ["a plate"]}
    scene = {"objects": [{"colour": "red", "shape": "ring"}, {"colour": "blue", "shape": "star"}], "relation": "above"}
    concepts = [
        {"id": "cup", "kind": "objects", "texts": texts, "atoms": [{**atom, "translations": {"de": german}}]},
        {"id": "pair", "kind": "pairs", "texts": texts, "scene": scene},
    ]
    return [json.dumps({"name": "a", "languages": ["de", "en"], "concepts": concepts}).encode()]


def prompt_set(folder: Path) -> Read:
    """Read parallel prompts."""

    def read(data: bytes) -> None:
        (folder / "prompts.json").write_bytes(data)
        read_prompt_set(folder / "prompts.json")

    return read


def reported(name: str) -> Callable[[Path], Read]:
    """Return the preparation of a reader that writes the report of a run with one damaged file."""

    def prepare(folder: Path) -> Read:
        run = folder / "run"
        (run / name).parent.mkdir(parents=True)
        (run / "evaluation" / "prompts").mkdir(parents=True, exist_ok=True)

        def read(data: bytes) -> None:
            (run / name).write_bytes(data)
            write_report(run, folder / "report.html", "a run")

        return read

    return prepare


def run_seeds(name: str) -> Callable[[Path], list[bytes]]:
    """Return valid content of a file of a run."""
    stage = {"name": "clip", "command": ["python"], "seconds": 100, "energy": {"joules": 3.6e6, "source": "RAPL"}}
    prompt = {"row": 0, "language": "de", "text": "a", "image": "000.png"}
    order = {"name": "clip", "command": "python", "server": ["python", "-m", "http.server"]}
    pipeline = {"command": ["python"], "stages": [order]}
    shown = {"image": "sheet/000.png", "text": "a", "language": "de", "right": ["colour"], "wrong": ["count"]}
    sheet = {"format": "leam_mm contact sheet 1", "title": "a", "columns": 2, "images": [shown]}
    control = {"subject": "audit/a", "control": "b", "kind": "positive", "found": "fail", "caught": True}
    contents = {
        "evaluation/prompts.json": json.dumps({"languages": ["de"], "pictures": [prompt]}).encode(),
        "clip/metrics.csv": b"step,train/loss,samples_seen,val/loss\n1,3.5,,\n1,,64,\n2,2.5,,\n2,,128,\n3,nan,,\n",
        "stages/0.json": json.dumps(stage | {"cpu_seconds": 3.5, "stolen_cpu_seconds": 0}).encode(),
        "summary.json": json.dumps({"stages": [stage], "pipeline": pipeline}).encode(),
        "evaluation/sheet.json": json.dumps(sheet).encode(),
        "evaluation/selftest.json": json.dumps({"rows": [control]}).encode(),
    }
    return lambda folder: [contents[name]]


def statement_seeds(folder: Path) -> list[bytes]:
    """Return a statement of a withdrawal."""
    before = [ShardEntry(f"{number:05d}.tar", f"{number:064x}", 9000, 3) for number in range(2)]
    change = Change("a", before, [replace(before[0], samples=2), before[1]]).public()
    stone = {"key": "000000", "shard": "a/00000.tar", "uid": None}
    content = {
        "format": "leam_mm withdrawal 1",
        "date": "2026-01-01",
        "data_sets": [change],
        "withdrawn": {"a": [stone]},
    }
    return [json.dumps(content).encode()]


def statement(folder: Path) -> Read:
    """Verify a statement that its signer wrote badly."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = folder / "key.pub"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def read(data: bytes) -> None:
        path = folder / "statement.json"
        path.write_bytes(data)
        sign_file(path, key)
        verify_statement(path, public, [])

    return read


def signature_seeds(folder: Path) -> list[bytes]:
    """Return a signature."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"content")
    return [sign_file(folder / "a", Ed25519PrivateKey.from_private_bytes(bytes(32))).read_bytes()]


def signature(folder: Path) -> Read:
    """Verify a file with a damaged signature."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    (folder / "a").write_bytes(b"content")

    def read(data: bytes) -> None:
        (folder / "a.sig").write_bytes(data)
        verify_file(folder / "a", key, folder / "a.sig")

    return read


def statistics_seeds(folder: Path) -> list[bytes]:
    """Return statistics of features, with a number of images and without."""
    folder.mkdir(exist_ok=True)
    write_statistics(folder / "a.npz", FeatureMoments.of(torch.arange(12.0).reshape(4, 3).square()), {"features": "x"})
    numpy.savez(folder / "b.npz", mu=numpy.zeros(2), sigma=numpy.eye(2))
    return [(folder / name).read_bytes() for name in ("a.npz", "b.npz")]


def statistics(folder: Path) -> Read:
    """Read statistics of features."""

    def read(data: bytes) -> None:
        (folder / "a.npz").write_bytes(data)
        read_statistics(folder / "a.npz")

    return read


def image_seeds(folder: Path) -> list[bytes]:
    """Return images with transparency, a palette and grey."""
    image = soft_image(0, 24)
    return [encoded_image(image.convert(mode)) for mode in ("RGB", "RGBA", "LA", "P")] + [encoded_image(image, "GIF")]


def compared_image(folder: Path) -> Read:
    """Decode an image of a set that is compared."""
    return lambda data: read_rgb(data, (255, 255, 255))


JSON = (damage_json, damage_json, damage_bytes)
HEADER = (wrapped(_tensor_header, _with_tensor_header, damage_json), damage_bytes)
READERS = [
    Reader("checkpoint", small_checkpoint_seeds, checkpoint),
    Reader("module", checkpoint_seeds, module, seconds=10.0),
    Reader("safetensors", snapshot_seeds, snapshots, HEADER),
    Reader("results", result_seeds, results, JSON),
    Reader("report", result_seeds, reported("evaluation/results.jsonl"), JSON),
    *(
        Reader(
            name.rpartition("/")[2].partition(".")[0] if not name.startswith("stages") else "stage",
            run_seeds(name),
            reported(name),
            kinds,
        )
        for name, kinds in (
            ("evaluation/prompts.json", JSON),
            ("evaluation/sheet.json", JSON),
            ("evaluation/selftest.json", JSON),
            ("clip/metrics.csv", (damage_bytes,)),
            ("stages/0.json", JSON),
            ("summary.json", JSON),
        )
    ),
    Reader("prompt_set", prompt_set_seeds, prompt_set, JSON),
    Reader("statement", statement_seeds, statement, JSON),
    Reader("signature", signature_seeds, signature, JSON),
    Reader("statistics", statistics_seeds, statistics),
    Reader("compared_image", image_seeds, compared_image, (damage_bytes, damage_png)),
]

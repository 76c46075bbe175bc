"""Shards of small images with complete records, for controls of audits of data."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leam_mm.checkpoint import EVIDENCE, AtomicCheckpointIO
from leam_mm.data.shard_index import ShardFolder, ShardWriter
from leam_mm.files import bytes_sha256, file_sha256

SAMPLES, PER_SHARD = 24, 8
CHECKED = "2026-11-01T12:00:00+00:00"
ORIGIN = "https://lakes.example"
Change = Callable[[int], Mapping[str, Any]]


def signal(kind: str, value: str, reserved: bool, path: str = "/robots.txt") -> dict[str, Any]:
    """Return a statement of a right holder as records hold it.

    Args:
        kind: Such as robots.txt or tdmrep.json.
        value: The deciding words.
        reserved: Whether it refuses.
        path: Of the answer, on the origin of the image.
    """
    return {"kind": kind, "value": value, "source": ORIGIN + path, "reserved": reserved}


def control_record(number: int, image: bytes) -> dict[str, Any]:
    """Return the record of an image whose origin was asked and reserves nothing.

    Args:
        number: Number of the sample.
        image: Its file.
    """
    caption = {"text": f"lake number {number}", "language": "en", "source": "alt", "machine_translated": False}
    return {
        "uid": f"{number:032x}", "captions": [caption], "url": f"{ORIGIN}/{number}.png", "page_url": f"{ORIGIN}/",
        "domain": "lakes.example", "licence": None, "legal_basis": "art4_general", "attribution": None,
        "crawler": "leam_mm", "fetched_at": CHECKED, "sha256": bytes_sha256(image), "width": 16, "height": 16,
        "transforms": [], "consent": {"origin": [signal("robots.txt", "allowed", False)]}, "metadata": {},
    }  # fmt: skip


def control_image(number: int, **settings: Any) -> bytes:
    """Return a PNG of noise, which no other sample has.

    Args:
        number: Number of the sample.
        settings: Further arguments of Pillow, such as exif.
    """
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **settings)
    return buffer.getvalue()


def write_control_shards(
    folder: Path,
    change: Change = lambda number: {},
    images: Callable[[int], bytes] = control_image,
    stored: Callable[[int], bytes] | None = None,
    samples: int = SAMPLES,
) -> Path:
    """Write a shard folder.

    Args:
        folder: The folder, which does not exist yet.
        change: What differs in the record of a sample from ``control_record``.
        images: File of a sample, as it was fetched.
        stored: File of a sample, as it is stored; None stores what was fetched.
        samples: Number of samples.
    """
    with ShardWriter(folder, PER_SHARD) as writer:
        for number in range(samples):
            record = {**control_record(number, images(number)), **change(number)}
            content = (stored or images)(number)
            writer.write(f"{number:06d}", {"png": content, "json": json.dumps(record, ensure_ascii=False).encode()})
    return folder


def write_control_run(
    folder: Path, shards: Path, root: str | None = None, parents: Mapping[str, Path] | None = None
) -> Path:
    """Write a run whose checkpoint has the evidence of a training on shards, and no weights.

    Args:
        folder: The run folder.
        shards: Its training data.
        root: Merkle root that it records; None records that of the shards.
        parents: Runs that it was built on, by part.
    """
    evidence = {
        "config": "model: {class_path: control}\n", "data": {str(shards): root or ShardFolder(shards).merkle_root},
        "samples_seen": SAMPLES, "versions": {"torch": "2"},
        "frozen": {
            name: {"path": str(path), "sha256": file_sha256(path / "checkpoints" / "last.ckpt"), "statistics": {}}
            for name, path in (parents or {}).items()
        },
    }  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint({EVIDENCE: evidence, "state_dict": {}}, folder / "checkpoints" / "last.ckpt")
    return folder


def every(step: int, change: Mapping[str, Any], other: Sequence[Mapping[str, Any]] = ({},)) -> Change:
    """Return a change of every n-th sample.

    Args:
        step: n.
        change: What differs in the n-th samples.
        other: What differs in the rest, taken in turn.
    """
    return lambda number: change if number % step == 0 else other[number % len(other)]

"""Verify a shard folder: digests, indexes, images, arrays, and the JSON of every sample."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from data_tools.work.foreign_error import first_line
from leam_mm.data.array_format import parse_array
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MEMBER_EXTENSIONS
from leam_mm.data.index_file import ShardIndex
from leam_mm.data.keep_list import KEEP, kept_keys
from leam_mm.data.latent_members import has_texts_only
from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.data.shard_manifest import BLOCK, ShardEntry
from leam_mm.data.tar_members import checked_members, parse_sample
from leam_mm.errors import UserError

FIELDS = ("url", "domain", "licence", "legal_basis", "sha256", "width", "height", "metadata")


@dataclass
class Finding:
    """What was counted in a folder, and its faults, one line each."""

    faults: list[str] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    latents: int = 0
    keys: set[str] = field(default_factory=set)


def bucket_folders(path: Path) -> list[Path]:
    """Return the folder itself, or the shard folders of the image shapes that its buckets.json lists."""
    if (path / MANIFEST).is_file() or not (path / "buckets.json").is_file():
        return [path]
    from leam_mm.data.bucket_order import read_buckets  # imports torch, which nothing else here needs

    return [Path(bucket.path) for bucket in read_buckets(path) or []]


def check_folder(path: Path, decode: bool = True) -> tuple[ShardFolder, Finding]:
    """Verify every shard of a folder.

    Args:
        path: The shard folder.
        decode: Whether to decode every image as well.

    Raises:
        UserError: The folder has no readable manifest.
    """
    folder, finding = ShardFolder(path), Finding()
    listed = {entry.shard for entry in folder.shards}
    strays = set(file.name for file in path.glob("*.tar")) - listed
    if any(entry.records for entry in folder.shards):  # beside tars that others made may lie some without a sample
        strays = set()
    for stray in sorted(strays):
        finding.faults.append(f"{path / stray}: not listed in {MANIFEST}")
    for number in track(range(len(folder.shards)), description="check", transient=True):
        try:
            check_shard(folder, number, decode, finding)
        except UserError as error:
            finding.faults.append(str(error))
        except OSError as error:
            finding.faults.append(f"{folder.path / folder.shards[number].shard}: cannot be read ({first_line(error)})")
    return folder, finding


def check_shard(folder: ShardFolder, number: int, decode: bool, finding: Finding) -> None:
    """Compare one tar with manifest and index, then check each sample in it."""
    entry, where = folder.shards[number], folder.shard_name(number)
    if fault := folder.digest_fault(number):
        finding.faults.append(f"{where}: {fault}")
    with folder.open_shard(number) as shard:
        foreign = shard.index.records is not None
        if not foreign and (fault := _layout_fault(shard.index, entry)):
            finding.faults.append(f"{where}: {fault}")
            return
        for row, key in enumerate(shard.keys):
            finding.samples += 1
            if key in finding.keys:
                finding.faults.append(f"{where}: sample {key} occurs twice in the folder")
            finding.keys.add(key)
            try:
                raw = shard.raw(row)
                if not shard.is_intact(row, raw):
                    fault = "its sha256 is not the one in the index"
                else:
                    # The tars of others were read by their names; raw gives their samples names of ours.
                    members = parse_sample(raw) if foreign else checked_members(key, raw)
                    fault = sample_fault(members, decode, finding, foreign)
            except (UserError, ValueError) as error:
                fault = str(error)
            if fault:
                finding.faults.append(f"{where}: sample {key}: {fault}")


def _layout_fault(index: ShardIndex, entry: ShardEntry) -> str | None:
    """Describe what is wrong unless the samples follow each other from the start of the tar to its end mark."""
    ends = np.concatenate([[0], np.cumsum(index.size)])
    if not np.array_equal(index.offset, ends[:-1]):
        return "the samples in the index do not follow each other without gaps"
    return None if ends[-1] + 2 * BLOCK == entry.bytes else "the index does not reach the end of the tar"


def sample_fault(members: dict[str, bytes], decode: bool, finding: Finding, foreign: bool = False) -> str | None:
    """Describe how a sample breaks the contract, or return None; count its content in ``finding``.

    Args:
        members: Its members.
        decode: Whether to decode its image.
        finding: Receives the counts.
        foreign: Others stored its image, which may then be of another mode than RGB.
    """
    try:
        record = read_sample_json(members)
        captions = sample_captions(record)
    except UserError as error:
        return str(error).partition(": run")[0]
    if not all(caption["text"].strip() for caption in captions):
        return "has an empty caption"
    finding.languages.update(caption["language"] for caption in captions)
    if "latent.npy" in members:
        finding.latents += 1
        return _array_fault(members, record)
    missing = [name for name in FIELDS if name not in record]
    if missing:
        return f"its json lacks {', '.join(missing)}"
    kinds = [name for name in MEMBER_EXTENSIONS if name in members]
    if len(kinds) != 1:
        return f"holds {len(kinds)} images, should hold one"
    finding.licences[str(record["licence"] or "not stated")] += 1
    finding.sizes[f"{record['width']}x{record['height']}"] += 1
    if not decode:
        return None
    return _image_fault(members[kinds[0]], record, foreign or record.get("transforms", ()) is None)


def _array_fault(members: dict[str, bytes], record: dict[str, Any]) -> str | None:
    """Describe what is wrong with the arrays of a latent sample."""
    captions = record.get("caption_states")
    usable = isinstance(captions, list) and bool(captions) and all(isinstance(one, dict) for one in captions)
    texts_only = usable and has_texts_only(members, captions or [])
    needed = ("latent.npy",) if texts_only else ("latent.npy", "caption_state.npy")
    for name in (*needed, *(name for name in members if name.endswith(".npy") and name not in needed)):
        if name not in members:
            return f"has no {name}"
        try:
            array = parse_array(members[name])
        except ValueError as error:
            return f"{name} cannot be read ({first_line(error)})"
        dimensions = 3 if name.startswith(("latent", "caption_state")) else 2
        if array.ndim != dimensions or not np.isfinite(array).all():
            return f"{name} has shape {array.shape} or values that are NaN or infinite"
    return None


def _image_fault(content: bytes, record: dict[str, Any], any_mode: bool) -> str | None:
    """Decode an image; describe the fault if it is broken, not RGB, or of another size than its JSON says."""
    try:
        image = open_image(content)
        image.load()
    except Exception as error:  # Pillow raises many kinds on damaged files
        return f"its image cannot be decoded ({first_line(error)})"
    if image.mode != "RGB" and not any_mode:
        return f"its image is {image.mode}, should be RGB"
    if image.size != (record["width"], record["height"]):
        return f"its image is {image.size}, its json says {record['width'], record['height']}"
    return None


def keep_list_faults(folder: ShardFolder) -> list[str]:
    """Describe where a keep-list names another sample than the one at its position."""
    found = [key for number in range(len(folder.shards)) for key in folder.index(number).keys]
    named = kept_keys(folder.path)
    if len(named) != len(found):
        return [f"{folder.path / KEEP}: has {len(named)} keys for {len(found)} samples"]
    wrong = [pair for pair in zip(named, found, strict=True) if pair[0] != pair[1]]
    return [f"{folder.path / KEEP}: names {key!r}, but {there!r} is there" for key, there in wrong]

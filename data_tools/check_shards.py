"""Walk a shard folder and verify all of it: digests, indexes, images, and the json of every sample.

    python data_tools/check_shards.py shards/train
    python data_tools/check_shards.py shards/train --contains portrait.jpg

Exit code 0: sound. 1: damaged, one line per broken thing. 2: not a shard folder at all.
``--fast`` leaves the pixels out. Of a folder with a keep-list, the list is verified, and all of the shards it names.
``--contains``: was this picture used? Exit code 0: yes. 1: no.
"""

import argparse
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from leam_mm.data.array_format import parse_array
from leam_mm.data.keep_list import KEEP, kept_keys
from leam_mm.data.shard_index import MANIFEST, ShardFolder, ShardIndex, parse_sample
from leam_mm.errors import UserError, run

FIELDS = ("url", "domain", "licence", "legal_basis", "sha256", "width", "height", "metadata")
IMAGES = ("jpg", "png", "webp")
MAX_PIXELS = 89_000_000


@dataclass
class Finding:
    """What was counted, and what is broken."""

    faults: list[str] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    latents: int = 0
    keys: set[str] = field(default_factory=set)


def check_folder(path: Path, decode: bool = True) -> tuple[ShardFolder, Finding]:
    """Verify every shard of a folder.

    Args:
        path: The shard folder.
        decode: Decode every image, too.

    Raises:
        UserError: It is no shard folder (no readable manifest).
    """
    folder, finding = ShardFolder(path), Finding()
    listed = {entry.shard for entry in folder.shards}
    for stray in sorted(set(file.name for file in path.glob("*.tar")) - listed):
        finding.faults.append(f"{path / stray}: not named in {MANIFEST}")
    for number in track(range(len(folder.shards)), description="check", transient=True):
        try:
            check_shard(folder, number, decode, finding)
        except UserError as error:
            finding.faults.append(str(error))
        except OSError as error:
            finding.faults.append(f"{folder.path / folder.shards[number].shard}: cannot be read ({error})")
    return folder, finding


def check_shard(folder: ShardFolder, number: int, decode: bool, finding: Finding) -> None:
    """Verify one tar against manifest and index, then each sample in it."""
    entry, path = folder.shards[number], folder.tar(number)
    index = folder.index(number)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
        if digest.hexdigest() != entry.sha256:
            finding.faults.append(f"{path}: its sha256 is not the one in {MANIFEST}")
        if fault := layout_fault(index, entry.bytes):
            finding.faults.append(f"{path}: {fault}")
            return
        for key, offset, size, expected in zip(index.keys, index.offset, index.size, index.sha256, strict=True):
            where = f"{path}: sample {key}"
            file.seek(int(offset))
            raw = file.read(int(size))
            finding.samples += 1
            if key in finding.keys:
                finding.faults.append(f"{where} occurs twice in the folder")
            finding.keys.add(key)
            if hashlib.sha256(raw).hexdigest() != expected:
                finding.faults.append(f"{where}: its bytes are not those of the index")
                continue
            try:
                fault = sample_fault(parse_sample(raw), decode, finding)
            except UserError as error:
                fault = str(error)
            if fault:
                finding.faults.append(f"{where}: {fault}")


def layout_fault(index: ShardIndex, size: int) -> str | None:
    """Say when the samples of an index do not lie one after the other from the start of the tar to its end mark."""
    ends = np.concatenate([[0], np.cumsum(index.size)])
    if not np.array_equal(index.offset, ends[:-1]):
        return "the index does not name neighbouring samples"
    return None if ends[-1] + 1024 == size else "the index does not reach the end of the tar"


def sample_fault(members: dict[str, bytes], decode: bool, finding: Finding) -> str | None:
    """Say what breaks the contract in one sample, and count what it holds."""
    if "json" not in members:
        return "has no json"
    try:
        record = json.loads(members["json"])
        captions = record["captions"]
        languages = [str(caption["language"]) for caption in captions]
        texts = [str(caption["text"]).strip() for caption in captions]
    except (ValueError, KeyError, TypeError) as error:
        return f"its json breaks the contract ({type(error).__name__}: {error})"
    if not texts or not all(texts):
        return "has no caption, or an empty one"
    finding.languages.update(languages)
    if "latent.npy" in members:
        finding.latents += 1
        return latent_fault(members)
    missing = [name for name in FIELDS if name not in record]
    if missing:
        return f"its json lacks {', '.join(missing)}"
    kinds = [name for name in IMAGES if name in members]
    if len(kinds) != 1:
        return f"holds {len(kinds)} images, should hold one"
    finding.licences[str(record["licence"] or "not stated")] += 1
    finding.sizes[f"{record['width']}x{record['height']}"] += 1
    return image_fault(members[kinds[0]], record) if decode else None


def latent_fault(members: dict[str, bytes]) -> str | None:
    """Say what is wrong with the arrays of a latent sample."""
    needed = ("latent.npy", "caption_state.npy")
    for name in (*needed, *(name for name in members if name.endswith(".npy") and name not in needed)):
        if name not in members:
            return f"has no {name}"
        try:
            array = parse_array(members[name])
        except ValueError as error:
            return f"{name} cannot be read ({error})"
        wanted = 3 if name.startswith(("latent", "caption_state")) else 2
        if array.ndim != wanted or not np.isfinite(array).all():
            return f"{name} has shape {array.shape} or holds numbers that are not finite"
    return None


def image_fault(content: bytes, record: dict) -> str | None:
    """Decode an image; say when it breaks, is not RGB, or has another size than its json says."""
    try:
        image = Image.open(io.BytesIO(content), formats=["JPEG", "PNG", "WEBP"])
        if image.width * image.height > MAX_PIXELS:
            return f"its image has more than {MAX_PIXELS} pixels"
        image.load()
    except Exception as error:  # Pillow raises many kinds on damaged files
        return f"its image cannot be decoded ({error})"
    if image.mode != "RGB":
        return f"its image is {image.mode}, should be RGB"
    if image.size != (record["width"], record["height"]):
        return f"its image is {image.size}, its json says {record['width'], record['height']}"
    return None


def keep_faults(folder: ShardFolder) -> list[str]:
    """Say where a keep-list names other samples than those that lie at its places."""
    found = [key for number in range(len(folder.shards)) for key in folder.index(number).keys]
    named = kept_keys(folder.path)
    wrong = [pair for pair in zip(named, found, strict=True) if pair[0] != pair[1]]
    return [f"{folder.path / KEEP}: says {key!r} where {there!r} lies" for key, there in wrong]


def print_report(folder: ShardFolder, finding: Finding, console: Console) -> None:
    """Print counts, and the root that names the data set."""
    table = Table("what", "which", "count", title=str(folder.path))
    table.add_row("samples", f"in {len(folder.shards)} shards", f"{finding.samples:,}")
    table.add_row("bytes", "of tar", f"{sum(entry.bytes for entry in folder.shards):,}")
    if finding.latents:
        table.add_row("latents", "", f"{finding.latents:,}")
    for name, counter in (("captions", finding.languages), ("licence", finding.licences), ("size", finding.sizes)):
        for value, count in counter.most_common(30):
            table.add_row(name, value, f"{count:,}")
        if len(counter) > 30:
            table.add_row(name, f"and {len(counter) - 30} more", f"{sum(sorted(counter.values())[:-30]):,}")
    console.print(table)
    console.print(f"Merkle root {folder.merkle_root}")


def main(args: list[str] | None = None) -> None:
    """Check a folder, print the report, and exit with 1 when something is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of final shards (images or latents)")
    parser.add_argument("--fast", action="store_true", help="check digests and json only, decode no image")
    parser.add_argument(
        "--contains",
        metavar="FILE|URL|SHA256",
        help="say whether the folder holds this picture, instead of checking it; see data_tools/sample_search.py",
    )
    settings = parser.parse_args(args)
    if settings.contains is not None:
        from data_tools.sample_search import contains  # its pictures' hashes come from a library of their own

        if not contains(settings.folder, settings.contains):
            raise SystemExit(1)
        return
    faults = []
    for path in shape_folders(settings.folder):
        listed = ShardFolder(path)
        folder, finding = check_folder(Path(listed.place), decode=not settings.fast)
        if listed.keeps:
            finding.faults += keep_faults(listed)
            print(f"{path}: {listed.samples:,} of {folder.samples:,} samples are kept; as {listed.merkle_root}")
        print_report(folder, finding, Console(soft_wrap=True))
        faults += finding.faults
    for fault in faults:
        print(f"broken: {fault}")
    if faults:
        print(f"{len(faults)} broken things: copy or build these shards again")
        raise SystemExit(1)
    print("sound" if not settings.fast else "sound (images were not decoded)")


def shape_folders(path: Path) -> list[Path]:
    """The folder itself, or those of the shapes below it that its buckets.json lists."""
    if (path / MANIFEST).is_file() or not (path / "buckets.json").is_file():
        return [path]
    from leam_mm.data.bucket_order import read_buckets  # imports torch, which nothing else here needs

    return [Path(bucket.path) for bucket in read_buckets(path) or []]


if __name__ == "__main__":
    run(main)

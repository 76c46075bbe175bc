"""Gather photographs and drawings with descriptions in many EU languages from Debian packages, as link tables.

Stamps of Tux Paint (photographs and drawings, 22 languages) are divided into a test and images to train on; drawings of
words (9 languages) are for validation. With --emoji, the drawings of data_tools/gather_emoji.py are trained on, too,
without those that look like a held-out image. Each row has licence and attribution. The packages are fetched by apt's
client (run apt-get update before), read without being installed, and kept in the output folder.

    python data_tools/gather_pictures.py --output runs/pictures/gathered --emoji runs/pictures/emoji
    python data_tools/gather_pictures.py --output runs/pictures/gathered --packages folder_with_deb
"""

import json
import logging
import os
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.corpora.corpus_folder import replace_output, served_address
from data_tools.corpora.debian_packages import fetch_debian_package, find_debian_package, read_debian_package
from data_tools.corpora.emoji_corpus import COLUMNS, draw_all
from data_tools.corpora.emoji_images import Drawings
from data_tools.corpora.picture_sources import READERS, SOURCES, Picture
from data_tools.vetting.held_out_pictures import Candidate, split_pictures
from leam_mm.command_line import PositiveInt, Range, parse_settings
from leam_mm.data.parquet_file import open_parquet
from leam_mm.errors import UserError, run
from leam_mm.files import temporary_path, write_json

log = logging.getLogger(__name__)
ROLES = {"stamps": "split", "words": "validation"}
EMOJI_TABLES = ("train", "test", "unseen")


@dataclass
class PictureSettings:
    """Settings of the program.

    Args:
        output: Folder for images, tables and the fetched packages.
        emoji: Folder that data_tools/gather_emoji.py wrote, to train on its drawings, too.
        packages: Folder with the packages (.deb or unpacked), instead of fetching them with apt.
        size: Side of the images in pixels.
        held_out: Least number of stamps in the test.
        base_url: Address at which the output folder will be served.
        seed: Seed of the split and of the order.
        workers: Processes that draw; by default one per core.
    """

    output: Path
    emoji: Path | None = None
    packages: Path | None = None
    size: Annotated[int, Range(least=16, most=512)] = 48
    held_out: PositiveInt = 540
    base_url: str = "http://127.0.0.1:8000/"
    seed: int = 0
    workers: PositiveInt = os.cpu_count() or 1

    def __post_init__(self) -> None:
        """Check what the types cannot."""
        self.base_url = served_address(self.base_url)
        if self.packages and not self.packages.is_dir():
            raise UserError(f"--packages {self.packages}: no such folder; leave it out to fetch by apt-get")


def read_sources(settings: PictureSettings) -> tuple[dict[str, list[Picture]], list[dict[str, str | None]]]:
    """Fetch or find the packages; return the pictures of each source, and what was read."""
    pictures, evidence = {}, []
    for name, source in SOURCES.items():
        if settings.packages:
            path = find_debian_package(source.package, settings.packages)
        else:
            path = fetch_debian_package(source.package, settings.output / "packages")
        content = read_debian_package(source.package, path, source.wanted)
        pictures[name] = READERS[name](content.files)
        if not pictures[name]:
            raise UserError(
                f"{path}: no picture where {source.package} keeps them; give another version of it by --packages"
            )
        evidence.append(content.evidence)
    return pictures, evidence


def make_row(name: str, picture: Picture, version: str | None, base_url: str) -> dict[str, str]:
    """Return one row of the link table."""
    source = SOURCES[name]
    captions = [
        {"text": text, "language": language, "source": "description", "machine_translated": False}
        for language, text in picture.captions.items()
    ]
    metadata = {
        "class_id": f"{name}/{picture.name}",
        "category": picture.category,
        "package": f"{source.package}={version or 'unknown'}",
        "caption_licence": source.caption_licence,
        "licence_note": source.licence_note,
    }
    return {
        "url": f"{base_url}images/{name}/{picture.name}.png",
        "caption": picture.captions["en"],
        "captions": json.dumps(captions, ensure_ascii=False, sort_keys=True),
        "licence": source.licence,
        "legal_basis": "licensed",
        "page_url": source.page_url,
        "attribution": source.attribution,
        "metadata": json.dumps(metadata, ensure_ascii=False, sort_keys=True),
    }


def read_emoji(folder: Path) -> list[tuple[Candidate, dict[str, str]]]:
    """Return the drawings of all tables of data_tools/gather_emoji.py, to train on, with their rows."""
    found = []
    for table in EMOJI_TABLES:
        path = folder / f"{table}.parquet"
        if not path.is_file():
            raise UserError(f"--emoji {folder}: {path.name} is missing; write it with data_tools/gather_emoji.py")
        try:
            with open_parquet(path) as file:
                rows = file.read(list(COLUMNS)).to_pylist()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"--emoji {folder}: {path.name} cannot be read ({error}); write it again") from error
        for row in rows:
            metadata = json.loads(row["metadata"])
            image = folder / "images" / metadata["style"] / f"{metadata['class_id']}.png"
            found.append((Candidate(image, row["caption"], "train"), row))
    return found


def gather(settings: PictureSettings) -> None:
    """Write images, tables and the summary."""
    pictures, evidence = read_sources(settings)
    versions = {source: entry["version"] for source, entry in zip(SOURCES, evidence, strict=True)}
    staging = temporary_path(settings.output / "gathered")
    try:
        staging.mkdir(parents=True)
        drawings: Drawings = defaultdict(dict)
        for source, found in pictures.items():
            for picture in found:
                drawings[picture.name][source] = (picture.kind, picture.content)
        pairs = [(picture.name, source) for source, found in pictures.items() for picture in found]
        failed = draw_all(drawings, pairs, settings.size, settings.workers, staging / "images")
        if failed:
            log.warning("%d images could not be drawn safely and are left out, first %s", len(failed), min(failed)[0])
        entries = [
            (
                Candidate(staging / "images" / source / f"{picture.name}.png", picture.captions["en"], ROLES[source]),
                make_row(source, picture, versions[source], settings.base_url),
            )
            for source, found in pictures.items()
            for picture in found
            if (picture.name, source) not in failed
        ]
        entries += read_emoji(settings.emoji) if settings.emoji else []
        splits, left_out = split_pictures([entry[0] for entry in entries], settings.held_out, settings.seed)
        tables = {split: [entries[number][1] for number in numbers] for split, numbers in splits.items()}
        if not tables["train"] or len(tables["test"]) < settings.held_out:
            raise UserError(
                f"--held-out {settings.held_out}: the packages leave {len(tables['test'])} images to test and "
                f"{len(tables['train'])} to train on; give a smaller number"
            )
        for split, rows in tables.items():
            schema = pa.schema([(column, pa.string()) for column in COLUMNS])
            pq.write_table(pa.Table.from_pylist(rows, schema), staging / f"{split}.parquet", compression="zstd")
        summary = {
            "splits": {split: describe(rows) for split, rows in tables.items()},
            "size": settings.size,
            "seed": settings.seed,
            "not_drawn": sorted(f"{source}/{name}" for name, source in failed),
            "left_out_since_they_look_like_held_out_ones": left_out,
            "packages": evidence,
        }
        write_json(staging / "summary.json", summary)
        replace_output(staging, settings.output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for split, rows in tables.items():
        print(f"{settings.output / split}.parquet: {len(rows)} images")
    print(f"{left_out} images look like a held-out one and are left out; summary.json counts licences and languages")


def describe(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Count the images of a split by licence and package, and its captions by language."""
    captions = [caption for row in rows for caption in json.loads(row["captions"])]
    return {
        "images": len(rows),
        "images_by_licence": dict(sorted(Counter(row["licence"] for row in rows).items())),
        "images_by_package": dict(sorted(Counter(json.loads(row["metadata"])["package"] for row in rows).items())),
        "captions_by_language": dict(sorted(Counter(caption["language"] for caption in captions).items())),
    }


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    start = time.monotonic()
    gather(parse_settings(PictureSettings, __doc__, args))
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(main)

"""Gather the emoji corpus: emoji in up to four drawing styles, with their Unicode CLDR names in all EU languages.

Each image is on white, named by its code, with licence and attribution; the link tables can be given to
download_shards. One drawing style is held out as the zero-shot test, and a few emoji are held out in all styles.
Serve the output folder at --base-url, e.g. `python -m http.server 8000 --directory DIR`.

    python data_tools/gather_emoji.py --output runs/emoji
    python data_tools/gather_emoji.py --output runs/emoji --packages folder_with_tgz --size 32 --held-out-style openmoji
"""

import json
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.corpora.corpus_folder import replace_output, served_address
from data_tools.corpora.emoji_corpus import COLUMNS, Pair, Selection, draw_all, make_row, select, summarise
from data_tools.corpora.emoji_images import (
    NAMES,
    STYLES,
    Drawings,
    Package,
    fetch_package,
    find_package,
    read_authors,
    read_drawings,
    read_package,
    sha512_of,
)
from data_tools.corpora.emoji_names import NEIGHBOUR_LANGUAGES, Names, make_classes, make_prompts, read_names
from data_tools.corpora.emoji_prompt_set import emoji_prompt_set
from leam_mm.command_line import NonNegativeInt, PositiveInt, Range, parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import temporary_path
from leam_mm.languages import LANGUAGES

log = logging.getLogger(__name__)


@dataclass
class EmojiSettings:
    """Settings of the program.

    Args:
        output: Folder for images, tables and the fetched packages.
        size: Side of the images in pixels.
        held_out_style: Style of the zero-shot test.
        base_url: Address at which the output folder will be served.
        packages: Folder with the packages (.tgz or unpacked), instead of fetching them with npm.
        languages: Languages of the captions.
        may_lack: Official languages in which an emoji may lack a name.
        variants: Train on skin tones, genders and other variants, too.
        held_out: Drawings taken out of the training at random, for audits of what a model remembers.
        seed: Seed of unseen emoji, keywords and order.
        workers: Processes that draw; by default one per core.
    """

    output: Path
    size: Annotated[int, Range(least=16, most=512)] = 64
    held_out_style: Literal["fluent", "google", "openmoji", "twemoji"] = "twemoji"
    base_url: str = "http://127.0.0.1:8000/"
    packages: Path | None = None
    languages: list[str] = field(default_factory=lambda: [*LANGUAGES, *NEIGHBOUR_LANGUAGES])
    may_lack: list[str] = field(default_factory=lambda: ["mt"], metadata={"nargs": "*"})
    variants: bool = False
    held_out: NonNegativeInt = 0
    seed: int = 0
    workers: PositiveInt = os.cpu_count() or 1

    def __post_init__(self) -> None:
        """Check what the types cannot."""
        self.base_url = served_address(self.base_url)
        self.languages = list(dict.fromkeys(self.languages))
        if "en" not in self.languages:
            raise UserError("--languages: en is missing; the tables' caption column is English, so add en")


@dataclass(frozen=True)
class Sources:
    """Content of the packages.

    Attributes:
        drawings: Every drawing, by code and style.
        names: Language to its names.
        authors: Code to the author of OpenMoji's drawing.
        evidence: For each package the sha512 of the tarball (null for an unpacked folder) and its version (null if the
            sha512 is not the expected one).
    """

    drawings: Drawings
    names: dict[str, Names]
    authors: dict[str, str]
    evidence: list[dict[str, object]]


def read_sources(settings: EmojiSettings) -> Sources:
    """Fetch or find all packages, and read their content."""
    if settings.packages and not settings.packages.is_dir():
        raise UserError(f"--packages {settings.packages}: no such folder; leave it out to fetch by npm")
    evidence: list[dict[str, object]] = []

    def content_of(package: Package) -> dict[str, bytes]:
        if settings.packages:
            path = find_package(package, settings.packages)
        else:
            path = fetch_package(package, settings.output / "packages")
        sha512 = sha512_of(path) if path.is_file() else None
        version = package.version if sha512 == package.sha512 else None
        evidence.append({"name": package.name, "sha512": sha512, "is_version": version})
        return read_package(package, path)

    contents = {style: content_of(source.package) for style, source in STYLES.items()}
    annotations = {name: content for package in NAMES for name, content in content_of(package).items()}
    return Sources(
        read_drawings(contents),
        read_names(annotations, settings.languages),
        read_authors(contents["openmoji"].get("data/openmoji.json")),
        evidence,
    )


def gather(settings: EmojiSettings) -> None:
    """Write images, tables and descriptions."""
    sources = read_sources(settings)
    drawings, names, output = sources.drawings, sources.names, settings.output
    required = [language for language in names if language in LANGUAGES and language not in settings.may_lack]

    def choose() -> Selection:
        chosen = select(
            drawings, names, required, settings.held_out_style, settings.variants, settings.seed, settings.held_out
        )
        if settings.held_out and not chosen.splits["train"]:
            raise UserError(f"--held-out {settings.held_out}: no drawing is left to train on; give a smaller number")
        if not chosen.splits["train"] or not chosen.splits["test"]:
            raise UserError("no emoji has three drawing styles and a name in every language; see --may-lack")
        return chosen

    staging = temporary_path(output / "gathered")
    try:
        staging.mkdir(parents=True)
        chosen, drawn, failed = choose(), set[Pair](), set[Pair]()
        # A drawing that fails may leave its emoji with two styles, so the selection is repeated without it.
        while missing := [pair for pair in chosen.pairs() if pair not in drawn]:
            lost = draw_all(drawings, missing, settings.size, settings.workers, staging / "images")
            for code, style in lost:
                del drawings[code][style]
            drawn |= set(missing) - lost
            failed |= lost
            chosen = choose()
        for code, style in drawn - set(chosen.pairs()):
            (staging / "images" / style / f"{code}.png").unlink()
        if failed:
            log.warning("%d images could not be drawn safely and are left out, first %s", len(failed), min(failed))
        tables = {
            split: [make_row(*pair, names, sources.authors, settings.base_url, settings.seed) for pair in pairs]
            for split, pairs in chosen.splits.items()
        }
        for split, rows in tables.items():
            schema = pa.schema([(column, pa.string()) for column in COLUMNS])
            pq.write_table(pa.Table.from_pylist(rows, schema), staging / f"{split}.parquet", compression="zstd")
        summary = {
            "splits": summarise(tables),
            "classes": len(chosen.classes),
            "held_out_style": settings.held_out_style,
            "size": settings.size,
            "seed": settings.seed,
            "variants": settings.variants,
            "languages": list(names),
            "languages_that_may_lack_names": sorted(set(settings.may_lack)),
            "pictures_not_drawn": sorted(f"{style}/{code}" for code, style in failed),
            "variant_pictures_of_held_out_style_left_out": chosen.left_out,
            "packages": sources.evidence,
        }
        classes = make_classes(chosen.classes, names)
        prompts = make_prompts(chosen.classes, names, settings.size)
        written = {"classes": classes, "prompts": prompts, "summary": summary}
        written["prompt_set"] = emoji_prompt_set(chosen.classes, names)
        for name, value in written.items():
            text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
            (staging / f"{name}.json").write_text(text, encoding="utf-8")
        replace_output(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for split, rows in tables.items():
        print(f"{output / split}.parquet: {len(rows)} images")
    print(
        f"{output}: {len(chosen.classes)} classes, {len(names)} languages, "
        "classes.json prompts.json prompt_set.json summary.json"
    )


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    start = time.monotonic()
    gather(parse_settings(EmojiSettings, __doc__, args))
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(main)

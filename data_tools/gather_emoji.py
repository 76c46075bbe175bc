"""Gather the real corpus: emoji in up to four drawing styles, with their Unicode CLDR names in all EU languages.

Images come on white, named by code point, with licence and attribution each; tables of links are ready for
download_shards. One drawing style is held out as the zero-shot test, and a few emoji are held out in all styles.
Serve the output folder where --base-url says, e.g. `python -m http.server 8000 --directory DIR`.

    python data_tools/gather_emoji.py --output runs/emoji
    python data_tools/gather_emoji.py --output runs/emoji --packages folder_with_tgz --size 32 --held-out-style openmoji
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from data_tools.corpora.emoji_images import (
    NAMES,
    STYLES,
    Package,
    Pictures,
    draw,
    fetch_package,
    find_package,
    read_authors,
    read_package,
    read_pictures,
    sha512_of,
)
from data_tools.corpora.emoji_names import (
    EU_LANGUAGES,
    NEIGHBOUR_LANGUAGES,
    PROMPT_EMOJI,
    Names,
    base_of,
    captions_of,
    emoji_of,
    group_of,
    make_classes,
    make_prompts,
    read_names,
)
from leam_mm.errors import UserError, run

log = logging.getLogger(__name__)

STYLES_PER_CLASS = 3
UNSEEN_SHARE = 0.05
Pair = tuple[str, str]  # code, style
COLUMNS = ("url", "caption", "captions", "licence", "legal_basis", "page_url", "attribution", "metadata")


@dataclass(frozen=True)
class Sources:
    """What was read of the packages.

    Attributes:
        pictures: Every drawing, by code and style.
        names: Language to its names.
        authors: Code to who drew it for OpenMoji.
        evidence: Per package the sha512 of the tarball read (null for an unpacked folder), and which version that is
            (null where the bytes are not those this program was written for).
    """

    pictures: Pictures
    names: dict[str, Names]
    authors: dict[str, str]
    evidence: list[dict[str, object]]


@dataclass(frozen=True)
class Selection:
    """Which picture goes where.

    Attributes:
        classes: Codes of the zero-shot classes, in order.
        splits: Split (`train`, `test`, `unseen`) to its (code, style) pairs, in the order of its table.
        left_out: Pictures of the held-out style that show variants; they belong to no split.
    """

    classes: list[str]
    splits: dict[str, list[Pair]]
    left_out: int

    def pairs(self) -> list[Pair]:
        """Return every (code, style) of all splits, sorted."""
        return sorted(pair for pairs in self.splits.values() for pair in pairs)


def select(
    pictures: Mapping[str, Mapping[str, object]],
    names: Mapping[str, Names],
    required: Iterable[str],
    held_out_style: str,
    variants: bool,
    seed: int,
) -> Selection:
    """Choose the classes and split the pictures, by variant group and by style.

    A class is a base emoji with at least three drawing styles and a name in every required language.

    Args:
        pictures: Code to style to anything.
        names: Language to its names.
        required: Languages in which every emoji must have a name.
        held_out_style: The style whose pictures are the test.
        variants: Whether skin tones, genders and the like join the training and the unseen emoji.
        seed: Chooses the unseen groups and the order of the training table.
    """
    required = list(required)
    eligible = {
        code
        for code, drawn in pictures.items()
        if len(drawn) >= STYLES_PER_CLASS and all(code in names[language].name for language in required)
    }
    bases = sorted(code for code in eligible if base_of(code) == code)
    codes = sorted(code for code in eligible if base_of(code) in bases) if variants else bases
    kept_groups = {group_of(code) for code in PROMPT_EMOJI}
    groups = sorted({group_of(code) for code in bases})
    candidates = [group for group in groups if group not in kept_groups]
    draw_from = random.Random(f"{seed}/unseen")
    unseen = set(draw_from.sample(candidates, min(len(candidates), round(UNSEEN_SHARE * len(groups)))))

    splits: dict[str, list[Pair]] = {"train": [], "test": [], "unseen": []}
    left_out = 0
    for code in codes:
        for style in sorted(pictures[code]):
            if group_of(code) in unseen:
                splits["unseen"].append((code, style))
            elif style != held_out_style:
                splits["train"].append((code, style))
            elif base_of(code) == code:
                splits["test"].append((code, style))
            else:
                left_out += 1
    # neighbouring rows would be the same emoji in other styles: the worst negatives a contrastive batch can have
    random.Random(f"{seed}/order").shuffle(splits["train"])
    return Selection([code for code in bases if group_of(code) not in unseen], splits, left_out)


def draw_all(pictures: Pictures, pairs: list[Pair], size: int, workers: int, folder: Path) -> set[Pair]:
    """Draw the pictures into folder/<style>/<code>.png and return the pairs that could not be drawn."""
    for style in {style for _, style in pairs}:
        (folder / style).mkdir(parents=True, exist_ok=True)
    tasks = [(content, kind, size) for kind, content in (pictures[code][style] for code, style in pairs)]
    failed: set[Pair] = set()

    def write(drawn: Iterator[bytes | None]) -> None:
        shown = track(zip(pairs, drawn, strict=True), "drawing", len(pairs), console=Console(stderr=True))
        for (code, style), content in shown:
            if content is None:
                failed.add((code, style))
            else:
                (folder / style / f"{code}.png").write_bytes(content)

    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(min(workers, len(tasks) or 1)) as pool:
            write(pool.imap(_draw_task, tasks, chunksize=32))
    else:
        write(starmap(draw, tasks))
    return failed


def _draw_task(task: tuple[bytes, str, int]) -> bytes | None:
    return draw(*task)


def make_row(
    code: str, style: str, names: Mapping[str, Names], authors: Mapping[str, str], base_url: str, seed: int
) -> dict[str, str]:
    """Return one row of the table of links."""
    source = STYLES[style]
    metadata = {
        "class_id": code,
        "emoji": emoji_of(code),
        "style": style,
        "base": base_of(code),
        "variant_group": group_of(code),
        "package": f"{source.package.name}@{source.package.version}",
        "caption_licence": "Unicode-3.0",
    }
    if source.licence_note:
        metadata["licence_note"] = source.licence_note
    return {
        "url": f"{base_url}images/{style}/{code}.png",
        "caption": names["en"].name[code],
        "captions": _json(captions_of(code, style, names, seed)),
        "licence": source.licence,
        "legal_basis": "licensed",
        "page_url": source.page_url,
        "attribution": source.attribution.format(author=authors.get(code) or "the OpenMoji project"),
        "metadata": _json(metadata),
    }


def summarise(tables: Mapping[str, list[dict[str, str]]]) -> dict[str, object]:
    """Count what the tables hold, per split: images, and images or captions by style, licence and language."""
    counts: dict[str, object] = {}
    for split, rows in tables.items():
        captions = [caption for row in rows for caption in json.loads(row["captions"])]
        metadata = [json.loads(row["metadata"]) for row in rows]
        counts[split] = {
            "images": len(rows),
            "emoji": len({entry["class_id"] for entry in metadata}),
            "variant_groups": len({entry["variant_group"] for entry in metadata}),
            "captions": len(captions),
            "images_by_style": _count(entry["style"] for entry in metadata),
            "images_by_licence": _count(row["licence"] for row in rows),
            "captions_by_language": _count(caption["language"] for caption in captions),
            "captions_by_source": _count(caption["source"] for caption in captions),
        }
    return counts


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def read_sources(arguments: argparse.Namespace) -> Sources:
    """Fetch or find all packages and read what is needed of them."""
    if arguments.packages and not arguments.packages.is_dir():
        raise UserError(f"--packages {arguments.packages}: no such folder; leave it out to fetch by npm")
    evidence: list[dict[str, object]] = []

    def content_of(package: Package) -> dict[str, bytes]:
        if arguments.packages:
            path = find_package(package, arguments.packages)
        else:
            path = fetch_package(package, arguments.output / "packages")
        sha512 = sha512_of(path) if path.is_file() else None
        evidence.append({"name": package.name, "sha512": sha512, "is_version": None})
        if sha512 == package.sha512:
            evidence[-1]["is_version"] = package.version
        return read_package(package, path)

    contents = {style: content_of(source.package) for style, source in STYLES.items()}
    annotations = {name: content for package in NAMES for name, content in content_of(package).items()}
    return Sources(
        read_pictures(contents),
        read_names(annotations, arguments.languages),
        read_authors(contents["openmoji"].get("data/openmoji.json")),
        evidence,
    )


def gather(arguments: argparse.Namespace) -> None:
    """Run the whole program on parsed arguments."""
    sources = read_sources(arguments)
    pictures, names = sources.pictures, sources.names
    required = [language for language in names if language in EU_LANGUAGES and language not in arguments.may_lack]

    def choose() -> Selection:
        chosen = select(pictures, names, required, arguments.held_out_style, arguments.variants, arguments.seed)
        if not chosen.splits["train"] or not chosen.splits["test"]:
            raise UserError("no emoji has three drawing styles and a name in every language; see --may-lack")
        return chosen

    output: Path = arguments.output
    staging = output / f"gathered.tmp-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        chosen, drawn, failed = choose(), set[Pair](), set[Pair]()
        # a picture that cannot be drawn may cost its emoji the third style, so the choice is made again without it
        while missing := [pair for pair in chosen.pairs() if pair not in drawn]:
            lost = draw_all(pictures, missing, arguments.size, arguments.workers, staging / "images")
            for code, style in lost:
                del pictures[code][style]
            drawn |= set(missing) - lost
            failed |= lost
            chosen = choose()
        for code, style in drawn - set(chosen.pairs()):
            (staging / "images" / style / f"{code}.png").unlink()
        if failed:
            log.warning("%d pictures could not be drawn safely and are left out, first %s", len(failed), min(failed))
        tables = {
            split: [make_row(*pair, names, sources.authors, arguments.base_url, arguments.seed) for pair in pairs]
            for split, pairs in chosen.splits.items()
        }
        for split, rows in tables.items():
            schema = pa.schema([(column, pa.string()) for column in COLUMNS])
            pq.write_table(pa.Table.from_pylist(rows, schema), staging / f"{split}.parquet", compression="zstd")
        summary = {
            "splits": summarise(tables),
            "classes": len(chosen.classes),
            "held_out_style": arguments.held_out_style,
            "size": arguments.size,
            "seed": arguments.seed,
            "variants": arguments.variants,
            "languages": list(names),
            "languages_that_may_lack_names": sorted(set(arguments.may_lack)),
            "pictures_not_drawn": sorted(f"{style}/{code}" for code, style in failed),
            "variant_pictures_of_held_out_style_left_out": chosen.left_out,
            "packages": sources.evidence,
        }
        classes = make_classes(chosen.classes, names)
        prompts = make_prompts(chosen.classes, names, arguments.size)
        for name, value in (("classes", classes), ("prompts", prompts), ("summary", summary)):
            text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
            (staging / f"{name}.json").write_text(text, encoding="utf-8")
        _put_in_place(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    for split, rows in tables.items():
        print(f"{output / split}.parquet: {len(rows)} images")
    print(f"{output}: {len(chosen.classes)} classes, {len(names)} languages, classes.json prompts.json summary.json")


def _put_in_place(staging: Path, output: Path) -> None:
    """Move what is finished over what an earlier run left, the images first, since the tables point to them."""
    for path in sorted(staging.iterdir(), key=lambda path: (path.is_file(), path.name)):
        target = output / path.name
        if target.is_dir():
            os.replace(target, staging / f"{path.name}.before")
        os.replace(path, target)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder for images, tables and the packages fetched")
    add("--size", type=int, default=64, help="side of the images in pixels, 16 to 512 (default 64)")
    add("--held-out-style", choices=sorted(STYLES), default="twemoji", help="style of the zero-shot test")
    add("--base-url", default="http://127.0.0.1:8000/", help="address under which the output folder will be served")
    add("--packages", type=Path, help="folder with the packages (.tgz or unpacked) instead of asking npm")
    add("--languages", nargs="+", default=[*EU_LANGUAGES, *NEIGHBOUR_LANGUAGES], help="languages of the captions")
    add("--may-lack", nargs="*", default=["mt"], help="official languages in which an emoji may lack a name")
    add("--variants", action="store_true", help="train on skin tones, genders and other variants too")
    add("--seed", type=int, default=0, help="chooses unseen emoji, keywords and order (default 0)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes that draw (default: one per core)")
    parsed = parser.parse_args(arguments)
    if not 16 <= parsed.size <= 512:
        raise UserError(f"--size {parsed.size}: choose 16 to 512")
    address = urlsplit(parsed.base_url)
    if address.scheme not in ("http", "https") or not address.netloc:
        raise UserError(f"--base-url {parsed.base_url}: give an http or https address, such as http://127.0.0.1:8000/")
    parsed.languages = list(dict.fromkeys(parsed.languages))
    if "en" not in parsed.languages:
        raise UserError("--languages: en is missing; the tables' caption column is English, so add en")
    if parsed.workers < 1:
        raise UserError(f"--workers {parsed.workers}: give at least 1")
    parsed.base_url = parsed.base_url.rstrip("/") + "/"
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Gather the corpus."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    start = time.monotonic()
    gather(parse_arguments(arguments))
    print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(main)

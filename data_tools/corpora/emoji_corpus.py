"""The emoji corpus: which drawing goes into which split, the drawing of images, and the rows of the link tables."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from data_tools.corpora.emoji_images import STYLES, Drawings, draw
from data_tools.corpora.emoji_names import PROMPT_EMOJI, Names, base_of, captions_of, emoji_of, group_of
from data_tools.work.workers import WorkerPool

STYLES_PER_CLASS = 3
UNSEEN_SHARE = 0.05
Pair = tuple[str, str]  # code, style
COLUMNS = ("url", "caption", "captions", "licence", "legal_basis", "page_url", "attribution", "metadata")


@dataclass(frozen=True)
class Selection:
    """Which drawing goes into which split.

    Attributes:
        classes: Codes of the zero-shot classes, in order.
        splits: Split (`train`, `test`, `unseen`, and `held_out` if asked for) to its (code, style) pairs, in the order
            of its table.
        left_out: Number of drawings of variants in the held-out style; they belong to no split.
    """

    classes: list[str]
    splits: dict[str, list[Pair]]
    left_out: int

    def pairs(self) -> list[Pair]:
        """Return every (code, style) of all splits, sorted."""
        return sorted(pair for pairs in self.splits.values() for pair in pairs)


def select(
    drawings: Mapping[str, Mapping[str, object]],
    names: Mapping[str, Names],
    required: Iterable[str],
    held_out_style: str,
    variants: bool,
    seed: int,
    held_out: int = 0,
) -> Selection:
    """Choose the classes and split the drawings by variant group and style.

    A class is a base emoji with at least three drawing styles and a name in every required language.

    Args:
        drawings: Code to style to anything.
        names: Language to its names.
        required: Languages in which every emoji must have a name.
        held_out_style: The style whose drawings are the test.
        variants: Include skin tones, genders and other variants in the training and the unseen emoji.
        seed: Seed of the unseen groups and of the order of the training table.
        held_out: Number of drawings taken out of the training at random, to audit what a model remembers.
    """
    required = list(required)
    eligible = {
        code
        for code, drawn in drawings.items()
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
        for style in sorted(drawings[code]):
            if group_of(code) in unseen:
                splits["unseen"].append((code, style))
            elif style != held_out_style:
                splits["train"].append((code, style))
            elif base_of(code) == code:
                splits["test"].append((code, style))
            else:
                left_out += 1
    # Without it, neighbouring rows show the same emoji in other styles: false negatives of a contrastive batch.
    random.Random(f"{seed}/order").shuffle(splits["train"])
    if held_out:  # a random part of the shuffled drawings
        splits["held_out"], splits["train"] = splits["train"][:held_out], splits["train"][held_out:]
    return Selection([code for code in bases if group_of(code) not in unseen], splits, left_out)


def draw_all(drawings: Drawings, pairs: list[Pair], size: int, workers: int, folder: Path) -> set[Pair]:
    """Draw images to folder/<style>/<code>.png and return the pairs that could not be drawn."""
    for style in {style for _, style in pairs}:
        (folder / style).mkdir(parents=True, exist_ok=True)
    tasks = ((*drawings[code][style], size) for code, style in pairs)
    failed: set[Pair] = set()
    pool: WorkerPool[None] = WorkerPool(workers, cure="give fewer --workers")
    with pool:
        drawn = pool.run(_draw_task, tasks, ahead=64 * workers, died=_not_drawn)
        shown = track(zip(pairs, drawn, strict=True), "drawing", len(pairs), console=Console(stderr=True))
        for (code, style), (_, content) in shown:
            if content is None:
                failed.add((code, style))
            else:
                (folder / style / f"{code}.png").write_bytes(content)
    return failed


def _draw_task(_: None, task: tuple[str, bytes, int]) -> bytes | None:
    kind, content, size = task
    return draw(content, kind, size)


def _not_drawn(_: tuple[str, bytes, int]) -> bytes | None:
    """Return the result of a file that ends the process that draws it."""
    return None


def make_row(
    code: str, style: str, names: Mapping[str, Names], authors: Mapping[str, str], base_url: str, seed: int
) -> dict[str, str]:
    """Return one row of the link table."""
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

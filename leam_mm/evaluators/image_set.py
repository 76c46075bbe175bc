"""Images to evaluate an encoder on: class sub-folders, a clip-benchmark folder, or shards; the layout is detected."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from leam_mm.errors import UserError
from leam_mm.evaluators.class_folder import class_names_of, has_images, read_class_folder
from leam_mm.evaluators.clip_benchmark_folder import NAMES, SHARDS, read_samples, read_templates, read_texts
from leam_mm.evaluators.embedding import read_image_samples
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.stored_image import StoredImage

Layout = Literal["class sub-folders", "clip-benchmark folder", "shards"]
PARTS = ("train", "val", "valid", "validation", "test")
CLASS_FILE = "classes.json"
FEWEST_IMAGES = 2


@dataclass(frozen=True)
class ImageSet:
    """Images with classes, captions, or both.

    Args:
        layout: How the folder is arranged.
        place: The folder of the images, that of one split where there are several.
        split: Name of the split; empty where the folder has no splits.
        samples: The images.
        classes: Class ids, also of classes without images; empty where images have captions alone.
        names: English name of each class; None where only ids are known.
        templates: Templates that come with the folder, with {} in place of the name; None where there are none.
    """

    layout: Layout
    place: Path
    split: str
    samples: list[StoredImage]
    classes: list[str]
    names: list[str] | None = None
    templates: list[str] | None = None

    def described(self) -> str:
        """Return what was found, in a few words."""
        part = f", split {self.split}" if self.split else ""
        captioned = sum(bool(sample.record.get("captions")) for sample in self.samples)
        captions = f", {captioned} with captions" if captioned else ""
        return f"{self.layout}{part}: {len(self.samples)} images of {len(self.classes)} classes{captions}"

    def caption_languages(self) -> list[str]:
        """Return the languages of the captions, sorted by code."""
        return sorted({
            str(caption.get("language")) for sample in self.samples for caption in sample.record.get("captions") or []
        })  # fmt: skip


def find_layout(folder: Path, split: str) -> tuple[Layout, Path, str]:
    """Return layout, folder of the images, and the split's name (empty where the folder has no splits).

    Args:
        folder: The folder.
        split: Split to look for.

    Raises:
        UserError: It holds nothing that can be measured, or no such split.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: give a folder of class sub-folders, of tars, or of shards")
    if Path(split).name != split or split == "..":
        raise UserError(f"--split {split!r} is no name of a folder in {folder}: give one such as test")
    for place, name in ((folder / split, split), (folder, "")):
        if any((place / file).is_file() for file in ("manifest.jsonl", "keep.parquet")):
            return "shards", place, name
    if (folder / split / SHARDS).is_file():
        return "clip-benchmark folder", folder, split
    others = sorted({file.parent.name for file in folder.glob(f"*/{SHARDS}")})
    others += sorted({file.parent.name for file in folder.glob("*/manifest.jsonl")})
    if others:
        raise UserError(f"{folder} has no split {split!r}, but {', '.join(others)}: give one of them with --split")
    if (folder / SHARDS).is_file():
        raise UserError(f"{folder} is one split of a clip-benchmark folder: give {folder.parent} --split {folder.name}")
    if (folder / split).is_dir() and class_names_of(folder / split):
        return "class sub-folders", folder / split, split
    found = class_names_of(folder)
    if not found:
        what = "images but no class sub-folders" if has_images(folder) else "no image, no tars and no shards"
        raise UserError(f"{folder} holds {what}: give a folder with one sub-folder of images for each class")
    if set(found) <= set(PARTS) and any(class_names_of(folder / name) for name in found):
        raise UserError(f"{folder} has no split {split!r}, but {', '.join(found)}: give one of them with --split")
    return "class sub-folders", folder, ""


def read_image_set(
    folder: Path, split: str, preparation: ImagePreparation, limit: int | None = None, language: str = "en"
) -> ImageSet:
    """Read the list of images; pixels are decoded later.

    Args:
        folder: The folder; its layout is detected.
        split: Split to read, if the folder has splits.
        preparation: How images become pixels, apart from orientation.
        limit: Maximum number of images, spread evenly; None takes all.
        language: Language of captions that state none.

    Raises:
        UserError: The folder is empty or damaged.
    """
    layout, place, found = find_layout(folder, split)
    upright = replace(preparation, upright=True)
    names: list[str] | None = None
    templates: list[str] | None = None
    if layout == "shards":
        samples = [
            StoredImage(sample.key, sample.encoded, sample.record, preparation=preparation)
            for sample in read_image_samples(place, limit)
        ]
        classes = sorted({sample.class_id for sample in samples if sample.class_id is not None})
    elif layout == "clip-benchmark folder":
        classes, samples = read_samples(place, split, preparation, language)
        lines = read_texts(place / NAMES)
        names, templates = lines or None, read_templates(place)
    else:
        classes, samples = read_class_folder(place, upright)
        names = [readable(name) for name in classes]
        if len(classes) < 2:
            raise UserError(f"{place} has one class, {classes[0]!r}: give at least two sub-folders of images")
        if twice := [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]:
            raise UserError(f"{place} has two sub-folders for the class {twice[0]!r}: join them")
    samples = spread(samples, limit)
    if len(samples) < FEWEST_IMAGES:
        raise UserError(f"{place} holds {len(samples)} images: give at least {FEWEST_IMAGES}")
    return ImageSet(layout, place, found, samples, classes, names, templates)


def spread(samples: Sequence[StoredImage], limit: int | None) -> list[StoredImage]:
    """Return at most `limit` samples, spread evenly, always the same ones."""
    count = len(samples) if limit is None else min(limit, len(samples))
    return [samples[number * len(samples) // count] for number in range(count)]


def readable(name: str) -> str:
    """Return the name of a sub-folder as words."""
    return " ".join(name.replace("_", " ").split())

"""Split a folder of captioned images into a table to train on and a held-out table, for data_tools/download_shards.py.

    python data_tools/split_folder.py --folder images --output run/tables --held-out 0.2

Each image has its caption in a ``.txt`` file beside it, or there is a ``captions.csv``, ``.jsonl`` or ``.parquet``.
Which images are held out depends only on their content: images that look alike are never divided, and the choice does
not depend on the path of the folder. One image is enough; of fewer than 4 that look different none is held out, of
fewer than 8 one is. ``split.json`` counts both sides.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from data_tools.links.image_folder import FolderColumns, read_image_folder
from data_tools.vetting.held_out_images import ENOUGH, FEWEST, choose_held_out, look_alikes, read_folder_image
from data_tools.vetting.near_duplicates import NearDuplicates
from leam_mm.command_line import parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import remove_leftovers, write_json, write_text
from leam_mm.run_lock import beside, run_lock

SPLIT = "split.json"
CROPPED = 0.2  # share of an image outside its centre square, above which a warning counts it


@dataclass
class Settings(FolderColumns):
    """Settings of this program.

    Args:
        folder: Images with captions; see docs/data.md for its forms.
        output: Folder of train.jsonl, held_out.jsonl (if any image is held out) and split.json.
        held_out: Share of images to hold out, between 0 and 1.
        language: Language of the captions, as two letters.
        licence: Licence of the images.
        legal_basis: Legal basis of their use.
    """

    folder: Path
    output: Path
    held_out: float = 0.2
    language: str = "en"
    licence: str = "not stated"
    legal_basis: str = "not stated"


def split_images(paths: list[Path], share: float) -> tuple[list[bool], dict[str, Any]]:
    """Return which images are held out, and the content of split.json: counts, and what the centre square crops.

    Args:
        paths: The images.
        share: Share of the images to hold out, between 0 and 1.
    """
    rule = NearDuplicates(captions=False)
    images = [read_folder_image(path, rule) for path in paths]
    groups = look_alikes(images, rule)
    chosen = choose_held_out(groups, share)
    found: dict[str, Any] = {
        "images": len(paths),
        "look_different": len(groups),
        "train": len(paths) - len(chosen),
        "held_out": len(chosen),
    }
    cropped = [image.cropped for image in images]
    found["cropped"] = {"share": CROPPED, "images": sum(each > CROPPED for each in cropped), "largest": max(cropped)}
    found["cropped"]["name"] = paths[int(np.argmax(cropped))].name
    return [number in chosen for number in range(len(paths))], found


def describe_split(folder: Path, found: dict[str, Any]) -> str:
    """Return one line about both sides, with the minimum that a held-out image takes."""
    alike = found["images"] - found["look_different"]
    text = f"{folder}: {found['images']} image{'' if found['images'] == 1 else 's'}"
    text += f" ({alike} look like another one)" if alike else ""
    text += f", {found['train']} to train on, "
    if not found["held_out"]:
        return f"{text}none held out: that takes {FEWEST} images that look different, and a share of them {ENOUGH}"
    few = f" ({ENOUGH} images that look different allow a share)" if found["look_different"] < ENOUGH else ""
    return f"{text}{found['held_out']} held out{few}"


def table_rows(settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of a table of links, with absolute addresses; the folder's own table overrides the settings."""
    folder = settings.folder
    images = read_image_folder(folder, settings)
    print(images.describe(), file=sys.stderr)
    rows = images.table(lenient=False).to_pylist()
    for row in rows:
        parts = urlsplit(row["url"])
        if parts.scheme != "file":
            raise UserError(f"{folder}: {row['url']} is not a file; fetch it first with data_tools/download_shards.py")
        path = folder / unquote(parts.path)
        if not path.is_file():
            raise UserError(f"{path} does not exist: correct the folder's table of captions")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of {folder}; copy the image instead")
        row["url"] = path.resolve().as_uri()
        for name in ("language", "licence", "legal_basis"):
            row[name] = row.get(name) or getattr(settings, name)
    return rows


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_settings(Settings, __doc__, args)
    if not 0 < settings.held_out < 1:
        raise UserError(f"--held-out is {settings.held_out}: give a share between 0 and 1")
    with run_lock(beside(settings.output), settings.output):
        write_tables(settings)


def write_tables(settings: Settings) -> None:
    """Write both tables."""
    rows = table_rows(settings)
    paths = [Path(unquote(urlsplit(row["url"]).path)) for row in rows]
    held_out, found = split_images(paths, settings.held_out)
    for name in ("*.jsonl", SPLIT):
        remove_leftovers(settings.output, name)
    (settings.output / "held_out.jsonl").unlink(missing_ok=True)
    for name, wanted in (("train", False), ("held_out", True)):
        lines = [json.dumps(row, ensure_ascii=False) for row, out in zip(rows, held_out, strict=True) if out == wanted]
        if lines:
            write_text(settings.output / f"{name}.jsonl", "\n".join(lines) + "\n")
    write_json(settings.output / SPLIT, found)
    print(describe_split(settings.folder, found))
    if (cropped := found["cropped"])["images"]:
        print(
            f"warning: training crops images to the square at their centre: {cropped['images']} of {found['images']} "
            f"lose more than {CROPPED:.0%} of their area ({cropped['name']}: {cropped['largest']:.0%}); crop them "
            "yourself, or pad them (make finetune: FIT=border; download_shards: --resize border)",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)

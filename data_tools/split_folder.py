"""Split a folder of captioned images into a table to train on and a held-out table, for data_tools/download_shards.py.

    python data_tools/split_folder.py --folder images --output run/tables --held-out 0.2

Each image has its caption in a ``.txt`` file beside it, or there is a ``captions.csv``, ``.jsonl`` or ``.parquet``.
Which images are held out depends only on their content: equal images are never divided, and the choice does not depend
on the path of the folder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data_tools.links.link_table import folder_links
from leam_mm.command_line import parse_settings
from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256, write_text

FEWEST = 8  # different images


@dataclass
class Settings:
    """Settings of this program.

    Args:
        folder: Images, each with its caption in a .txt file beside it.
        output: Folder of train.jsonl and held_out.jsonl.
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


def split(digests: list[str], share: float) -> list[bool]:
    """Return which images are held out: those with the smallest digests, about a share of them and at least two.

    Args:
        digests: SHA-256 of each image.
        share: Between 0 and 1.

    Raises:
        UserError: There are fewer than ``FEWEST`` different images.
    """
    unique = sorted(set(digests))
    if len(unique) < FEWEST:
        raise UserError(f"there are {len(unique)} different images: give a folder with at least {FEWEST}")
    count = min(max(2, round(share * len(unique))), len(unique) - 2)
    chosen = set(unique[:count])
    return [digest in chosen for digest in digests]


def table_rows(settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of a table of links, with absolute addresses; the folder's own table overrides the settings."""
    folder = settings.folder
    rows = folder_links(folder).to_pylist()
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
    rows = table_rows(settings)
    held_out = split([file_sha256(unquote(urlsplit(row["url"]).path)) for row in rows], settings.held_out)
    for name, wanted in (("train", False), ("held_out", True)):
        lines = [json.dumps(row, ensure_ascii=False) for row, out in zip(rows, held_out, strict=True) if out == wanted]
        write_text(settings.output / f"{name}.jsonl", "\n".join(lines) + "\n")
    print(f"{settings.output}: {held_out.count(False)} images to train on, {held_out.count(True)} held out")


if __name__ == "__main__":
    run(main)

"""Split a folder of captioned pictures into a table to train on and a held-out one, for data_tools/download_shards.py.

    python data_tools/split_folder.py --folder pictures --output run/tables --held-out 0.2

Each picture has its caption in a ``.txt`` file beside it (or there is a ``captions.csv``, ``.jsonl`` or ``.parquet``).
Which ones are held out follows from their content alone: equal pictures fall on the same side, and it is the same
choice wherever the folder lies.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from data_tools.links.link_table import folder_links
from leam_mm.errors import UserError, run

FEWEST = 8  # pictures, below which nothing can be held out and learnt


def split(digests: list[str], share: float) -> list[bool]:
    """Which of the pictures are held out: those of the smallest digests, about a share of them, two at least.

    Args:
        digests: sha256 of each picture; equal pictures have equal ones.
        share: Between 0 and 1.
    """
    unique = sorted(set(digests))
    if len(unique) < FEWEST:
        raise UserError(f"there are {len(unique)} different pictures: {FEWEST} at least are needed; add some")
    count = min(max(2, round(share * len(unique))), len(unique) - 2)
    chosen = set(unique[:count])
    return [digest in chosen for digest in digests]


def rows_of(folder: Path, language: str, licence: str, legal_basis: str) -> list[dict[str, Any]]:
    """A row of a table of links for each picture, with absolute addresses.

    Args:
        folder: Pictures and captions.
        language: Of the captions, where the folder's own table does not say.
        licence: Of the pictures, likewise.
        legal_basis: On which they are used, likewise.
    """
    rows = folder_links(folder).to_pylist()
    usual = {"language": language, "licence": licence, "legal_basis": legal_basis}
    for row in rows:
        parts = urlsplit(row["url"])
        if parts.scheme != "file":
            raise UserError(f"{folder}: {row['url']} is no file; fetch it first with data_tools/download_shards.py")
        path = folder / unquote(parts.path)
        if not path.is_file():
            raise UserError(f"{path} is not there: mend the folder's table of captions")
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} leads out of {folder}; copy the picture instead")
        row["url"] = path.resolve().as_uri()
        for name, value in usual.items():
            row[name] = row.get(name) or value
    return rows


def write_tables(rows: list[dict[str, Any]], held_out: list[bool], output: Path) -> None:
    """Write train.jsonl and held_out.jsonl, beside and renamed."""
    output.mkdir(parents=True, exist_ok=True)
    for name, wanted in (("train", False), ("held_out", True)):
        lines = [json.dumps(row, ensure_ascii=False) for row, out in zip(rows, held_out, strict=True) if out == wanted]
        temporary = output / f"{name}.jsonl.tmp-{os.getpid()}"
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, output / f"{name}.jsonl")


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, required=True, help="pictures, each with its caption in a .txt beside it"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of train.jsonl and held_out.jsonl")
    parser.add_argument("--held-out", type=float, default=0.2, help="share to keep for measuring (%(default)s)")
    parser.add_argument("--language", default="en", help="of the captions, as two letters (%(default)s)")
    parser.add_argument("--licence", default="not stated", help="of the pictures (%(default)s)")
    parser.add_argument("--legal-basis", default="not stated", help="on which they are used (%(default)s)")
    options = parser.parse_args(args)
    if not 0 < options.held_out < 1:
        raise UserError(f"--held-out is {options.held_out}: give a share between 0 and 1")
    rows = rows_of(options.folder, options.language, options.licence, options.legal_basis)
    digests = [hashlib.sha256(Path(unquote(urlsplit(row["url"]).path)).read_bytes()).hexdigest() for row in rows]
    held_out = split(digests, options.held_out)
    write_tables(rows, held_out, options.output)
    print(f"{options.output}: {held_out.count(False)} pictures to train on, {held_out.count(True)} held out")


if __name__ == "__main__":
    run(main)

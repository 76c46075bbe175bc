"""Images of the report: concepts by language, and contact sheets with the verdict on each image."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from leam_mm.data.image_file import open_image
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object
from leam_mm.report.report_number import Row
from leam_mm.report.report_words import metric_words, plain

MAX_INDEX_BYTES, MAX_IMAGE_BYTES = 4_000_000, 8_000_000
MAX_EMBEDDED_BYTES = 12_000_000  # of all images of a page; the others are named
MAX_PER_SHEET = 48
SMALL = 96  # pixels; smaller images are enlarged without smoothing
PROMPTS, PROMPT_SHEET = "prompts.json", "prompts.png"  # of evaluators/generation.PromptGrid
SHEET_FORMAT = "leam_mm contact sheet 1"  # of evaluators/contact_sheet


def images(folders: Sequence[Path], language: str) -> dict[str, Any] | None:
    """Return the images of evaluation folders: concepts by language, contact sheets, and every other PNG.

    Args:
        folders: The folders; one that does not exist has none.
        language: Of the page.

    Returns:
        `rows` (lists of figures, a concept each), `sheets` (title, columns, figures) and `files` (name and image).

    Raises:
        UserError: An index or an image is damaged.
    """
    reader = _ImageReader()
    found: dict[str, list[Any]] = {"rows": [], "sheets": [], "files": []}
    for folder in folders:
        prompts = folder / PROMPTS
        rows = _read(prompts, partial(_rows, folder, reader)) if prompts.is_file() else []
        found["rows"] += rows
        for path in sorted(folder.glob("*.json")):
            if path.is_file() and path.stat().st_size <= MAX_INDEX_BYTES and SHEET_FORMAT.encode() in path.read_bytes():
                found["sheets"].append(_read(path, partial(_sheet, folder, reader, language)))
        found["files"] += [
            (plain(path.stem), reader.read(path))
            for path in sorted(folder.glob("*.png"))
            if not (path.name == PROMPT_SHEET and rows)
        ]
    return found if any(found.values()) else None


def _read(path: Path, parse: Callable[[Row], Any]) -> Any:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError
        return parse(parse_object(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}); run the evaluation again") from None


def _rows(folder: Path, reader: "_ImageReader", content: Row) -> list[list[Row]]:
    order = {str(code): number for number, code in enumerate(content["languages"])}
    rows: dict[int, dict[str, Row]] = {}
    for entry in content["pictures"]:
        code, text = str(entry["language"]), str(entry["text"])
        file = reader.read(folder / "prompts" / Path(str(entry["image"])).name)
        figure = {"language": code, "text": text, "label": "", "right": [], "wrong": [], "file": file}
        rows.setdefault(int(entry["row"]), {})[code] = figure
    return [
        sorted(row.values(), key=lambda entry: order.get(entry["language"], len(order)))
        for _, row in sorted(rows.items())
    ]


def _sheet(folder: Path, reader: "_ImageReader", language: str, content: Row) -> Row:
    entries = content["images"][:MAX_PER_SHEET]
    figures = []
    for entry in entries:
        # Only two names are used: a path from inside a file is not trusted.
        file = Path(str(entry["image"]))
        figure: Row = {key: str(entry.get(key) or "") for key in ("text", "language", "label")}
        figure |= {key: _names(entry.get(key), language) for key in ("right", "wrong")}
        figures.append(figure | {"file": reader.read(folder / file.parent.name / file.name)})
    left_out = len(content["images"]) - len(entries)
    return {
        "title": str(content["title"]), "columns": max(0, int(content.get("columns") or 0)), "figures": figures,
        "left_out": left_out,
    }  # fmt: skip


def _names(value: Any, language: str) -> Sequence[str]:
    return [metric_words(str(name), language) for name in value] if isinstance(value, list) else []


class _ImageReader:
    """Reads PNG files for embedding until ``MAX_EMBEDDED_BYTES`` are spent."""

    def __init__(self) -> None:
        self.left = MAX_EMBEDDED_BYTES

    def read(self, path: Path) -> Row:
        """Return base64 data and size of an image; without data if it is missing or does not fit.

        Raises:
            UserError: The file is not a PNG image.
        """
        try:
            size = path.stat().st_size if path.is_file() else 0
            content = path.read_bytes() if 0 < size <= min(MAX_IMAGE_BYTES, self.left) else b""
        except (OSError, ValueError):  # a name that no file system takes
            content = b""
        if not content:
            return {"name": path.name, "data": ""}
        try:
            width, height = open_image(content, ("PNG",)).size
        except Exception:  # Pillow raises many kinds on hostile headers
            raise UserError(f"{path}: is not a PNG image; remove it or run the evaluation again") from None
        self.left -= len(content)
        data = base64.b64encode(content).decode("ascii")
        return {"name": path.name, "data": data, "width": width, "height": height, "small": max(width, height) <= SMALL}

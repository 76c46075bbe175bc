"""The image at the top of the model card: prompts in several languages, drawn by the released generator."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from leam_mm.data.image_file import open_image
from leam_mm.documents.release_facts import StageFacts
from leam_mm.json_text import parse_object

log = logging.getLogger(__name__)
SHEET, INDEX = "prompts.png", "prompts.json"  # of evaluators/generation.PromptGrid
TARGET = "documents/images/generated.png"
MAX_SHEET, MAX_INDEX, MAX_PIXELS = 8 << 20, 1 << 20, 1 << 25
MAX_TEXT = 600  # characters of the description


def copy_card_image(results: Sequence[Path], stages: Sequence[StageFacts], folder: Path) -> dict[str, str]:
    """Copy the sheet of generated images beside the results into the release.

    The file is copied as it is, so that the marks of its writer stay. A sheet of another generator is left out.

    Args:
        results: results.jsonl files of evaluate.py, or their folders.
        stages: Runs of the release.
        folder: The release folder.

    Returns:
        Path in the release to the description of the image; empty without a sheet.
    """
    generator = next((stage for stage in stages if stage.kind == "generator"), None)
    if generator is None:
        return {}
    for path in results:
        evaluation = path if path.is_dir() else path.parent
        sheet = evaluation / SHEET
        if not sheet.is_file():
            continue
        if not _drawn_by(sheet, generator.checkpoint_sha256):
            log.warning("%s was not drawn by the released generator: the model card goes without an image", sheet)
            continue
        if text := _description(evaluation / INDEX):
            (folder / TARGET).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sheet, folder / TARGET)
            return {TARGET: text}
    return {}


def _drawn_by(sheet: Path, sha256: str) -> bool:
    """Return whether the mark of an image names a generator by the start of its digest."""
    try:
        if sheet.stat().st_size > MAX_SHEET:
            return False
        model = str(open_image(sheet.read_bytes(), ("PNG",), MAX_PIXELS).info.get("Model", ""))
    except Exception:  # Pillow raises many kinds on hostile headers
        return False
    return model.rpartition(" ")[2] == sha256[:12]


def _description(index: Path) -> str:
    """Return the prompts of a sheet in its first language, and the codes of all; empty if they cannot be read."""
    try:
        if index.stat().st_size > MAX_INDEX:
            return ""
        content = parse_object(index.read_bytes())
        codes = [str(code) for code in content["languages"]]
        rows: dict[int, str] = {}
        for entry in content["pictures"]:
            rows.setdefault(int(entry["row"]), str(entry["text"]))
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s cannot be read: the model card goes without an image", index)
        return ""
    text = "; ".join(rows[row] for row in sorted(rows))
    shown = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
    return f"{shown} ({', '.join(codes)})" if rows else ""

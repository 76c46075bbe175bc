"""The files of a tokenizer inside a checkpoint, so that a run opens after its tokenizer's folder was moved."""

import tempfile
from pathlib import Path
from typing import Any

from leam_mm.data.tokenizer import CONFIG, ENGLISH, TOKENIZER_FILES
from leam_mm.errors import UserError
from leam_mm.files import write_text

KEPT = (*TOKENIZER_FILES, CONFIG)
MAX_FILE = 1 << 26  # characters of one of them
_folders: dict[tuple[tuple[str, str], ...], tempfile.TemporaryDirectory[str]] = {}


def read_tokenizer(path: Path) -> dict[str, str]:
    """Return the files of a tokenizer by name; empty for open_clip's English vocabulary, which is no folder."""
    if str(path) == ENGLISH:
        return {}
    return {name: (path / name).read_text(encoding="utf-8") for name in KEPT if (path / name).is_file()}


def tokenizer_folder(files: dict[str, Any]) -> Path:
    """Return a folder with the files of a checkpoint, which lasts as long as this process.

    Args:
        files: As of `read_tokenizer`; the checkpoint may come from someone else.

    Raises:
        UserError: A file has another name, is no text, or is too long.
    """
    for name, text in files.items():
        if name not in KEPT or not isinstance(text, str) or len(text) > MAX_FILE:
            raise UserError(f"the tokenizer in the checkpoint has a file {name!r:.80}, not {', '.join(KEPT)}")
    content = tuple(sorted(files.items()))
    if content not in _folders:
        _folders[content] = tempfile.TemporaryDirectory(prefix="leam_mm_tokenizer_")
        for name, text in content:
            write_text(Path(_folders[content].name) / name, text)
    return Path(_folders[content].name)

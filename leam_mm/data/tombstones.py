"""Evidence of withdrawals in a shard folder: which samples were taken out, and the signed statements about it."""

import shutil
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.json_text import parse_lines

TOMBSTONES, STATEMENTS = "tombstones.jsonl", "withdrawals"


def withdrawn_keys(folder: Path) -> set[str]:
    """Return the keys of the samples that earlier withdrawals took out of a folder."""
    path = folder / TOMBSTONES
    if not path.is_file():
        return set()
    try:
        return {str(stone["key"]) for _, stone in parse_lines(path.read_bytes())}
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: a line is not a tombstone ({error}); restore the file") from None


def copy_evidence(old: Path, new: Path) -> None:
    """Copy tombstones and statements into a folder that will replace another one, as a repeated download does."""
    if (old / TOMBSTONES).is_file():
        shutil.copy2(old / TOMBSTONES, new / TOMBSTONES)
    if (old / STATEMENTS).is_dir():
        shutil.copytree(old / STATEMENTS, new / STATEMENTS, dirs_exist_ok=True)

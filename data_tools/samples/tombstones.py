"""Evidence of withdrawals in a shard folder: which samples were taken out, and the signed statements about it."""

import json
import shutil
from pathlib import Path

from leam_mm.errors import UserError

TOMBSTONES, STATEMENTS = "tombstones.jsonl", "withdrawals"


def withdrawn_keys(folder: Path) -> set[str]:
    """Return the keys of the samples that earlier withdrawals took out of a folder."""
    path = folder / TOMBSTONES
    if not path.is_file():
        return set()
    try:
        return {str(json.loads(line)["key"]) for line in path.read_text("utf-8").splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a line is not a tombstone ({error}); restore the file") from None


def copy_evidence(old: Path, new: Path) -> None:
    """Copy tombstones and statements into a folder that will replace another one, as a repeated download does."""
    if (old / TOMBSTONES).is_file():
        shutil.copy2(old / TOMBSTONES, new / TOMBSTONES)
    if (old / STATEMENTS).is_dir():
        shutil.copytree(old / STATEMENTS, new / STATEMENTS, dirs_exist_ok=True)

"""The work folder of a program: one run at a time, always with the same settings.

Programs that run for a long time keep finished pieces in a folder beside their output, so that a killed run continues
where it ended. ``lock`` keeps a second run out of it, and ``fingerprint.json`` holds the settings that decide the
result: pieces of two different results must not be mixed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.files import remove_leftovers, temporary_path
from leam_mm.run_lock import LOCK, run_lock

FINGERPRINT = "fingerprint.json"
LONGEST_VALUE = 60  # characters of a setting in a message


@contextmanager
def open_work_folder(
    folder: Path, settings: dict[str, Any], chosen: dict[str, Any] | None = None, piece: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, Any]]:
    """Create a work folder, or continue in it if the settings are the same; it is locked until the block ends.

    Temporary files that a killed run left in the folder or one level below are removed.

    Args:
        folder: The work folder.
        settings: All that decides the result; must be JSON.
        chosen: Values that the first run chooses and later runs take over, whatever they would have chosen.
        piece: Number of this job and number of jobs; the jobs of an array share the folder.

    Yields:
        ``chosen`` of the first run.

    Raises:
        UserError: Another run uses the folder, or it was started with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alone = piece == (0, 1)
    with ExitStack() as locks:
        locks.enter_context(run_lock(folder / LOCK, shared=not alone))
        if alone:
            for pattern in ("*", "*/*"):
                remove_leftovers(folder, pattern)
        else:
            locks.enter_context(run_lock(folder / f"{LOCK}.{piece[0]}"))
        record = folder / FINGERPRINT
        if not record.exists():
            # Named by the job as well: process numbers of several machines may be equal.
            temporary = temporary_path(folder / f"{FINGERPRINT}.{piece[0]}")
            temporary.write_text(json.dumps(settings | (chosen or {})))
            with suppress(FileExistsError):  # jobs of an array start at once: the first one decides
                os.link(temporary, record)
            temporary.unlink()
        stored = json.loads(record.read_text())
        first = {name: stored.pop(name, value) for name, value in (chosen or {}).items()}
        compare_settings(stored, settings, folder, "start with the old settings, or delete that folder")
        yield first


def compare_settings(old: dict[str, Any], new: dict[str, Any], where: Path, cure: str) -> None:
    """Refuse settings that differ from those with which a folder was started.

    Args:
        old: Settings as read from JSON; names that ``new`` lacks are ignored.
        new: Settings of this run.
        where: The folder.
        cure: What the user can do about it.

    Raises:
        UserError: A setting differs.
    """
    for name, value in json.loads(json.dumps(new)).items():
        before = old.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            compare_settings(before, value, where, cure)
        if before != value:
            raise UserError(f"{where} was started with another {name} ({_short(before)}, now {_short(value)}): {cure}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."

"""The work folder of a program: one run at a time, always with the same settings.

Programs that run for a long time keep finished pieces in a folder beside their output, so that a killed run continues
where it ended. ``lock`` keeps a second run out of it, and ``fingerprint.json`` holds the settings that decide the
result: pieces of two different results must not be mixed.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leam_mm.errors import UserError
from leam_mm.files import remove_leftovers, temporary_path

FINGERPRINT, LOCK = "fingerprint.json", "lock"
PATIENCE = 4.5  # seconds in which the processes of a killed run end and release its locks
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
    in_use = f"{folder} is in use by another run: wait for it, or choose another --output"
    with ExitStack() as locks:
        if alone:
            locks.enter_context(exclusive_lock(folder / LOCK, in_use))
            for pattern in ("*", "*/*"):
                remove_leftovers(folder, pattern)
        else:
            locks.enter_context(_shared_lock(folder / LOCK, in_use))
        locks.enter_context(exclusive_lock(folder / f"{LOCK}.{piece[0]}", in_use))
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


@contextmanager
def exclusive_lock(path: Path, in_use: str) -> Iterator[None]:
    """Hold a lock file until the block ends; the operating system releases it if this process dies.

    Args:
        path: The lock file; it stays after the block.
        in_use: Error message if another process still holds the lock after ``PATIENCE``.
    """
    lock = FileLock(path, timeout=PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(in_use) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _shared_lock(path: Path, in_use: str) -> Iterator[None]:
    """Share a lock with other jobs of an array; flock directly, because filelock has exclusive locks only."""
    end = time.monotonic() + PATIENCE
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UserError(in_use) from None
                time.sleep(0.1)
        yield


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

"""Generations of a run's checkpoints: the newest few files are kept, and ``last.ckpt`` is a second name of the newest.

A folder holds ``generation-000017-samples-000000013440.ckpt`` and its neighbours. The first number counts the saves of
the folder, the second one the samples seen. A generation is written under a temporary name and renamed, then
``last.ckpt`` moves to it, and only then an old generation is removed: whenever the process is killed, a complete file
is in the folder. Folders of older versions hold ``last.ckpt`` and ``previous.ckpt`` only, and are read as well.
"""

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from leam_mm.checkpoint_file import has_sound_digest
from leam_mm.checkpoint_shards import SHARDS, has_sound_parts, shards_folder
from leam_mm.files import atomic_write, link_name, second_name, write_bytes
from leam_mm.system_fault import system_fault

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
NAME = r"generation-([0-9]{1,12})(?:-samples-([0-9]{1,18}))?"  # other names are not of a run
GENERATION, PARTS_OF_GENERATION = re.compile(rf"{NAME}\.ckpt"), re.compile(rf"{NAME}\.{SHARDS}")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
log = logging.getLogger(__name__)


def generations(folder: Path) -> list[Path]:
    """Return the generations in a folder, the newest first; what is no file is none, whatever its name."""
    return [file for _, file in _named(folder) if file.is_file()]


def _named(folder: Path) -> list[tuple[re.Match[str], Path]]:
    """Return all that has the name of a generation, the highest number first."""
    found = [(match, file) for file in folder.glob("generation-*.ckpt") if (match := GENERATION.fullmatch(file.name))]
    return sorted(found, key=lambda pair: int(pair[0][1]), reverse=True)


def candidates(folder: Path) -> list[Path]:
    """Return the files that a run may resume from, in order: last.ckpt, then the others from new to old, each once."""
    last = folder / LAST
    return [file for file in all_names(folder) if file == last or not (last.is_file() and _same(file, last))]


def all_names(folder: Path) -> list[Path]:
    """Return all names of the files that a run may resume from; last.ckpt and the newest one are one file."""
    return [file for file in (folder / LAST, *generations(folder), folder / PREVIOUS) if file.is_file()]


def next_generation(folder: Path, samples: int | None, again: bool = True) -> Path:
    """Return the name of the next generation.

    Args:
        folder: Where the generations are.
        samples: Samples seen. None leaves it out of the name.
        again: Return the name of the newest generation if it has as many samples, so that it is replaced.
    """
    number = 1
    if named := _named(folder):
        newest, file = named[0]
        same = again and samples is not None and newest[2] is not None and int(newest[2]) == samples and file.is_file()
        number = int(newest[1]) + (not same)
    return folder / f"generation-{number:06d}{'' if samples is None else f'-samples-{samples:012d}'}.ckpt"


@contextmanager
def new_generation(target: Path, keep: int) -> Iterator[Path]:
    """Give a temporary path to write a checkpoint to; at the end it becomes a generation and ``last.ckpt``.

    Args:
        target: Of `next_generation`. Its parts are in their place already, if it has any.
        keep: Number of generations that stay, at least 1. The oldest ones are removed at the end.
    """
    folder, last = target.parent, target.with_name(LAST)
    with atomic_write(target) as temporary:
        yield temporary
        if last.is_file() and not any(_same(file, last) for file in generations(folder)):
            second_name(last, folder / PREVIOUS)  # of an older version, or on a disk without links
    point_last(target)
    _remove_old(folder, keep)


def point_last(file: Path) -> None:
    """Make ``last.ckpt`` a second name of a file: a hard link, or else a symbolic one; without links it is renamed."""
    last = file.with_name(LAST)
    if link_name(file, last, symbolic=True):
        return
    if shards_folder(file).is_dir():  # found by the name of the file; the file itself is small
        write_bytes(last, file.read_bytes())
    else:
        second_name(file, last)


def make_room(folder: Path) -> list[Path]:
    """Remove all checkpoints that are older than the newest good one, and return them; none if none is good.

    The digest of the newest is compared before anything is removed.
    """
    files = candidates(folder)
    good = next((number for number, file in enumerate(files) if _is_sound(file)), None)
    removed = []
    for file in [*files[good + 1 :], folder / DAMAGED] if good is not None else []:
        with suppress(OSError):
            _remove(file)
            removed.append(file)
    return removed


def set_aside(damaged: list[Path]) -> None:
    """Rename damaged files, the newest first, to damaged.ckpt, which holds the newest of them afterwards."""
    for file in reversed(damaged):
        names = [other for other in generations(file.parent) if other != file and _same(other, file)]
        second_name(names[0] if names else file, file.with_name(DAMAGED))
        for name in [file, *names]:
            name.unlink(missing_ok=True)


def _remove_old(folder: Path, keep: int) -> None:
    """Remove what is older than the newest ``keep`` generations; what cannot be removed is a warning."""
    found = generations(folder)
    remove_orphans(folder)
    for file in [*found[keep:], *([folder / PREVIOUS] if len(found) >= keep else [])]:
        try:
            if file.is_file():
                _remove(file)
        except OSError as error:
            fault = system_fault(error) or error
            log.warning("an old checkpoint stays, training continues: %s: %s", file, fault.strerror)


def _is_sound(file: Path) -> bool:
    named = next((other for other in generations(file.parent) if _same(other, file)), file)  # of last.ckpt
    return has_sound_digest(file) and has_sound_parts(named)


def _remove(file: Path) -> None:
    """Remove a checkpoint and then its parts: a kill in between never leaves a checkpoint without its parts."""
    file.unlink()
    if shards_folder(file).is_dir():
        shutil.rmtree(shards_folder(file))


def remove_orphans(folder: Path) -> None:
    """Remove parts whose checkpoint is gone, or was never written."""
    for parts in folder.glob(f"generation-*.{SHARDS}"):
        if PARTS_OF_GENERATION.fullmatch(parts.name) and not parts.with_suffix(".ckpt").exists():
            shutil.rmtree(parts, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # removed meanwhile
        return False

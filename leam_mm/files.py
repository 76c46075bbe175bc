"""Atomic writes and digests: the only place that writes beside a file and renames.

A kill at any moment leaves either the old content or the new one. Temporary names end in ``.tmp-PID``, so that a later
run can recognise and remove what a killed one left behind (``remove_leftovers``).
"""

import ctypes
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.system_fault import OF_FILES, system_fault

TEMPORARY = ".tmp-"  # between a name and the number of the process that writes it
OLD = ".old-"  # between the name of a folder and the number of the process that replaces it
AT_FDCWD, EXCHANGE = -100, 2  # of renameat2(2): relative to the current folder; RENAME_EXCHANGE


def temporary_path(path: Path) -> Path:
    """Return a new name under which this process writes ``path`` before it is complete.

    No other writer takes it: processes of two hosts, which share a disk, may have the same number.

    Raises:
        UserError: The path is that of the current folder or of the root, which cannot be written as a file.
    """
    if not path.name:
        raise UserError(f"{str(path)!r} is a folder without a name of its own: give another path")
    return path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def named_faults(path: Path) -> Iterator[None]:
    """Name the file in errors of the machine, such as a full disk, that come without a name.

    Args:
        path: What is written in the block.

    Raises:
        OSError: As raised in the block, or in place of a library's own error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fault = system_fault(error)
        named = isinstance(error, OSError) and error.filename is not None
        if fault is None or fault.errno not in OF_FILES or named:
            raise
        raise OSError(fault.errno, fault.strerror, fault.filename or str(path)) from error


@contextmanager
def atomic_write(path: Path, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path to write a file to; rename it to ``path`` at the end, or remove it after an error.

    Args:
        path: The final file. Its folder is created if missing.
        durable: Flush to the disk before renaming, so that the content survives a power failure, too.

    Raises:
        UserError: The path is that of a device or a pipe, which renaming would replace with a file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is no regular file: give another path")
    temporary = temporary_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with named_faults(path):
            yield temporary
            if durable:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # of a folder that became read-only; the first error counts
            temporary.unlink(missing_ok=True)


def link_name(path: Path, name: Path, symbolic: bool = False) -> bool:
    """Make a name a hard link to a file, or return False if the disk has no links; an existing file is replaced.

    Args:
        path: The file.
        name: Its second name.
        symbolic: Whether a symbolic link serves where there are no hard links; ``name`` is in the folder of ``path``.
    """
    for link, target in ((os.link, path), *(((os.symlink, Path(path.name)),) if symbolic else ())):
        try:
            with atomic_write(name) as temporary:
                link(target, temporary)
            return True
        except OSError:
            continue
    return False


def second_name(path: Path, name: Path) -> None:
    """Give a file a second name, and take it from another file; a disk without hard links moves the file instead."""
    if not link_name(path, name):
        os.replace(path, name)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty temporary folder to fill; rename it to ``folder`` at the end, or remove it after an error.

    An existing ``folder`` is replaced.
    """
    temporary = temporary_path(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with named_faults(folder):
            yield temporary
            replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def give_default_permissions(folder: Path) -> None:
    """Give all files and folders below a folder the permissions that the umask gives to new ones.

    Writers of other libraries leave files that only their owner can read, such as those of safetensors.

    Args:
        folder: A folder that this process made with ``mkdir``.
    """
    allowed = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):
        if not path.is_symlink():
            special = path.stat().st_mode & 0o7000  # such as the inherited group of a folder
            path.chmod(allowed | special if path.is_dir() else allowed & 0o666)


def replace_folder(finished: Path, folder: Path) -> None:
    """Rename a finished folder to ``folder``; an existing one changes places with it and is removed afterwards.

    The exchange is one step (renameat2 of Linux). Where the file system has none, such as NFS, the old folder is moved
    aside first: a kill before the new one is in place leaves the old one beside it, for ``restore_folder``.
    """
    old = folder.with_name(f"{folder.name}{OLD}{os.getpid()}-{secrets.token_hex(4)}")
    if not os.path.lexists(folder):
        os.replace(finished, folder)
    elif exchange_names(finished, folder):
        os.replace(finished, old)
    else:
        os.replace(folder, old)
        try:
            os.replace(finished, folder)
        except OSError:
            os.replace(old, folder)
            raise
    for left in _old_folders(folder):  # of killed runs, too
        shutil.rmtree(left, ignore_errors=True)


def exchange_names(one: Path, other: Path) -> bool:
    """Give each of two files or folders the name of the other in one step; return False where that is not possible."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and not renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), EXCHANGE)


def restore_folder(folder: Path) -> None:
    """Bring back a folder that a killed run moved aside and did not replace; no other process may write it then."""
    if not os.path.lexists(folder) and (left := _old_folders(folder)):
        os.replace(max(left, key=os.path.getmtime), folder)


def _old_folders(folder: Path) -> list[Path]:
    return list(folder.parent.glob(f"{glob.escape(folder.name)}{OLD}*"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any, indent: int | None = 1, **options: Any) -> None:
    """Write a JSON file atomically, with a newline at its end; ``options`` are those of ``json.dumps``."""
    write_text(path, json.dumps(content, indent=indent, **({"ensure_ascii": False} | options)) + "\n")


def remove_leftovers(folder: Path, pattern: str = "*") -> None:
    """Remove temporary files and folders that killed runs left; no other process may write in ``folder`` meanwhile."""
    for left in folder.glob(f"{pattern}{TEMPORARY}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def begin_folder(folder: Path) -> None:
    """Make a folder if it is missing, and remove what killed runs left in it; only this process may write there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)


def file_sha256(path: Path | str) -> str:
    """Return the SHA-256 of a file's content as hex digits.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give an existing, readable file") from None


def files_sha256(files: Iterable[Path]) -> str:
    """Return one SHA-256 over the names and contents of several files, in the given order."""
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def bytes_sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()

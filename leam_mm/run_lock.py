"""One run at a time in a folder: a lock file that names its holder.

The lock is flock(2), which the operating system releases when its holder dies, however it dies: what a killed run left
blocks nobody. Linux passes these locks to NFS servers (since 2.6.12), so that they also hold between hosts; a
server frees those of a crashed host when its lease ends, usually after 90 seconds.
"""

import errno
import fcntl
import glob
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.files import named_faults, remove_leftovers, restore_folder

LOCK = "lock"
PATIENCE = 4.5  # seconds in which the processes of a killed run end and release its lock
MAX_RECORD = 1000  # bytes of a lock file that are read
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
log = logging.getLogger(__name__)
_held: set[int] = set()  # descriptors of this process


def _close_in_child() -> None:
    """Close copies of locks in a forked process, which would keep them if it outlives this one."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def beside(output: Path) -> Path:
    """Return the lock file of an output folder that is replaced as a whole when it is finished.

    Raises:
        UserError: The output is the root, beside which there is nothing.
    """
    place = output if output.name not in ("", "..") else output.resolve()  # such as the current folder
    if not place.name:
        raise UserError(f"{place} is a folder without a name of its own: give another path")
    return place.with_name(f"{place.name}.{LOCK}")


@contextmanager
def run_lock(path: Path, folder: Path | None = None, shared: bool = False) -> Iterator[None]:
    """Hold a lock file until the block ends; it holds host, process and time of its holder.

    Args:
        path: The lock file. Its folder is created if missing; the file is removed at the end, unless it is shared.
        folder: What is locked; by default the folder of the lock file. If a killed run moved it aside, it is brought
            back; what killed runs left unfinished beside it is removed.
        shared: Share it with other runs that share it, such as the jobs of an array.

    Raises:
        UserError: Another run still holds the lock after ``PATIENCE``.
    """
    descriptor = _acquire(path, folder or path.parent, shared)
    _held.add(descriptor)
    try:
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk is reported where the result is written
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        with named_faults(folder or path.parent):
            if folder is not None and not shared:
                restore_folder(folder)
                remove_leftovers(folder.parent, glob.escape(folder.name))
            yield
    finally:
        if not shared:  # before the lock is released: afterwards the file may be that of another run
            with suppress(OSError):
                path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the lock of a folder whose files one run at a time writes, and remove what killed runs left there.

    Args:
        output: The folder; created if missing.
    """
    with run_lock(output / LOCK):
        remove_leftovers(output)
        yield


def _acquire(path: Path, folder: Path, shared: bool) -> int:
    end = time.monotonic() + PATIENCE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # the last holder may have removed it meanwhile
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                log.warning("the file system of %s has no locks: start no second run there", folder)
                return descriptor
            if not isinstance(error, BlockingIOError):
                os.close(descriptor)
                raise
            if time.monotonic() > end:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise UserError(
                    f"{folder} is in use by another run{holder}: wait for it, or choose another folder"
                ) from None
            time.sleep(0.1)
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the lock file is still there; its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, MAX_RECORD, 0))
        return f" (process {found['pid']} on {found['host']} since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""

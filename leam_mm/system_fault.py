"""Faults of the machine (a full disk, a read-only folder, no more memory, files or processes), and their cures.

Libraries report them in many ways: as an OSError with or without the name of the file, as errors of their own that hold
the text of the operating system, or as a MemoryError. ``system_fault`` recognises all of these.
"""

import errno
import os
from collections.abc import Iterator

CURES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space in that quota",
    errno.EFBIG: "raise the limit of the file size (ulimit -f)",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.EACCES: "change its rights, or choose a folder that you may use",
    errno.EPERM: "change its rights, or choose a folder that you may use",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer processes",
    errno.ENFILE: "close other programs, or use fewer processes",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u), or use fewer",
    errno.ENOMEM: "free memory, raise its limit (ulimit -v), or use smaller batches or fewer processes",
    errno.EIO: "check the disk and its connection",
    errno.ESTALE: "check the connection to the file server",
}
OF_FILES = CURES.keys() - {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}
OTHER_CURE = "check that path"  # for an OSError of another kind
# What libraries write in place of the operating system's text.
TEXTS = {
    "can't start new thread": errno.EAGAIN,
    "std::bad_alloc": errno.ENOMEM,
    "out of memory": errno.ENOMEM,
    "requested and": errno.ENOSPC,  # numpy's tofile: "100 requested and 20 written"
    "failed to map segment from shared object": errno.ENOMEM,
}


def fault_number(error: BaseException) -> int | None:
    """Return the error number of one of ``CURES`` that an exception stands for, without its causes, else None."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in CURES else None
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    text = str(error)
    known = TEXTS | {os.strerror(number): number for number in CURES}
    return next((number for words, number in known.items() if words in text), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def system_fault(error: BaseException) -> OSError | None:
    """Return the fault of the machine behind an exception as an OSError, with the name of its file if one is known."""
    found: OSError | None = None
    for cause in _causes(error):
        if (number := fault_number(cause)) is not None:
            named = isinstance(cause, OSError) and cause.filename is not None
            if found is None or named:
                found = OSError(number, os.strerror(number), cause.filename if named else None)  # type: ignore[attr-defined]
            if named:
                break
    return found


def fault_line(error: BaseException) -> str | None:
    """Return one line about the fault of the machine, or the wrong path, behind an exception; None for other errors."""
    fault = system_fault(error)
    if fault is None and isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        fault = error
    if fault is None:
        return None
    where = f"{os.fsdecode(fault.filename)}: " if isinstance(fault.filename, str | bytes | os.PathLike) else ""
    cure = CURES.get(fault.errno or 0, OTHER_CURE)
    return f"{where}{os.strerror(fault.errno or 0)}: {cure}, then start the same command again"

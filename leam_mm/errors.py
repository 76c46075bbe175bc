"""User errors: one line that says what is wrong, where, and the fix."""

import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from leam_mm.system_fault import fault_line

LONGEST = 1000  # characters of a line
MEMORY_ADDRESS = re.compile(r" ?<[^<>]{0,200} at 0x[0-9a-fA-F]+[^<>]{0,200}>| ?\bat 0x[0-9a-fA-F]{6,}\b")


class UserError(Exception):
    """An error that the user can fix; its message says what is wrong, where, and the fix, in one line."""


def without_addresses(text: str) -> str:
    """Return a message without the memory addresses of objects in it, which differ in each run."""
    return MEMORY_ADDRESS.sub("", text)


def printable(text: str) -> str:
    """Return a stranger's text for a terminal: control characters, line ends too, as their escapes."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def one_line(error: UserError) -> str:
    """Return the message in one line, without the traceback that wraps an error of a loader's worker process."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{UserError.__name__}: ")[2]
    # A message may quote a stranger's text: no control sequence reaches the terminal, and no line fills it.
    line = printable(" ".join(without_addresses(text).split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError that caused an exception, if any: jsonargparse wraps errors of constructors."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def run(main: Callable[[], object]) -> None:
    """Call a program's main function; a UserError or a fault of the machine becomes one line and exit code 2."""
    threading.excepthook = _report_thread
    try:
        main()
    except Exception as error:
        cause = user_error(error)
        line = one_line(cause) if cause is not None else fault_line(error)
        if line is None:
            raise
        _print_error(line)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted by the keyboard; start the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None


def _print_error(line: str) -> None:
    with suppress(OSError):  # a full disk may hold the log of stderr, too
        print(f"error: {line}", file=sys.stderr, flush=True)


def _report_thread(found: threading.ExceptHookArgs) -> None:
    """Report a fault of the machine in a thread in one line, too; the thread's owner notices its end."""
    line = fault_line(found.exc_value) if found.exc_value is not None else None
    if line is None:
        threading.__excepthook__(found)
    else:
        print(f"warning: {line}", file=sys.stderr)

"""User errors: one line that says what is wrong, where, and the fix."""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from leam_mm.system_fault import fault_line

INTERRUPTED = "interrupted by the keyboard; start the same command again to continue"
LONGEST = 1000  # characters of a line
MEMORY_ADDRESS = re.compile(r" ?<[^<>]{0,200} at 0x[0-9a-fA-F]+[^<>]{0,200}>| ?\bat 0x[0-9a-fA-F]{6,}\b")


class UserError(Exception):
    """An error that the user can fix; its message says what is wrong, where, and the fix, in one line."""


class SignalReceived(BaseException):
    """A signal that asks the program to end.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        """See the class for the arguments."""
        super().__init__(number)
        self.number = number


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


def end_at_interrupt() -> None:
    """Let Ctrl-C end the program in one line before ``run`` does so: while its libraries are imported, for seconds."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    _print_error(INTERRUPTED)
    os._exit(130)  # an exception would reach the importing library, which may turn it into another one


def run(main: Callable[[], object]) -> None:
    """Call a program's main function; a UserError or a fault of the machine becomes one line and exit code 2.

    SIGTERM and SIGHUP end the program as Ctrl-C does, so that it ends its child processes and removes its temporary
    files; the exit code is 128 plus the signal's number.
    """
    threading.excepthook = _report_thread
    _raise_on_signals()
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
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
        _print_error(INTERRUPTED)
        raise SystemExit(130) from None
    except SignalReceived as received:
        name = signal.Signals(received.number).name
        _print_error(f"ended by {name}; start the same command again to continue")
        raise SystemExit(128 + received.number) from None


def _raise_on_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    # Not where a program handles a signal, or where nohup or a shell ignores it.
    numbers = {one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) == signal.SIG_DFL}
    for number in numbers:
        signal.signal(number, _raise)
    masks = threading.local()

    def block() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def restore() -> None:
        for number in numbers:
            if signal.getsignal(number) is _raise:
                signal.signal(number, signal.SIG_DFL)
        unblock()

    # Forked workers end at once, as their parents expect. No signal is lost while the handlers change.
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=restore)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    raise SignalReceived(number)


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

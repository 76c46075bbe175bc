"""Errors for people: one line that says what is wrong, where, and the cure."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the person at the keyboard can mend; the message says what, where and how, in one line."""


def one_line(error: UserError) -> str:
    """The message; what a loader's worker process raised comes wrapped in its whole traceback, which is cut off."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{UserError.__name__}: ")[2]
    return " ".join(text.split())


def run(main: Callable[[], object]) -> None:
    """Call a program's main function and turn a UserError into one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted by the keyboard; start the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None

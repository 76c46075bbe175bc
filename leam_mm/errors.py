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


def beneath(error: BaseException | None) -> UserError | None:
    """The UserError that another exception was raised from, if any: jsonargparse wraps what constructors say."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def run(main: Callable[[], object]) -> None:
    """Call a program's main function and turn a UserError into one line on stderr and exit code 2."""
    try:
        main()
    except Exception as error:
        told = beneath(error)
        if told is None:
            raise
        print(f"error: {one_line(told)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted by the keyboard; start the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None

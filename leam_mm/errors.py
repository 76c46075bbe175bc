"""Errors for people: one line that says what is wrong, where, and the cure."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the person at the keyboard can mend; the message says what, where and how, in one line."""


def run(main: Callable[[], object]) -> None:
    """Call a program's main function and turn a UserError into one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted by the keyboard; start the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None

"""User errors: one line that says what is wrong, where, and the fix."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """An error that the user can fix; its message says what is wrong, where, and the fix, in one line."""


def one_line(error: UserError) -> str:
    """Return the message in one line, without the traceback that wraps an error of a loader's worker process."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rpartition(f"{UserError.__name__}: ")[2]
    return " ".join(text.split())


def user_error(error: BaseException | None) -> UserError | None:
    """Return the UserError that caused an exception, if any: jsonargparse wraps errors of constructors."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def run(main: Callable[[], object]) -> None:
    """Call a program's main function and turn a UserError into one line on stderr and exit code 2."""
    try:
        main()
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        print(f"error: {one_line(cause)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted by the keyboard; start the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None

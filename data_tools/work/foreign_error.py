"""Messages of the errors that samples of strangers provoke in libraries."""

from leam_mm.errors import without_addresses


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message: at most 200 characters, all printable, the same in each run."""
    line = next(iter(without_addresses(str(error)).splitlines()), "") or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:200]

"""Messages of the errors that samples of strangers provoke in libraries."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 200 characters, all printable."""
    line = next(iter((str(error) or type(error).__name__).splitlines()), type(error).__name__)
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:200]

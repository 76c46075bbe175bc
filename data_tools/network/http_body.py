"""Status codes, compressed bodies and Retry-After of HTTP answers."""

import email.utils
import zlib
from datetime import UTC

from data_tools.network.image_fetch import TooManyBytesError

REDIRECTS = (301, 302, 303, 307, 308)  # RFC 9110, section 15.4; 300 is not followed automatically
BACK_OFF = (429, 503)  # the server asks for a pause
TEMPORARY = (408, 425, 500, 502, 504)  # another attempt may succeed


def unpack(content: bytes, max_bytes: int) -> bytes:
    """Decompress a gzip or deflate body (RFC 9110, section 8.4.1), up to a limit.

    Raises:
        TooManyBytesError: The result is longer than ``max_bytes``.
        ValueError: The body is damaged or incomplete.
    """
    # 47: zlib or gzip, detected from the header; -15: deflate without a header, which some servers send.
    kinds = (47, -15) if content[:2] != b"\x1f\x8b" else (47,)
    for kind in kinds:
        unpacker = zlib.decompressobj(kind)
        try:
            plain = unpacker.decompress(content, max_bytes + 1)
        except zlib.error:
            continue
        if len(plain) > max_bytes:
            raise TooManyBytesError(f"too many bytes: unpacked over {max_bytes}")
        if unpacker.eof:
            return plain
    raise ValueError("the packed body is damaged")


def retry_after(text: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, section 10.2.3), or None if it is invalid.

    Args:
        text: The header: a number of seconds, or a date.
        now: Seconds since 1970.
    """
    word = (text or "").strip()
    if word.isascii() and word.isdigit():
        return float(min(int(word[:9]), 10**8))
    try:
        date = email.utils.parsedate_to_datetime(word)
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

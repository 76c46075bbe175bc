"""Status codes that matter to a fetch, and two header-driven conversions: packed bodies and Retry-After."""

import email.utils
import zlib
from datetime import UTC

from data_tools.network.image_fetch import TooManyBytesError

REDIRECTS = (301, 302, 303, 307, 308)  # RFC 9110, section 15.4; 300 leaves the choice to a person


PATIENCE = (429, 503)  # the server asks to be left alone for a while


PASSING = (408, 425, 500, 502, 504)  # may be over at the next attempt


def unpack(content: bytes, max_bytes: int) -> bytes:
    """Undo gzip or deflate (RFC 9110, section 8.4.1) to a limit.

    Raises:
        TooManyBytesError: It unpacks to more than ``max_bytes``.
        ValueError: It is damaged or cut short.
    """
    # 47: zlib or gzip, whichever the header shows; some servers send deflate without any header, which is -15.
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


def patience(text: str | None, now: float) -> float | None:
    """Seconds that Retry-After asks for (RFC 9110, section 10.2.3: a number, or a date), or None.

    Args:
        text: The header.
        now: Seconds since 1970.
    """
    word = (text or "").strip()
    if word.isascii() and word.isdigit():
        return float(min(int(word[:9]), 10**8))
    try:
        moment = email.utils.parsedate_to_datetime(word)
        return max(0.0, moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

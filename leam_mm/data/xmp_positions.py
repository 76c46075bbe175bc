"""Positions in XMP packets (exif:GPSLatitude and its like), which are overwritten with spaces.

XMP specification part 1, 7.4: a property is an attribute or an element; white space between them means nothing.
"""

import re

NAME = rb"[\w.-]+:GPS\w*"
ATTRIBUTE = re.compile(rb"(?<=\s)" + NAME + rb"\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+')")
ELEMENT = re.compile(rb"<(" + NAME + rb")(?=[\s/>])[^<>]*+>")
WIDE = ("GPS".encode("utf-16-le"), "GPS".encode("utf-16-be"))
MOST = 200  # elements; GPS has 32 properties


def without_positions(packet: bytes) -> bytes:
    """Return a packet of the same length without positions.

    A packet whose positions cannot be separated from the rest (not in UTF-8, not closed, too many) becomes spaces.
    """
    if any(word in packet for word in WIDE):
        return b" " * len(packet)
    changed = bytearray(ATTRIBUTE.sub(_spaces, packet))
    start = 0
    for _ in range(MOST):
        opening = ELEMENT.search(changed, start)
        if opening is None:
            return bytes(changed)
        end = opening.end()
        if not opening.group().endswith(b"/>"):
            closing = changed.find(b"</" + opening[1], end)
            end = changed.find(b">", closing) + 1 if closing > 0 else 0
            if not end:
                break
        changed[opening.start() : end] = b" " * (end - opening.start())
        start = end
    return b" " * len(packet)


def _spaces(found: "re.Match[bytes]") -> bytes:
    return b" " * len(found.group())

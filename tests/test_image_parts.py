"""leam_mm.data.image_parts: PNG and GIF of too many parts are refused before Pillow reads them."""

import time
import zlib

import pytest
from PIL import Image
from toys.images import encoded_image

from leam_mm.data.image_file import ImageLimit, open_image
from leam_mm.data.image_limits import WEB_FORMATS
from leam_mm.data.image_parts import parts_fault

GREEN = Image.new("RGB", (20, 12), "green")
PNG, GIF = encoded_image(GREEN), encoded_image(GREEN, "GIF")
GIF_START = 13 + (3 << ((GIF[10] & 7) + 1)) * (GIF[10] >> 7)


def png_chunks(count: int) -> bytes:
    return PNG[:33] + (bytes(4) + b"raNd" + zlib.crc32(b"raNd").to_bytes(4)) * count + PNG[33:]


def gif_comments(comment: bytes, count: int) -> bytes:
    return GIF[:GIF_START] + comment * count + GIF[GIF_START:]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (png_chunks(1000), None),
        (png_chunks(60_000), "50001 PNG chunks"),
        (gif_comments(b"!\xfe\1a\0", 100), None),
        (gif_comments(b"!\xfe\1a\0", 1_000_000), "GIF comments"),
        (gif_comments(b"!\xfe" + (b"\xff" + bytes(255)) * 100 + b"\0", 1), None),
        (gif_comments(b"!\xfe" + (b"\xff" + bytes(255)) * 100_000 + b"\0", 1), "GIF comments"),
        (gif_comments(b"!\xf9\4\0\0\0\0\0", 400_000), "GIF blocks"),
    ],
)
def test_files_of_too_many_parts_are_refused(content: bytes, fault: str | None) -> None:
    if fault is None:
        assert open_image(content, WEB_FORMATS).convert("RGB").size == (20, 12)
        return
    begin = time.process_time()
    with pytest.raises(ImageLimit, match=fault) as caught:
        open_image(content, WEB_FORMATS)
    assert caught.value.rule == "parts" and time.process_time() - begin < 2


@pytest.mark.parametrize(
    "content", [b"", b"GIF8", b"\x89PNG", GIF[:GIF_START], GIF[:-1], PNG[:40], b"GIF89a" + bytes([255]) * 9]
)
def test_files_that_end_early_have_few_parts(content: bytes) -> None:
    assert parts_fault(content) is None

"""leam_mm.data.image_file: the formats that are read, and the limits that hold before anything is decoded."""

import ast
import os
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from toys.image_bombs import (
    claiming,
    gif_bomb,
    images_bomb,
    images_segment,
    palette_bomb,
    scan_bomb,
    webp_bomb,
)
from toys.images import encoded_image
from toys.recipes import ROOT

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.image_file import ImageLimit, open_image
from leam_mm.data.image_limits import SHARD_FORMATS, WEB_FORMATS
from leam_mm.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%Pages: 1\n%%EndComments\n%%EndProlog\nshowpage\n%%EOF\n"
GREEN = Image.new("RGB", (20, 12), "green")


def test_no_other_file_opens_images() -> None:
    """Calls of Image.open, imports of it, and other readers of image files occur in one file only."""
    found = []
    for path in (*ROOT.glob("*.py"), *(ROOT / "leam_mm").rglob("*.py"), *(ROOT / "data_tools").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            inside = getattr(node, "module", "") or ""
            reader = re.search(r"\bImage\.open$|\bcv2\.im(read|decode)$|\biio\.|imageio|decode_image$", called)
            if reader or (inside.startswith("PIL") and {"open", "ImageFile"} & {*names}) or inside == "torchvision.io":
                found.append(path.relative_to(ROOT).as_posix())
    assert found == ["leam_mm/data/image_file.py"]


def test_only_named_formats_are_opened() -> None:
    for kind in WEB_FORMATS:
        assert open_image(encoded_image(GREEN, kind), WEB_FORMATS).size == GREEN.size
    for kind in ("GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA", "SGI", "PCX", "DDS", "IM"):
        content = encoded_image(GREEN, kind)
        with pytest.raises(OSError):
            open_image(content)
        with pytest.raises(UserError, match="unreadable image"):
            ImageDecoding(8)(content, None)  # type: ignore[arg-type]
    assert set(SHARD_FORMATS) == {"JPEG", "PNG", "WEBP"}


def test_a_small_limit_of_one_image_does_not_bind_others() -> None:
    with pytest.raises(UserError, match="pixels"):
        open_image(encoded_image(GREEN, "PNG"), max_pixels=1)
    Image.new("RGB", (100, 100)).crop((0, 0, 90, 90))  # fails beyond Pillow's global limit


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, trace = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\necho $@ >> {trace}\necho 10.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for decode in (ImageDecoding(8), ImageDecoding(8, shift=0.1)):
        with pytest.raises(UserError, match="unreadable image"):
            decode(EPS, None)  # type: ignore[arg-type]
    assert not trace.exists()


MEASURE = """
import sys
import tracemalloc
from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image
content = sys.stdin.buffer.read()
open("/proc/self/clear_refs", "w").write("5")  # VmHWM starts again
try:
    print(repair_image(content, ImageRule(resize="keep_ratio", size=64)).transforms)
except ImageFault as fault:
    print(fault.rule)
high = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(high.split()[1]) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
@pytest.mark.parametrize(
    ("bomb", "answer"),
    [(palette_bomb, "['flatten', "), (gif_bomb, "memory"), (webp_bomb, "pixels"), (scan_bomb, "scans")],
)
def test_a_small_file_takes_no_more_memory_than_its_budget(bomb: Callable[[], bytes], answer: str) -> None:
    content, paths = bomb(), os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], env=os.environ | {"PYTHONPATH": paths}, input=content, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    said, peak = done.stdout.decode().splitlines()
    assert said.startswith(answer)
    assert len(content) < 50_000 and int(peak) < 600_000_000, (len(content), peak)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (lambda: encoded_image(GREEN.resize((30, 30)), "JPEG"), "pixels"),
        (lambda: encoded_image(GREEN.resize((30, 30)), "GIF"), "pixels"),
        (scan_bomb, "scans"),
    ],
)
def test_limits_name_their_rule(content: object, rule: str) -> None:
    with pytest.raises(ImageLimit) as caught:
        open_image(content(), WEB_FORMATS, max_pixels=899)  # type: ignore[operator]
    assert caught.value.rule == rule and caught.value.value.isdigit()


START_OF_JPEG = encoded_image(GREEN, "JPEG")
JPEG_WITHOUT_DENSITY = START_OF_JPEG[:2] + START_OF_JPEG[4 + int.from_bytes(START_OF_JPEG[4:6]) :]  # without JFIF
STARTS = [b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"MM\0+", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"]


@pytest.mark.parametrize("start", STARTS)
def test_a_tiff_of_thousands_of_tags_is_refused_before_any_is_read(start: bytes) -> None:
    order: Literal["little", "big"] = "little" if start[:1] == b"I" else "big"
    width, count = (8, 8) if len(start) == 8 else (4, 2)
    places = [len(start) + width, 60_000]
    content = start + places[0].to_bytes(width, order) + places[1].to_bytes(count, order) + bytes(720_000)
    with pytest.raises(ImageLimit, match="TIFF of 60000 tags") as caught:
        open_image(content, WEB_FORMATS)
    assert caught.value.rule == "tags"


@pytest.mark.parametrize("order", ["little", "big"])
def test_a_tiff_whose_tags_claim_more_than_the_file_is_refused(order: Literal["little", "big"]) -> None:
    start = b"II*\0" if order == "little" else b"MM\0*"
    entry = [(270).to_bytes(2, order), (7).to_bytes(2, order), (60_000).to_bytes(4, order), bytes(4)]
    content = start + (8).to_bytes(4, order) + (3).to_bytes(2, order) + 3 * b"".join(entry) + bytes(100_000)
    with pytest.raises(ImageLimit, match="has tags of 180000") as caught:
        open_image(content, WEB_FORMATS)
    assert caught.value.rule == "tags"


def avif_with_exif(prefix: bytes, block: bytes) -> bytes:
    """An AVIF whose EXIF is a given block; Pillow reads what it is to write, so that it is put in afterwards."""
    stand_in = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x9000, 7, len(block) - 26, 26, 0)
    content = encoded_image(GREEN, "AVIF", exif=prefix + stand_in.ljust(len(block), b"x"))
    assert content.count(stand_in) == 1
    start = content.index(stand_in)
    return content[:start] + block + content[start + len(block) :]


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "PNG", "WEBP"])
@pytest.mark.parametrize("prefix", [b"Exif\0\0", 2 * b"Exif\0\0"])
def test_exif_whose_entries_claim_all_is_ignored(kind: str, prefix: bytes) -> None:
    block = b"MM\0*" + struct.pack(">I", 8) + claiming(1000, 7, 50_000) + bytes(46_000)
    if kind == "AVIF":
        content = avif_with_exif(prefix, block)
    elif kind == "JPEG":
        length = (len(prefix + block) + 2).to_bytes(2)
        content = JPEG_WITHOUT_DENSITY[:2] + b"\xff\xe1" + length + prefix + block + JPEG_WITHOUT_DENSITY[2:]
    else:
        content = encoded_image(GREEN, kind, exif=prefix + block)
    tracemalloc.start()
    try:
        image = open_image(content, WEB_FORMATS)
        assert dict(image.getexif()) == {}
        assert tracemalloc.get_traced_memory()[1] < 5_000_000  # not 1,000 values of 50 kB
    finally:
        tracemalloc.stop()


def test_a_list_of_images_whose_entries_claim_all_is_ignored() -> None:
    assert open_image(START_OF_JPEG[:2] + images_segment(3, 7, 1000) + START_OF_JPEG[2:]).format == "MPO"
    tracemalloc.start()
    try:
        with pytest.warns(UserWarning, match="malformed MPO"):
            assert open_image(images_bomb()).format == "JPEG"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000  # not 5,000 values of 65 kB
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_thousands_of_exif_segments_is_refused() -> None:
    segment = b"\xff\xe1" + struct.pack(">H", 4008) + b"Exif\0\0" + bytes(4000)
    for count, small in ((20, True), (1001, False)):
        content = START_OF_JPEG[:2] + segment * count + START_OF_JPEG[2:]
        if small:
            assert len(open_image(content).info["exif"]) == 6 + 4000 * count
            continue
        with pytest.raises(ImageLimit, match="1001 EXIF segments") as caught:
            open_image(content)
        assert caught.value.rule == "tags"


@pytest.mark.parametrize("big_tiff", [False, True])
def test_a_tiff_with_a_profile_and_a_description_is_opened(big_tiff: bool) -> None:
    more = {"icc_profile": bytes(5000), "description": "x" * 3000, "big_tiff": big_tiff, "dpi": (72, 72)}
    content = encoded_image(GREEN, "TIFF", **more)
    assert open_image(content, WEB_FORMATS).size == GREEN.size


def test_the_largest_allowed_image_is_opened() -> None:
    for side in (29, 30):
        assert open_image(encoded_image(GREEN.resize((side, side))), max_pixels=side * side).size == (side, side)

"""Drawings (SVG) are rasterised like any image; hostile ones reach nothing and end only their own process."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools import download_shards
from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image
from data_tools.samples.svg_image import SvgFault, is_svg, rasterise
from data_tools.vetting.held_out_images import read_folder_image
from data_tools.vetting.near_duplicates import NearDuplicates
from leam_mm.data.image_limits import MAX_PIXELS
from leam_mm.data.shard_index import ShardFolder

NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def svg(body: str, head: str = 'viewBox="0 0 40 20"', before: str = "") -> bytes:
    return f"{before}<svg {NAMES} {head}>{body}</svg>".encode()


FLAG = svg('<rect width="20" height="20" fill="#00f"/><rect x="20" width="20" height="20" fill="#f00"/>')


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_drawing_has_the_size_of_the_rule() -> None:
    repaired = repair_image(FLAG, ImageRule(size=64))
    assert (repaired.width, repaired.height, repaired.extension) == (128, 64, "png")
    assert repaired.transforms[0] == "rasterise:64"
    image = pixels(repaired.content)
    assert (image[:, :60] == (0, 0, 255)).all() and (image[:, 68:] == (255, 0, 0)).all()
    cropped = repair_image(FLAG, ImageRule(size=32, resize="center_crop"))
    assert (cropped.width, cropped.height) == (32, 32)


def test_transparency_is_white_and_text_is_drawn_alike_everywhere() -> None:
    repaired = repair_image(svg('<text x="2" y="15" font-size="14" font-family="Foreign">A&#1046;</text>'), ImageRule())
    image = pixels(repaired.content)
    assert (image[0, 0] == 255).all() and (image < 50).any()


@pytest.mark.parametrize(
    ("head", "size"),
    [
        ('width="10mm" height="5mm"', (64, 32)),
        ('width="100%" height="100%" viewBox="0,0 5 10"', (32, 64)),
        ('width="30" height="30" viewBox="0 0 1 9"', (32, 32)),
        ('viewBox="0 0 1e3 1e3"', (32, 32)),
    ],
)
def test_aspect_ratio(head: str, size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(rasterise(svg('<rect width="9" height="9"/>', head), 32, MAX_PIXELS)))
    assert image.size == size


@pytest.mark.parametrize(
    "before",
    [
        '<?xml version="1.0" encoding="UTF-8"?>\n<!-- a tool -->\n',
        '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">',
        "\ufeff",
    ],
)
def test_beginnings(before: str) -> None:
    raw = svg('<rect width="40" height="20" fill="lime"/>', before=before)
    assert is_svg(raw) and (pixels(rasterise(raw, 8, MAX_PIXELS)) == (0, 255, 0)).all()
    for encoding in ("utf-16", "iso-8859-1"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>' + FLAG.decode()
        if encoding != "utf-16":
            assert rasterise(text.encode(encoding), 8, MAX_PIXELS) == rasterise(FLAG, 8, MAX_PIXELS)
    assert not is_svg(b"<html><body>svg</body></html>") and not is_svg(b"\x89PNG\r\n")


DEEP = "<g>" * 5000 + "</g>" * 5000
NESTED = "".join(
    f'<g id="g{n}">' + f'<use xlink:href="#g{n - 1}"/>' * 10 + "</g>" if n else '<g id="g0"><circle r="9"/></g>'
    for n in range(12)
)
BLUR = '<filter id="f" width="900" height="900"><feGaussianBlur stdDeviation="9999"/></filter>' + (
    '<rect width="40" height="20" filter="url(#f)"/>' * 3000
)
BOMB = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (svg('<image href="file:///etc/passwd" width="9" height="9"/>'), "outside the file"),
        (svg('<image xlink:href="/etc/passwd" width="9" height="9"/>'), "outside the file"),
        (svg('<image xlink:href="../secret.png" width="9" height="9"/>'), "outside the file"),
        (svg('<use xlink:href="http://127.0.0.1/a.svg#x"/>'), "outside the file"),
        (svg('<image href="data:image/svg+xml;base64,PHN2Zy8+" width="9" height="9"/>'), "outside the file"),
        (svg('<g xml:base="file:///etc/"/>'), "xml:base"),
        (svg("<text>&b;</text>", before=BOMB), "entity"),
        (svg('<!-- x -->', before='<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "entity"),
        (svg(DEEP), "levels"),
        (svg("", 'viewBox="0 0 1 100000"'), "too long"),
        (svg("<rect"), "no XML"),
        (svg('<image href="http://a&#10;\u202eb"/>'), "refers to http://a$"),
        (svg("").replace(b"<svg", b"<html><svg", 1), "root element"),
        (svg("", 'width="0" height="0"'), "cannot be drawn"),
        (svg(NESTED + '<use xlink:href="#g11"/>'), "too much time or memory|cannot be drawn|20 s"),
    ],
)  # fmt: skip
def test_hostile_drawings(raw: bytes, reason: str) -> None:
    with pytest.raises(SvgFault, match=reason) as fault:
        rasterise(raw, 64, MAX_PIXELS)
    assert str(fault.value).isprintable()


def test_a_fault_is_one_of_the_sample() -> None:
    with pytest.raises(ImageFault) as fault:
        repair_image(svg('<image href="/etc/passwd"/>'), ImageRule())
    assert fault.value.rule == "svg"


def test_a_folder_of_drawings_becomes_shards(tmp_path: Path) -> None:
    folder = tmp_path / "flags"
    folder.mkdir()
    (folder / "good.svg").write_bytes(FLAG)
    (folder / "bad.svg").write_bytes(svg('<image href="file:///etc/hostname" width="40" height="20"/>'))
    for name in ("good", "bad"):
        (folder / f"{name}.txt").write_text("eine Flagge")
    options = ["--folder", str(folder), "--output", str(tmp_path / "shards"), "--size", "48", "--min-success", "0.5"]
    download_shards.main(options)
    shards = ShardFolder(tmp_path / "shards")
    assert sum(entry.samples for entry in shards.shards) == 1
    rows = {
        row["url"].removeprefix("file:"): row for row in pq.read_table(tmp_path / "shards/ledger.parquet").to_pylist()
    }
    assert rows["good.svg"]["kept"]
    assert rows["bad.svg"]["rule"] == "svg" and "outside the file" in rows["bad.svg"]["reason"]


def test_drawings_are_compared_before_some_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_bytes(FLAG)
    (tmp_path / "b.svg").write_bytes(svg('<image href="/etc/passwd"/>'))
    rule = NearDuplicates(captions=False)
    assert read_folder_image(tmp_path / "a.svg", rule).measured is not None
    assert read_folder_image(tmp_path / "b.svg", rule).measured is None

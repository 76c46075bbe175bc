"""One decoder for images of strangers: what a person sees; tests/test_image_repair.py has the cases of the repair."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps
from toys.image_bombs import exif_bomb, gif_bomb, scan_bomb, tiff_bomb, webp_bomb
from toys.images import deep_png, encoded_image, rotated_jpeg, two_coloured_image

from data_tools.samples.image_repair import ImageRule, repair_image
from leam_mm.data.image_file import open_image
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError


@pytest.mark.parametrize(
    "content",
    [
        rotated_jpeg(),
        deep_png(1, 40_000),
        encoded_image(two_coloured_image().convert("P"), "GIF"),
        encoded_image(two_coloured_image(), "BMP"),
        encoded_image(Image.new("RGBA", (9, 7), (200, 0, 0, 80))),
        encoded_image(two_coloured_image().convert("CMYK"), "JPEG"),
    ],
    ids=["orientation", "16 bits", "GIF", "BMP", "alpha", "CMYK"],
)
def test_the_pixels_are_those_of_the_repair_before_shards(content: bytes) -> None:
    repaired = open_image(repair_image(content, ImageRule()).content).convert("RGB")
    np.testing.assert_array_equal(np.asarray(read_upright(content)), np.asarray(repaired))


@pytest.mark.parametrize("content", [b"", b"no image", gif_bomb(), scan_bomb(), webp_bomb(), rotated_jpeg()[:400]])
def test_broken_and_hostile_files_are_one_line(content: bytes) -> None:
    with pytest.raises(UserError):
        read_upright(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_that_points_to_overlapping_values_costs_no_memory(kind: str) -> None:
    content = tiff_bomb() if kind == "TIFF" else exif_bomb(kind)
    tracemalloc.start()
    try:
        assert read_upright(content).size == (20, 12)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000  # not thousands of values of 45 kB or more
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_once_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded_image(two_coloured_image(), kind, exif=exif)
    turned = read_upright(content)
    wanted = ImageOps.exif_transpose(open_image(content).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(wanted))
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(turned)), np.asarray(wanted))

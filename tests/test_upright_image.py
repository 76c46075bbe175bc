"""One decoder for images of strangers: what a person sees; tests/test_image_repair.py has the cases of the repair."""

import numpy as np
import pytest
from PIL import Image
from toys.image_bombs import gif_bomb, scan_bomb, webp_bomb
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

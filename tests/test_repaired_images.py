import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.images import ADOBE, deep_png, encoded_image, in_space, matrix_profile, rotated_jpeg, two_coloured_image
from toys.shards import small_sample, write_samples
from toys.vetting import vet, write_rules

from data_tools.vetting.repaired_images import RepairedImages
from data_tools.vetting.vetting_rule import Finding, Sample
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError


def repair(content: bytes) -> Finding:
    kind = "png" if content.startswith(b"\x89PNG") else "jpg"
    return RepairedImages().judge([Sample("k", {}, kind, content)])[0]


def test_intact_images_do_not_change() -> None:
    found = repair(encoded_image(two_coloured_image(), "JPEG"))
    assert (found.value, found.pixels, found.transform) == ("sound", None, "")


def test_each_fault_is_repaired() -> None:
    turned = repair(rotated_jpeg())
    assert turned.transform == "orientation:6" and turned.pixels is not None and turned.pixels.shape == (40, 24, 3)
    deep = repair(deep_png(3, 257 * 100))
    assert deep.pixels is not None and (deep.pixels == 100).all() and "depth:16" in deep.transform
    colours = np.array([(200, 60, 60), (60, 180, 70)], np.uint8)
    stored = Image.fromarray(in_space(colours, ADOBE, 2.2)[None].repeat(8, 0))
    wide = repair(encoded_image(stored, "PNG", icc_profile=matrix_profile(ADOBE, 2.2, "Wide")))
    assert wide.pixels is not None and np.abs(wide.pixels[0].astype(int) - colours).max() <= 3
    assert not repair(b"\x89PNG").kept


def test_in_vet_shards(tmp_path: Path) -> None:
    folder = write_samples(
        tmp_path / "shards",
        [small_sample(0), small_sample(1, image=rotated_jpeg()), small_sample(2, image=deep_png(1, 25700))],
    )
    listed = write_rules(tmp_path / "r.yaml", RepairedImages)
    with pytest.raises(UserError, match="--materialise"):
        vet(folder, listed, tmp_path / "vetted")
    vet(folder, listed, tmp_path / "vetted", "--materialise")
    members = [members for _, members in read_samples(tmp_path / "vetted")]
    images = [Image.open(io.BytesIO(each.get("jpg") or each["png"])) for each in members]
    assert [image.size for image in images] == [(72, 64), (24, 40), (8, 8)]
    assert (np.asarray(images[2]) == 100).all()  # Pillow alone would show white
    upper_right = np.asarray(images[1])[5, -5]  # the red corner, turned a quarter clockwise
    assert upper_right[0] > 180 and upper_right[2] < 80

"""Preparation of images: the encoder's own resize mode and interpolation, and upright files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.images import encoded_image, rotated_jpeg, soft_image

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.errors import UserError
from leam_mm.evaluators.image_preparation import ImagePreparation, preparation_of


def wide() -> Image.Image:
    return soft_image(1, 96).resize((90, 50), Image.Resampling.BICUBIC)


def test_usual_preparation_is_that_of_evaluation() -> None:
    content = encoded_image(wide())
    expected = ImageDecoding(32)(content, np.random.default_rng(0))
    assert torch.equal(ImagePreparation()(content, 32), expected)
    assert torch.equal(ImagePreparation(upright=True)(content, 32), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squash_resizes_the_whole_image(interpolation: str) -> None:
    kind = Image.Resampling[interpolation.upper()]
    expected = np.asarray(wide().resize((32, 32), kind)).transpose(2, 0, 1)
    found = ImagePreparation("squash", interpolation)(encoded_image(wide()), 32)  # type: ignore[arg-type]
    assert np.array_equal(found.numpy(), expected)


def test_bilinear_takes_the_centre_square() -> None:
    expected = np.asarray(wide().crop((20, 0, 70, 50)).resize((50, 50), Image.Resampling.BILINEAR))
    found = ImagePreparation("shortest", "bilinear")(encoded_image(wide()), 50)
    assert np.array_equal(found.numpy().transpose(1, 2, 0), expected)


def test_upright_files_are_turned() -> None:
    lying, upright = (ImagePreparation(upright=turn)(rotated_jpeg(), 16) for turn in (False, True))
    assert not torch.equal(lying, upright)
    # A quarter turn clockwise brings the left upper corner to the right upper one.
    assert (lying[0, 2, 2] > lying[2, 2, 2]) and (upright[0, 2, 13] > upright[2, 2, 13])


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_bytes_that_are_no_image_are_refused(upright: bool, mode: str) -> None:
    with pytest.raises(UserError):
        ImagePreparation(mode, upright=upright)(b"no image", 8)  # type: ignore[arg-type]


def model_folder(folder: Path, **preprocess: object) -> Path:
    model = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    (folder / "open_clip_model.safetensors").write_bytes(b"")
    return folder


def test_an_encoder_asks_for_its_preparation(tmp_path: Path) -> None:
    assert preparation_of(model_folder(tmp_path)) == ImagePreparation("shortest", "bicubic")
    asked = model_folder(tmp_path, resize_mode="squash", interpolation="bilinear")
    assert preparation_of(asked) == ImagePreparation("squash", "bilinear")
    for wrong in ({"resize_mode": "longest"}, {"interpolation": "nearest"}):
        with pytest.raises(UserError, match="is not supported"):
            preparation_of(model_folder(tmp_path, **wrong))

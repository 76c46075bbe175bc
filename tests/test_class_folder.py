"""Class sub-folders: classes by name, images at any depth, nothing else."""

from pathlib import Path

import pytest
from toys.class_folders import write_class_folder
from toys.images import COLOURS, coloured_square

from leam_mm.errors import UserError
from leam_mm.evaluators.class_folder import class_names_of, read_class_folder
from leam_mm.evaluators.image_preparation import ImagePreparation


def test_images_have_the_class_of_their_folder(tmp_path: Path) -> None:
    write_class_folder(tmp_path, 2)
    (tmp_path / "blue/deep").mkdir()
    (tmp_path / "blue/deep/a.jpg").write_bytes(coloured_square("blue", 9))
    (tmp_path / "blue/notes.txt").write_text("not an image")
    (tmp_path / "blue/.hidden.png").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    classes, samples = read_class_folder(tmp_path, ImagePreparation())
    assert classes == sorted(COLOURS) == class_names_of(tmp_path)
    assert [sample.key for sample in samples][:4] == ["blue/0.png", "blue/1.png", "blue/deep/a.jpg", "green/0.png"]
    assert [sample.class_id for sample in samples][:4] == ["blue", "blue", "blue", "green"]
    assert samples[2].content() == coloured_square("blue", 9)


def test_a_class_without_images_is_an_error(tmp_path: Path) -> None:
    (write_class_folder(tmp_path) / "white").mkdir()
    with pytest.raises(UserError, match=r"white holds no image"):
        read_class_folder(tmp_path, ImagePreparation())
    assert "white" not in class_names_of(tmp_path)


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    (write_class_folder(tmp_path) / "red/0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    _, samples = read_class_folder(tmp_path, ImagePreparation(upright=True))
    broken = next(sample for sample in samples if sample.key == "red/0.png")
    with pytest.raises(UserError, match=r"image red/0.png: .*repair or remove it"):
        broken.pixels(8)
    (tmp_path / "red/0.png").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        broken.pixels(8)

"""The layout of a folder of images is detected; what cannot be measured is refused with the fix."""

import os
from pathlib import Path

import pytest
from toys.class_folders import write_class_folder, write_tars
from toys.images import COLOURS, coloured_square
from toys.shards import write_toy_shards

from leam_mm.errors import UserError
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import find_layout, read_image_set

PLAIN = ImagePreparation()


def test_class_folder_without_splits(tmp_path: Path) -> None:
    found = read_image_set(write_class_folder(tmp_path), "test", PLAIN)
    assert (found.layout, found.split, found.classes) == ("class sub-folders", "", sorted(COLOURS))
    assert found.described() == "class sub-folders: 16 images of 4 classes"
    assert all(sample.preparation.upright for sample in found.samples)
    assert found.caption_languages() == []


def test_class_folder_with_splits(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "train", 3)
    write_class_folder(tmp_path / "val", 2)
    found = read_image_set(tmp_path, "val", PLAIN)
    assert (found.split, len(found.samples)) == ("val", 8)
    assert len(read_image_set(tmp_path, "val", PLAIN, limit=4).samples) == 4
    assert {one.class_id for one in read_image_set(tmp_path, "val", PLAIN, limit=4).samples} == set(COLOURS)
    with pytest.raises(UserError, match=r"has no split 'test', but train, val: give one of them with --split"):
        read_image_set(tmp_path, "test", PLAIN)


def test_clip_benchmark_folder(tmp_path: Path) -> None:
    samples = [{"png": coloured_square("red", number), "cls": str(number % 2).encode()} for number in range(4)]
    write_tars(tmp_path, "test", [samples])
    (tmp_path / "classnames.txt").write_text("one\ntwo\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
    found = read_image_set(tmp_path, "test", PLAIN)
    assert (found.layout, found.split, found.names) == ("clip-benchmark folder", "test", ["one", "two"])
    assert found.templates == ["a {}."] and not found.samples[0].preparation.upright
    with pytest.raises(UserError, match="has no split 'val', but test"):
        find_layout(tmp_path, "val")
    with pytest.raises(UserError, match="--split test"):
        find_layout(tmp_path / "test", "test")


def test_shards(tmp_path: Path) -> None:
    write_toy_shards(tmp_path / "test", 12)
    for folder, split in ((tmp_path, "test"), (tmp_path / "test", "")):
        found = read_image_set(folder, "test", PLAIN)
        assert (found.layout, found.split, found.classes) == ("shards", split, sorted(COLOURS))
        assert found.caption_languages() == ["de", "en"]
        assert found.described().endswith("12 images of 4 classes, 12 with captions")
    with pytest.raises(UserError, match="has no split 'val', but test"):
        find_layout(tmp_path, "val")


def test_folders_that_cannot_be_measured(tmp_path: Path) -> None:
    cases: dict[str, str] = {
        "missing": "is not a folder",
        "empty": "no image, no tars and no shards",
        "flat": "images but no class sub-folders",
        "single": "has one class, 'red'",
        "twice": "two sub-folders for the class 'red car'",
    }
    for name in list(cases)[1:]:
        (tmp_path / name).mkdir()
    (tmp_path / "flat/a.png").write_bytes(coloured_square("red", 1))
    for folder in ("single/red", "twice/red_car", "twice/Red car"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(coloured_square("red", 1))
    for name, reason in cases.items():
        with pytest.raises(UserError, match=reason):
            read_image_set(tmp_path / name, "test", PLAIN)
    write_tars(tmp_path / "tars", "test", [[{"png": coloured_square("red", 1), "cls": b"0"}]])
    with pytest.raises(UserError, match="holds 1 images: give at least 2"):
        read_image_set(tmp_path / "tars", "test", PLAIN)


def test_numbers_of_thousands_of_digits_and_names_that_are_not_unicode(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", "test", [[]])
    (tmp_path / "tars" / "test" / "nshards.txt").write_text("9" * 5000)
    with pytest.raises(UserError, match="write the number of tars"):
        read_image_set(tmp_path / "tars", "test", ImagePreparation())
    images = write_class_folder(tmp_path / "images")
    os.rename(next(path for path in images.iterdir()), os.fsencode(images) + b"/\xff")
    with pytest.raises(UserError, match="not in UTF-8; rename"):
        read_image_set(images, "test", ImagePreparation())
    with pytest.raises(UserError, match="is no name of a folder"):
        find_layout(images, "../images")

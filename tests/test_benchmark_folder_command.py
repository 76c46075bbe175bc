"""python evaluate.py benchmark_folder writes names, templates and labels, or captions, of one language."""

import json
from pathlib import Path

import pytest
from toys.class_folders import write_class_folder
from toys.images import COLOURS, GERMAN
from toys.shards import write_toy_shards

from evaluate import main
from leam_mm.errors import UserError
from leam_mm.evaluators.class_templates import own_templates
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import read_image_set

CLASSES = sorted(COLOURS)


def write(images: Path, output: Path, *words: str) -> None:
    main(["benchmark_folder", "--images", str(images), "--output", str(output), *words])


def test_classes_in_german(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_class_folder(tmp_path / "images")
    names = {"de": {name: [GERMAN[name], f"sehr {GERMAN[name]}"] for name in CLASSES}}
    (tmp_path / "names.json").write_text(json.dumps(names))
    write(images, tmp_path / "tars", "--classes", str(tmp_path / "names.json"), "--language", "de")
    assert "the first one is written" in capsys.readouterr().out
    found = read_image_set(tmp_path / "tars", "test", ImagePreparation())
    assert found.layout == "clip-benchmark folder" and found.names == [GERMAN[name] for name in CLASSES]
    assert found.templates == list(own_templates()["de"])
    expected = [CLASSES.index(str(one.class_id)) for one in read_image_set(images, "test", ImagePreparation()).samples]
    assert [int(str(one.class_id)) for one in found.samples] == expected


def test_captions_in_german(tmp_path: Path) -> None:
    write_toy_shards(tmp_path / "shards", 8)
    write(tmp_path / "shards", tmp_path / "tars", "--captions", "--language", "de", "--limit", "4")
    found = read_image_set(tmp_path / "tars", "test", ImagePreparation(), language="de")
    shards = read_image_set(tmp_path / "shards", "test", ImagePreparation(), limit=4)
    assert [one.captions("de") for one in found.samples] == [one.captions("de") for one in shards.samples]
    assert found.classes == []


def test_what_has_no_names_or_captions_is_refused(tmp_path: Path) -> None:
    images = write_class_folder(tmp_path / "images")
    write_toy_shards(tmp_path / "shards", 8)
    (tmp_path / "names.json").write_text(json.dumps({"de": {"red": "rot"}}))
    for folder, words, reason in (
        (images, ["--language", "fi"], "no names in fi"),
        (tmp_path / "shards", [], "no names in en"),
        (tmp_path / "shards", ["--captions", "--language", "fi"], "no image to write"),
        (images, ["--language", "de", "--classes", str(tmp_path / "names.json")], "class blue has no name in de"),
    ):
        with pytest.raises(UserError, match=reason):
            write(folder, tmp_path / "tars", *words)
    assert not (tmp_path / "tars").exists()


def test_nothing_but_a_split_of_tars_is_replaced(tmp_path: Path) -> None:
    images = write_class_folder(tmp_path / "images" / "test").parent
    before = sorted(images.rglob("*"))
    with pytest.raises(UserError, match="is no split of tars"):
        write(images, images)
    assert sorted(images.rglob("*")) == before
    for split in ("..", "../other", "", "/etc"):
        with pytest.raises(UserError, match="is no name of a folder"):
            write(images / "test", tmp_path / "tars", "--split", split)
    write(images, tmp_path / "tars")
    with pytest.raises(UserError, match="holds the images that are read"):
        write(tmp_path / "tars", tmp_path / "tars", "--limit", "4")
    assert len(read_image_set(tmp_path / "tars", "test", ImagePreparation()).samples) > 4


def test_an_unreadable_image_leaves_no_file(tmp_path: Path) -> None:
    images = write_class_folder(tmp_path / "images")
    next(images.rglob("*.png")).write_bytes(b"")
    with pytest.raises(UserError, match="cannot be decoded"):
        write(images, tmp_path / "tars")
    assert not list((tmp_path / "tars").rglob("*"))

"""Class names from sub-folders, text, JSON by language and class files; wrong ones are refused."""

import json
from pathlib import Path

import pytest
from toys.class_folders import write_class_folder
from toys.images import COLOURS, GERMAN
from toys.shards import write_toy_shards

from leam_mm.errors import UserError
from leam_mm.evaluators.class_names import ClassNames, name_classes
from leam_mm.evaluators.class_templates import own_templates
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import ImageSet, read_image_set

CLASSES = sorted(COLOURS)  # blue, green, red, yellow


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return read_image_set(write_class_folder(tmp_path / "images"), "test", ImagePreparation())


def named(images: ImageSet, file: Path | None = None, *languages: str, templates: Path | None = None) -> ClassNames:
    found = name_classes(images, file, templates, languages)
    assert found is not None
    return found


def test_folders_name_their_classes_in_english(images: ImageSet) -> None:
    found = named(images)
    assert (found.classes, list(found.languages)) == (CLASSES, ["en"])
    assert found.languages["en"].prompts[0] == [text.replace("{}", "blue") for text in own_templates()["en"]]
    also = named(images, None, "en", "de")
    assert (list(also.languages), also.unnamed) == (["en"], ["de"])


def test_text_names_the_only_language(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("blau\ngrün\nrot\ngelb\n", encoding="utf-8")
    found = named(images, tmp_path / "names.txt", "de")
    assert found.texts["de"] == ([["blau"], ["grün"], ["rot"], ["gelb"]], list(own_templates()["de"]))
    assert list(named(images, tmp_path / "names.txt").languages) == ["en"]


def test_json_by_language(images: ImageSet, tmp_path: Path) -> None:
    content = {"de": [GERMAN[name] for name in CLASSES], "fr": {"red": ["rouge", "vermeil"], "blue": "bleu"}}
    (tmp_path / "names.json").write_text(json.dumps(content))
    found = named(images, tmp_path / "names.json")
    assert list(found.languages) == ["de", "fr"]
    assert found.texts["fr"][0] == [["bleu"], [], ["rouge", "vermeil"], []]
    assert found.languages["fr"].prompts[1] == []


def test_class_file_with_its_own_templates(images: ImageSet, tmp_path: Path) -> None:
    entry = {"templates": ["{}!"], "names": {name: [name.upper()] for name in CLASSES}, "ambiguous": [["red", "blue"]]}
    content = {"classes": [*CLASSES, "white"], "languages": {"en": entry}}
    (tmp_path / "classes.json").write_text(json.dumps(content))
    found = named(images, tmp_path / "classes.json")
    assert found.classes == [*CLASSES, "white"]
    assert found.languages["en"].prompts[2:] == [["RED!"], ["YELLOW!"], []]
    assert found.languages["en"].group[0] == found.languages["en"].group[2]
    (tmp_path / "templates.txt").write_text("a {}\n")
    given = named(images, tmp_path / "classes.json", templates=tmp_path / "templates.txt")
    assert given.texts["en"][1] == ["a {}"]
    assert given.record["templates_sha256"] != found.record["templates_sha256"]
    assert given.record["class_names_sha256"] == found.record["class_names_sha256"]


def test_shards_take_the_class_file_beside_them(tmp_path: Path) -> None:
    images = read_image_set(write_toy_shards(tmp_path / "shards", 8), "test", ImagePreparation())
    assert name_classes(images, None, None, []) is None
    entry = {"names": {name: [name] for name in CLASSES}}
    (tmp_path / "shards/classes.json").write_text(json.dumps({"classes": CLASSES, "languages": {"en": entry}}))
    assert named(images).source == "classes.json"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a\nb\nc\n", "has 3 names for 4 classes"),
        ("a\nb\nA\nd\n", "named twice"),
        ({"en": ["a", "b", "c", " "]}, "a name is empty"),
        ({"en": {"white": ["a"]}}, "there is no class white"),
        ({"en": 1}, "neither a list nor an object"),
        ({"en": {"red": [1]}}, "a name is no text"),
        ({"classes": ["red", "red"], "languages": {"en": {"names": {"red": ["a"]}}}}, "a class twice"),
        ({"classes": ["red", "blue"], "languages": {"en": {"names": {"red": "a"}}}}, "not a list"),
        ({"classes": ["a", "b"], "languages": {"en": {"names": {"a": ["a"]}}}}, "names none of the classes"),
        ([1], "holds no class names"),
    ],
)
def test_wrong_names_are_refused(images: ImageSet, tmp_path: Path, content: object, reason: str) -> None:
    file = tmp_path / ("names.txt" if isinstance(content, str) else "names.json")
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=reason):
        name_classes(images, file, None, [])


def test_an_unknown_language_is_refused(images: ImageSet) -> None:
    with pytest.raises(UserError, match="--languages xx: unknown language"):
        name_classes(images, None, None, ["xx"])

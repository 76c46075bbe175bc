"""Tables of prompts: ours are complete, and others fail in one line."""

from pathlib import Path

import pytest

from leam_mm.audits import prompt_table
from leam_mm.audits.prompt_table import PEOPLE, SCENES, read_prompts, read_reference
from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES

GOOD = "languages: {en: {templates: ['a {}'], x: {p: q}}, de: {x: {p: r}}}"


def write(folder: Path, text: str) -> Path:
    (folder / "table.yaml").write_text(text, encoding="utf-8")
    return folder / "table.yaml"


def test_our_tables_hold_every_section_in_every_language() -> None:
    for section in ("neutral", "harmful", "pleasant", "unpleasant", "perceived_gender"):
        tables = read_prompts(PEOPLE, section, ["en", "de"])
        assert all(len(texts) == 2 and "{}" not in texts[0] for table in tables.values() for texts in table.texts)
    shapes = read_prompts(SCENES, "shapes", list(LANGUAGES))
    assert shapes["fi"].names[0] == "circle" and shapes["fi"].texts[0] == ["ympyrä"]
    assert {len(table.names) for table in shapes.values()} == {8}


def test_shapes_are_the_words_of_the_captions() -> None:
    from data_tools.corpora.scene_language import SHAPES, scene_languages

    for code, table in read_prompts(SCENES, "shapes", list(LANGUAGES)).items():
        assert table.texts == [[scene_languages()[code].thing("", shape)] for shape in SHAPES]


def test_templates_are_filled(tmp_path: Path) -> None:
    found = read_prompts(write(tmp_path, GOOD), "x", ["en", "de"])
    assert found["en"].texts == [["a q"]] and found["de"].texts == [["r"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("languages: [1", "is no YAML"),
        ("1", "holds no mapping"),
        ("{}", "has no `languages`"),
        ("languages: {en: {x: {p: q}}}", "has no language de; it has en"),
        ("languages: {en: {x: {p: q}}, de: {x: {s: q}}}", "de.x differs from en in p, s"),
        ("languages: {en: {x: {p: q}}, de: {y: {p: q}}}", "de.x is no mapping"),
        ("languages: {en: {x: {p: 1}}, de: {x: {p: q}}}", "en.x is no mapping"),
        ("languages: {en: {x: {}}, de: {x: {p: q}}}", "en.x is no mapping"),
        ("languages: {en: {templates: [a], x: {p: q}}, de: {x: {p: q}}}", "en.templates is no list"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(write(tmp_path, text), "x", ["en", "de"])
    assert "\n" not in str(caught.value)


def test_files_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "none.yaml", "x", ["en"])
    with pytest.raises(UserError, match="no language was given"):
        read_prompts(write(tmp_path, GOOD), "x", [])
    monkeypatch.setattr(prompt_table, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="larger than 5 bytes"):
        read_prompts(write(tmp_path, GOOD), "x", ["en"])


def test_reference_is_weights(tmp_path: Path) -> None:
    assert read_reference(write(tmp_path, "{woman: 51, man: 49.5}")) == {"woman": 51.0, "man": 49.5}
    for text in ("{}", "{a: -1, b: 2}", "{a: x}", "{a: true}", "{1: 2}", "{a: .nan}", "{a: .inf}"):
        with pytest.raises(UserError, match="maps each value to its weight"):
            read_reference(write(tmp_path, text))
    with pytest.raises(UserError, match="all weights are 0"):
        read_reference(write(tmp_path, "{a: 0}"))

"""Our templates hold one placeholder each, in all languages; templates of others are checked."""

import json
from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.evaluators.class_templates import check_templates, given_templates, own_templates, texts_digest
from leam_mm.languages import LANGUAGES


def test_every_language_has_templates_with_one_placeholder() -> None:
    templates = own_templates()
    assert tuple(templates) == LANGUAGES
    for code, texts in templates.items():
        assert 5 <= len(texts) <= 8 and texts[0] == "{}", code
        for text in texts:
            assert text.count("{}") == 1 and text.count("{") == text.count("}") == 1, (code, text)
            assert text == text.strip() and "  " not in text
        assert len({" ".join(text.casefold().split()) for text in texts}) == len(texts), code
    assert len({texts_digest(texts) for texts in templates.values()}) == len(LANGUAGES)


def test_the_name_keeps_its_dictionary_form() -> None:
    """It stands first, or after a colon or an opening quotation mark: nothing before it asks for a case."""
    for code, texts in own_templates().items():
        for text in texts:
            before = text.partition("{}")[0].rstrip("\u00a0\u202f ")
            assert before == "" or before[-1] in ":„“”»«‘", (code, text)


def test_given_templates(tmp_path: Path) -> None:
    text = tmp_path / "templates.txt"
    text.write_text("\ufeffa photo of a {c}.\n\nart of the {}.\n", encoding="utf-8")
    assert given_templates(text, []) == {"en": ["a photo of a {}.", "art of the {}."]}
    assert list(given_templates(text, ["de"])) == ["de"]
    table = tmp_path / "templates.json"
    table.write_text(json.dumps({"de": ["Foto: {}"], "fi": ["kuva: {c}"]}))
    assert given_templates(table, ["de", "fi"]) == {"de": ["Foto: {}"], "fi": ["kuva: {}"]}


@pytest.mark.parametrize("content", ['{"de": ["no placeholder"]}', '{"de": ["{} {}"]}', '{"de": []}', '{"de": "x {}"}',
                                     '{"de": ["{}", "{}"]}', "[1]", "{", '{"de": [1]}'])  # fmt: skip
def test_wrong_templates_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "templates.json").write_text(content)
    with pytest.raises(UserError, match=r"templates\.json"):
        given_templates(tmp_path / "templates.json", ["de"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Größe {}".encode("latin-1"))
    for name in ("missing.txt", "latin.txt"):
        with pytest.raises(UserError, match="cannot be read"):
            given_templates(tmp_path / name, [])
    assert check_templates(["{}"], "here") == ["{}"]

"""The German documents have the structure and the numbers of the English ones."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from toys.releases import counted_content, publisher_fields, release_facts

from leam_mm.documents.document_text import words
from leam_mm.documents.documentation_form import SIZES, TIMES
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.training_summary import IMAGE_BANDS, TEXT_BANDS
from leam_mm.documents.write_documents import BY_LANGUAGE

KINDS = ("full", "empty", "encoder")
CASES = [(name, kind) for name in BY_LANGUAGE for kind in KINDS]


def numbers(text: str, language: str) -> list[str]:
    """All numbers of a text, sorted; those of a German text in the English form."""
    thousands, decimal = (",", ".") if language == "en" else (".", ",")
    found = []
    for match in re.findall(r"\d(?:[\d.,]*\d)?", text):
        if re.fullmatch(rf"\d{{1,3}}(?:[{thousands}]\d{{3}})+(?:[{decimal}]\d+)?", match):
            match = match.replace(thousands, "")
        found.append(match.replace(",", ".") if decimal == "," and match.count(",") == 1 else match)
    return sorted(found)


def shape(text: str) -> list[str]:
    """Headings by their level, list items, and rows of tables by their number of cells, in order."""
    found = []
    for line in text.splitlines():
        mark = re.match(r"#+|\s*-|\s*\d+\.", line)
        if line.startswith("|"):
            found.append(f"row of {line.count('|')}")
        elif mark:
            found.append(re.sub(r"\d+", "1", mark[0]))
        elif line:
            found.append("text")
    return found


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("languages") / "shards"


@pytest.fixture(scope="module")
def documents(release: Path) -> dict[tuple[str, str, str], str]:
    full = release_facts(counted_content(release))
    encoder = replace(full, generated_size=None, stages=[replace(full.stages[0], base={"name": "org/clip"})])
    cases = {
        "full": (full, publisher_fields()),
        "empty": (release_facts(None), PublisherFields()),
        "encoder": (encoder, publisher_fields()),
    }
    return {
        (name, kind, language): document(*cases[kind], language)
        for name, document in BY_LANGUAGE.items()
        for kind in KINDS
        for language in ("en", "de")
    }


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_both_languages_have_the_same_numbers(documents: dict, name: str, kind: str) -> None:
    english, german = (numbers(documents[name, kind, language], language) for language in ("en", "de"))
    assert english == german


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_both_languages_have_the_same_structure(documents: dict, name: str, kind: str) -> None:
    assert shape(documents[name, kind, "en"]) == shape(documents[name, kind, "de"])


@pytest.mark.parametrize("name", BY_LANGUAGE)
def test_german_documents_are_german(documents: dict, name: str) -> None:
    text = documents[name, "full", "de"]
    assert not re.search(r"\b(the|and|with|which|not measured|open:|none)\b", text), name
    assert re.search(r"\b(und|der|die|nicht)\b", text), name


def test_fixed_words_are_translated() -> None:
    phrases = words("de")["phrases"]
    fixed = [*(name for _, name in (*TEXT_BANDS, *IMAGE_BANDS)), *(name for _, name in TIMES)]
    assert not [name for name in fixed if name not in phrases]
    assert [name for _, name in SIZES][-1] == ">1T"


def test_a_changed_number_is_noticed() -> None:
    assert numbers("1,234 images, 0.5 %", "en") == numbers("1.234 Bilder, 0,5 %", "de")
    assert numbers("1,234 images", "en") != numbers("1.235 Bilder", "de")
    assert numbers("0.5 kWh", "en") == numbers("0,5 kWh", "de") != numbers("0,6 kWh", "de")

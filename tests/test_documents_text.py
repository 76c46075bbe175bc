"""How documents show values: numbers in the form of the language, missing values as such, strangers' text as text."""

from datetime import date
from pathlib import Path

import pytest
from toys.releases import HOSTILE, counted_content, publisher_fields, release_facts

from leam_mm.documents.document_text import NOT_APPLICABLE, NOT_MEASURED, Open, measured, number, power, show, stated
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.write_documents import BY_LANGUAGE, MACHINE_READABLE


@pytest.mark.parametrize(
    ("value", "english", "german"),
    [
        (1234567, "1,234,567", "1.234.567"),
        (0, "0", "0"),
        (0.5, "0.5", "0,5"),
        (1234.5, "1,234", "1.234"),
        (2.5e-7, "2.5e-07", "2,5e-07"),
        (True, "yes", "ja"),
        (None, "*not measured*", "*nicht gemessen*"),
        (Open("open", "x"), "*open: state* `x` *in release.yaml*", "*offen:* `x` *in release.yaml angeben*"),
        (NOT_APPLICABLE, "not applicable", "nicht zutreffend"),
        (date(2026, 12, 1), "2026-12-01", "2026-12-01"),
        ({"images": 5, "captions": 1000}, "images: 5; captions: 1,000", "Bilder: 5; Bildunterschriften: 1.000"),
        (["yes", 2], "yes, 2", "ja, 2"),
        ([], "none", "keine"),
    ],
)  # fmt: skip
def test_a_value_is_shown_in_the_form_of_the_language(value: object, english: str, german: str) -> None:
    assert (show(value, "en"), show(value, "de")) == (english, german)


def test_missing_values_never_become_numbers() -> None:
    assert measured(None) is NOT_MEASURED and measured(0) == 0
    assert stated(None, "x") == stated("", "x") == stated([], "x") == Open("open", "x")
    assert stated(False) is False and stated(0) == 0
    assert power(None, "de") == "*nicht gemessen*" and power(1.25e20, "de") == "1,2e+20"
    assert number(12345.6, "en") == "12,346"


def test_strings_of_strangers_stay_text(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    content.statistics["licence"][HOSTILE] = 7  # type: ignore[index]
    facts = release_facts(content, name=HOSTILE, licence=HOSTILE)
    for name, document in BY_LANGUAGE.items():
        for language in ("en", "de"):
            text = document(facts, publisher_fields(HOSTILE), language)
            assert "<script" not in text and "<img" not in text and "](http" not in text, name
            assert "\u202e" not in text and "\n# heading" not in text and "~~" not in text, name
            for line in text.splitlines():
                if line.startswith("|"):
                    assert "`x`" not in line, name


def test_an_empty_release_gives_all_documents(tmp_path: Path) -> None:
    facts = release_facts(None, stages=[], metrics=[], files={})
    for document in (*BY_LANGUAGE.values(), *MACHINE_READABLE.values()):
        for language in ("en", "de"):
            assert isinstance(document(facts, PublisherFields(), language), str)

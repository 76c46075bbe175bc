"""How documents show values: numbers in the form of the language, missing values as such, strangers' text as text."""

import csv
import io
import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys.pages import ENERGY_RECORD, metric_row
from toys.releases import HOSTILE, counted_content, publisher_fields, release_facts

from leam_mm.documents.dataset_statistics import DomainCount
from leam_mm.documents.document_text import NOT_APPLICABLE, NOT_MEASURED, Open, measured, number, power, show, stated
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts, StageFacts
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


def hostile_release(folder: Path) -> ReleaseFacts:
    """A release whose data, ledgers, results, bases and libraries are named by a stranger."""
    content = counted_content(folder)
    numbers: Any = content.statistics
    for name in ("licence", "legal_basis", "consent", "crawler", "languages", "transforms"):
        numbers[name][HOSTILE] = 7
    numbers["data_sets"].append({"name": HOSTILE, "merkle_root": HOSTILE})
    numbers["stages"].append({"stage": HOSTILE, "given": 9, "kept": 2, "dropped": {f"robots.txt {HOSTILE}": 7}})
    content.tally.crawled["shards"][HOSTILE] = DomainCount(7, 10**9)
    facts = release_facts(content, name=HOSTILE, licence=HOSTILE, metrics=[metric_row(f"audit/memory {HOSTILE}")])
    data, base = {f"{HOSTILE}2": HOSTILE, **facts.stages[0].data}, {"name": HOSTILE, "licence": HOSTILE}
    record = ENERGY_RECORD | {"source": HOSTILE}
    stage = StageFacts(
        *("clip", 1, 2, "ab" * 32, data, record, {HOSTILE: HOSTILE}, base), flops=1.0, flops_notes=[HOSTILE]
    )
    return replace(facts, stages=[stage, *facts.stages[1:]], data=[replace(facts.data[0], licences={HOSTILE: 23})])


@pytest.mark.parametrize("name", BY_LANGUAGE)
@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("public", [None, {"shards": HOSTILE}])
def test_strings_of_strangers_stay_text(tmp_path: Path, name: str, language: str, public: Any) -> None:
    document = BY_LANGUAGE[name]
    publisher = replace(publisher_fields(HOSTILE), public_data_sets=public)
    text = document(hostile_release(tmp_path / "shards"), publisher, language)
    usual = document(release_facts(counted_content(tmp_path / "usual")), publisher_fields(), language)
    for sign in ("<script", "<img", "](http", "\u202e", "\n# heading", "~~", "|`x`"):
        assert sign not in text, sign
    headings = [[line for line in found.splitlines() if line.startswith("##")] for found in (text, usual)]
    assert headings[0] == headings[1]
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths <= {line.count("|") for line in usual.splitlines() if line.startswith("|")}


def test_strings_of_strangers_break_no_other_form(tmp_path: Path) -> None:
    facts, publisher = hostile_release(tmp_path / "shards"), publisher_fields(HOSTILE)
    json.loads(MACHINE_READABLE["documents/ml_bom.cdx.json"](facts, publisher, "en"))
    json.loads(MACHINE_READABLE["documents/croissant.json"](facts, publisher, "en"))
    found = yaml.safe_load(MACHINE_READABLE["documents/mof.yaml"](facts, publisher, "en"))
    assert found["release"]["name"] == HOSTILE
    rows = list(csv.reader(io.StringIO(MACHINE_READABLE["documents/data_table.csv"](facts, publisher, "en"))))
    assert len(rows) == 3 and {len(row) for row in rows} == {8}


def test_an_empty_release_gives_all_documents(tmp_path: Path) -> None:
    facts = release_facts(None, stages=[], metrics=[], files={})
    for document in (*BY_LANGUAGE.values(), *MACHINE_READABLE.values()):
        for language in ("en", "de"):
            assert isinstance(document(facts, PublisherFields(), language), str)

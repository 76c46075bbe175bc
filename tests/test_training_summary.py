"""description/training_summary.py: all sections, sizes and domains as the template wants them, and nothing invented."""

import json
from pathlib import Path

import pytest

from data_tools.describe_dataset import read_provider
from data_tools.description.dataset_statistics import DomainCount
from data_tools.description.training_summary import IMAGE_BANDS, TITLES, band, listed_domains, summary_text, text_band
from leam_mm.errors import UserError


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "<1 million images"),
        (999_999, "<1 million images"),
        (10**6, "1 million to 1 billion images"),
        (10**9, ">1 billion images"),
    ],
)
def test_sizes_of_images(count: int, words: str) -> None:
    assert band(count, IMAGE_BANDS) == words


def test_the_size_of_text_is_stated_only_where_it_is_sure() -> None:
    assert text_band(10**8, 10**7, None) == "<1 billion tokens"
    assert text_band(5 * 10**9, 10**9, None) == "1 billion to 10 trillion tokens"
    assert text_band(5 * 10**9, 10**8, None) == "not stated"  # somewhere between 0.1 and 5 billion tokens
    assert text_band(5 * 10**9, 10**8, 2 * 10**9) == "1 billion to 10 trillion tokens"


@pytest.mark.parametrize(
    ("domains", "small", "count"), [(5, False, 1), (95, False, 10), (95, True, 5), (30_000, True, 1000)]
)
def test_the_largest_domains_are_listed(domains: int, small: bool, count: int) -> None:
    found = {f"{n}.example": DomainCount(1, n) for n in range(domains)}
    listed = listed_domains(found, small)
    assert len(listed) == count and listed[0]["bytes"] == domains - 1
    assert [entry["bytes"] for entry in listed] == sorted((entry["bytes"] for entry in listed), reverse=True)


def test_a_providers_file_with_unknown_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "provider.yaml"
    for text, word in (
        ("crawlt: {}", "section 'crawlt' is not known"),
        ("crawled: {purpose: x}", "crawled.purpose is not known"),
        ("crawled: everything", "is no mapping"),
        ("[1, 2]", "is no mapping"),
        ("public_data_sets: [{name: x}]", "needs name, link and folder"),
        ("a: [", "cannot be read as YAML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            read_provider(path)
    path.write_text("")
    assert read_provider(path) == {}


def test_hostile_words_stay_words() -> None:
    summary = {number: {"comment": "<script>|\n# x"} for number in TITLES} | {"template": "t", "data": []}
    text = summary_text(json.loads(json.dumps(summary)))
    assert "<script>" not in text and "&lt;script&gt;\\| # x" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [f"## {n} {t}" for n, t in TITLES.items()]

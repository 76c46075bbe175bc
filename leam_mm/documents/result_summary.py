"""Results of a release: one line for each test, and full tables for results.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leam_mm.documents.words import count, interval, language_name, value, word
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.report_number import marked_indicative
from leam_mm.report.report_words import METRIC_TITLES

Row = Mapping[str, Any]
SUMMARIES = ("mean", "min", "min_over_mean")


@dataclass(frozen=True)
class LanguageTest:
    """A test that was measured in several languages.

    Args:
        name: Its name, such as ``scenes/top1``.
        languages: Result of each language by code, measured ones only.
        mean: The mean over languages, if it was measured.
        unmeasured: Codes of the languages without a result.
    """

    name: str
    languages: Mapping[str, Row]
    mean: Row | None
    unmeasured: Sequence[str]

    @property
    def best(self) -> str:
        """Code of the language with the highest value."""
        return max(self.languages, key=lambda code: (self.languages[code]["value"], code))

    @property
    def worst(self) -> str:
        """Code of the language with the lowest value."""
        return min(self.languages, key=lambda code: (self.languages[code]["value"], code))


def split_name(name: str) -> tuple[str, str]:
    """Return test and language code (or kind of summary) of a metric; an empty second part for any other metric."""
    start, _, end = name.rpartition("/")
    return (start, end) if start and (end in LANGUAGE_NAMES or end in SUMMARIES) else (name, "")


def language_tests(metrics: Sequence[Row]) -> list[LanguageTest]:
    """Return the tests that were measured in several languages, in the order of the results."""
    groups: dict[str, dict[str, Row]] = {}
    for metric in metrics:
        test, part = split_name(str(metric["name"]))
        if part:
            groups.setdefault(test, {})[part] = metric
    found = []
    for test, parts in groups.items():
        measured = {code: row for code, row in parts.items() if code in LANGUAGE_NAMES and row.get("value") is not None}
        unmeasured = [code for code in parts if code in LANGUAGE_NAMES and code not in measured]
        if measured:
            found.append(LanguageTest(test, measured, parts.get("mean"), unmeasured))
    return found


def other_metrics(metrics: Sequence[Row]) -> list[Row]:
    """Return the metrics that belong to no language and are no audit."""
    return [
        metric for metric in metrics
        if not split_name(str(metric["name"]))[1] and not str(metric["name"]).startswith("audit/")
    ]  # fmt: skip


def test_title(name: str, language: str) -> str:
    """Return the name of a test for readers, such as "scenes: zero-shot classification, top-1"."""
    parts = name.split("/")
    known = [
        METRIC_TITLES[part][language == "de"] if part in METRIC_TITLES else part.replace("_", " ") for part in parts
    ]
    return f"{known[0]}: {', '.join(known[1:])}" if len(known) > 1 else known[0]


def summary_rows(metrics: Sequence[Row], language: str) -> list[list[str]]:
    """Return one line for each test: mean with its interval, best and worst language, and number of languages."""
    rows = []
    for test in language_tests(metrics):
        mean = test.mean or {}
        ends = [
            f"{value(test.languages[code], language)} ({language_name(code, language)})"
            for code in (test.best, test.worst)
        ]
        number = f"{len(test.languages)} / {len(test.languages) + len(test.unmeasured)}"
        title = marked_indicative(test_title(test.name, language), mean, language)
        rows.append([title, value(mean, language), interval(mean, language), *ends, number])
    return rows


def headline_metrics(metrics: Sequence[Row]) -> list[Row]:
    """Return the metrics of the model without a language: no counts, and none of real images, which are its bounds."""
    return [
        row for row in other_metrics(metrics)
        if row.get("unit") != "count" and "real" not in str(row["name"]).split("/")
    ]  # fmt: skip


def headline_rows(metrics: Sequence[Row], language: str) -> list[list[str]]:
    """Return name, value and interval of each headline metric."""
    return [
        [marked_indicative(test_title(str(row["name"]), language), row, language), value(row, language),
         interval(row, language)]
        for row in headline_metrics(metrics)
    ]  # fmt: skip


def other_rows(metrics: Sequence[Row], language: str) -> list[list[str]]:
    """Return the lines of all metrics without a language."""
    return [
        [test_title(str(row["name"]), language), value(row, language), interval(row, language),
         count(row.get("samples"), language), str(row.get("note") or "")]
        for row in other_metrics(metrics)
    ]  # fmt: skip


def full_tables(metrics: Sequence[Row], language: str) -> list[tuple[str, list[list[str]]]]:
    """Return one table for each test in several languages, with all of them, summaries first."""
    groups: dict[str, list[list[str]]] = {}
    for metric in metrics:
        test, part = split_name(str(metric["name"]))
        if not part:
            continue
        name = f"{language_name(part, language)} ({part})" if part in LANGUAGE_NAMES else part.replace("_", " ")
        row = [name, value(metric, language), interval(metric, language), count(metric.get("samples"), language)]
        groups.setdefault(test, []).append([*row, str(metric.get("note") or "")])
    return [(test_title(test, language), rows) for test, rows in groups.items()]


def unmeasured_languages(measured: Sequence[str], language: str) -> str:
    """Return the names of the official EU languages without a result."""
    missing = [language_name(code, language) for code in LANGUAGE_NAMES if code not in measured]
    return ", ".join(missing) or word("none", language)

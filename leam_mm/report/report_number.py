"""Numbers and names as the report writes them: units, intervals, languages, and "not measured"."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from markupsafe import Markup

from leam_mm.intervals.indicative import INDICATIVE, is_indicative
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.report_words import language_name, word

Row = dict[str, Any]  # one line of results.jsonl
NOT_MEASURED, NOT_GIVEN = "not measured", "not given"
LARGEST = 1e100  # beyond it, nothing was measured: the file was edited


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of a file is a number that can have been measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def missing(language: str = "en") -> Markup:
    """Return "not measured" as it is marked on pages."""
    return Markup('<span class="missing">{}</span>').format(word(NOT_MEASURED, language))


MISSING = missing()


def figures(text: str, language: str) -> str:
    """Return digits that are written in English with the separators of a language."""
    return text.translate(str.maketrans(",.", ".,")) if language == "de" else text


def number(row: Row, language: str = "en") -> str:
    """Return the value in its unit, or "not measured"."""
    value = row.get("value")
    return in_unit(float(value), str(row.get("unit", "")), language) if is_number(value) else missing(language)


def interval(row: Row, language: str = "en") -> str:
    """Return both ends of the interval in the unit of the value, or nothing where there is no interval."""
    low, high, unit = row.get("low"), row.get("high"), str(row.get("unit", ""))
    if not is_number(low) or not is_number(high):
        return ""
    first, last = (in_unit(float(end), unit, language) for end in (low, high))
    shared = f" {last.rpartition(' ')[2]}" if " " in last else ""
    return f"{first.removesuffix(shared)} {word('to', language)} {last}"


def stacked(value: object, below: object) -> Markup:
    """Return a cell of a value with a smaller line below it, which keeps wide tables within the page."""
    return Markup("{}<small>{}</small>").format(value, below) if below else Markup("{}").format(value)


def measured(row: Row, language: str = "en") -> Markup:
    """Return a cell of a value with its interval below."""
    return Markup("{}<small>{}</small>").format(number(row, language), interval(row, language))


def remark(text: object, language: str = "en") -> object:
    """Return a remark of a measuring program, which is in English, marked as such on a page of another language."""
    return text if language == "en" or not text else Markup('<span lang="en">{}</span>').format(text)


def marked_indicative(text: str, row: Mapping[str, Any], language: str = "en") -> str:
    """Return a text beside a number, with "indicative only" if the note of its line says so."""
    return f"{text} ({word(INDICATIVE, language)})" if is_indicative(row) else text


def count(value: object, language: str = "en") -> str:
    """Return a whole number with separated thousands; other values as they are."""
    return figures(f"{value:,.0f}", language) if is_number(value) else str(value)


def share(value: float, language: str = "en", digits: int = 0) -> str:
    """Return a share in percent."""
    return figures(f"{100 * value:.{digits}f} %", language)


def duration(seconds: object, language: str = "en") -> str:
    """Return seconds as seconds, minutes or hours; "not measured" for anything but a number."""
    if not is_number(seconds):
        return missing(language)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return figures(f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h", language)


def energy(joules: object, language: str = "en") -> str:
    """Return joules as Wh or kWh; "not measured" for anything but a number."""
    if not is_number(joules):
        return missing(language)
    return figures(f"{joules / 3600:.3g} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:,.3g} kWh", language)


def carbon(record: Row, kind: str, language: str = "en") -> str:
    """Return the emissions of a measured energy, "not given" without a factor, "not measured" without an energy.

    Args:
        record: What ``CarbonFactors.emitted`` returns, with ``joules``.
        kind: location or market.
        language: Of the page.
    """
    grams, behind, joules = (record.get(key) for key in (f"{kind}_grams", f"{kind}_joules", "joules"))
    if not is_number(grams):
        factor = record.get("grams_per_kwh" if kind == "location" else f"{kind}_grams_per_kwh")
        return word(NOT_MEASURED if is_number(factor) else NOT_GIVEN, language)
    part = ""
    if is_number(behind) and is_number(joules) and behind < 0.999 * joules:
        part = f", {word('for {} of the energy', language).format(f'{behind / joules:.0%}')}"
    steps = ((1.0, "g"), (1e3, "kg"), (1e6, "t"))
    size, unit = next((step for step in reversed(steps) if grams >= step[0]), steps[0])
    return f"{figures(f'{grams / size:,.3g}', language)} {unit} CO2e{part}"


def carbon_factors(record: Row, language: str = "en") -> str:
    """Return the factors behind the emissions: g/kWh of both kinds, the overhead of the site, and their source."""
    names = (("location-based {} g/kWh", "grams_per_kwh"), ("market-based {} g/kWh", "market_grams_per_kwh"))
    words = [
        word(phrase, language).format(figures(f"{record[name]:g}", language))
        for phrase, name in names
        if is_number(record.get(name))
    ]
    if not words:
        return word(NOT_GIVEN, language)
    pue = record.get("pue")
    without = word("without cooling and losses (no PUE given)", language)
    words.append(f"PUE {figures(f'{pue:g}', language)}" if is_number(pue) else without)
    return "; ".join(
        [*words, f"{word('source', language)}: {record.get('carbon_source') or word(NOT_GIVEN, language)}"]
    )


def in_unit(value: float, unit: str, language: str = "en") -> str:
    """Return fractions as percent, counts with separated thousands, and other values with three digits."""
    if unit in ("fraction", "share"):
        return share(value, language, digits=1)
    if unit == "count":
        return figures(f"{value:,.0f}", language)
    text = f"{value:.2f}" if unit == "ratio" else f"{value:.3g}"
    return figures(text, language) + ("" if unit in ("", "distance", "ratio") else f" {unit}")


def exact(value: float, unit: str, language: str = "en") -> str:
    """Return a stated number, such as a threshold, with all of its digits."""
    if unit in ("fraction", "share"):
        return figures(f"{100 * value:.6g} %", language)
    return figures(f"{value:.6g}", language) + ("" if unit in ("", "distance", "ratio", "count") else f" {unit}")


def language_cell(code: str, language: str = "en") -> Markup:
    """Return the name of a language with its code."""
    known = code if code in LANGUAGE_NAMES else ""
    return Markup('{}<span class="code">{}</span>').format(language_name(code, language), known)

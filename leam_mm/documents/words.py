"""Words and numbers of the documents in English and German; numbers come from one value, so that both say the same."""

from collections.abc import Mapping
from typing import Any

from leam_mm.documents.document_text import Open, plain_text, show
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import JOULES_PER_KWH
from leam_mm.languages import GERMAN_LANGUAGE_NAMES, LANGUAGE_NAMES
from leam_mm.report.report_number import figures, in_unit

GERMAN = {
    "not measured": "nicht gemessen",
    "not stated": "nicht angegeben",
    "not given": "nicht angegeben",
    "not counted": "nicht gezählt",
    "none": "keine",
    "yes": "ja",
    "no": "nein",
    "to": "bis",
    "estimated from processor time": "aus der Prozessorzeit geschätzt",
    "measured in {} of the time": "in {} der Zeit gemessen",
    "for {} of the energy": "für {} der Energie",
    "location-based {} g/kWh": "standortbasiert {} g/kWh",
    "market-based {} g/kWh": "marktbasiert {} g/kWh",
    "without cooling and losses (no PUE given)": "ohne Kühlung und Verluste (kein PUE angegeben)",
    "source": "Quelle",
    "encoder": "Encoder",
    "generator": "Generator",
    "latent codec": "latenter Codec",
    "text encoder": "Textencoder",
    "estimate": "Schätzung",
    "(empty)": "(leer)",
    "made from": "erzeugt aus",
    "node": "Knoten",
    "module": "Modul",
    "gpu": "GPU",
    "gpu share": "Anteil der GPU",
    "cpu": "CPU",
    "a counter": "ein Zähler",
    "not trained here": "hier nicht trainiert",
}
SMALLEST = 1e-5  # share
PARTS = {"clip": "encoder", "generator": "generator", "codec": "latent codec", "text_encoder": "text encoder"}


def word(text: str, language: str) -> str:
    """Return a fixed word or phrase in a language; an unknown one stays as it is."""
    return GERMAN.get(text, text) if language == "de" else text


def part_name(kind: str, language: str) -> str:
    """Return the name of a part of the release."""
    return word(PARTS.get(kind, kind), language)


def language_name(code: str, language: str) -> str:
    """Return the name of an official EU language in a language."""
    return (GERMAN_LANGUAGE_NAMES if language == "de" else LANGUAGE_NAMES)[code]


def count(number: object, language: str) -> str:
    """Return a whole number with separated thousands; "not measured" for anything else."""
    known = isinstance(number, int) and not isinstance(number, bool)
    return figures(f"{number:,}", language) if known else word("not measured", language)


def scientific(number: float | None, language: str) -> str:
    """Return a number with two significant digits and a power of ten; "not counted" for None."""
    return word("not counted", language) if number is None else figures(f"{number:.1e}", language)


def percent(share: float, language: str) -> str:
    """Return a share in percent with two significant digits; a tiny one as a bound."""
    if 0 < share < SMALLEST:
        return f"< {figures(f'{100 * SMALLEST:g}', language)} %"
    return figures(f"{100 * share:.2g}", language) + " %"


def open_field(name: str, language: str) -> str:
    """Return what stands in a document for a field that the publisher left open."""
    return show(Open("open", name), language)


def stated(publisher: PublisherFields, name: str, language: str) -> str:
    """Return a field of the publisher, harmless in Markdown, or that it is open.

    Args:
        publisher: What the publisher states.
        name: Name of the field.
        language: Of the document.
    """
    value = getattr(publisher, name)
    if isinstance(value, bool):
        return word("yes" if value else "no", language)
    if isinstance(value, Mapping):
        return "; ".join(f"{plain_text(key)}: {plain_text(text)}" for key, text in value.items())
    entries = publisher.text(name, language)
    return ", ".join(map(plain_text, entries)) if entries else open_field(name, language)


def value(metric: Mapping[str, Any], language: str) -> str:
    """Return the value of a metric in its unit."""
    if metric.get("value") is None:
        return word("not measured", language)
    return figures(in_unit(float(metric["value"]), str(metric.get("unit") or "")), language)


def interval(metric: Mapping[str, Any], language: str) -> str:
    """Return the 95 % interval of a metric."""
    if metric.get("low") is None or metric.get("high") is None:
        return word("none", language)
    unit = str(metric.get("unit") or "")
    low, high = (figures(in_unit(float(metric[end]), unit), language) for end in ("low", "high"))
    return f"{low} {word('to', language)} {high}"


def duration(seconds: float | None, language: str) -> str:
    """Return a time in seconds or hours."""
    if seconds is None:
        return word("not measured", language)
    return figures(f"{seconds:.1f}" if seconds < 600 else f"{seconds / 3600:.2f}", language) + (
        " s" if seconds < 600 else " h"
    )


def energy(record: Mapping[str, Any] | None, language: str) -> str:
    """Return the energy of a stage with what it covers; estimates and gaps are named."""
    record = record or {}
    if record.get("joules") is not None:
        words = figures(f"{record['joules'] / JOULES_PER_KWH:.4g}", language)
        words += f" kWh ({word(str(record.get('coverage', 'not measured')), language)})"
        measured, whole = record.get("measured_node_seconds", 0), record.get("node_seconds", 0)
        if measured < 0.999 * whole:
            words += ", " + word("measured in {} of the time", language).format(f"{measured / whole:.0%}")
        return words
    if record.get("estimated_joules") is not None:
        estimate = figures(f"{record['estimated_joules'] / JOULES_PER_KWH:.4g}", language)
        return f"{estimate} kWh, {word('estimated from processor time', language)}"
    return word("not measured", language)


def grams(amount: float, language: str) -> str:
    """Return a mass of CO2 equivalents in g, kg or t."""
    size, unit = next(((size, unit) for size, unit in ((1e6, "t"), (1e3, "kg")) if amount >= size), (1.0, "g"))
    return f"{figures(f'{amount / size:,.3g}', language)} {unit} CO2e"


def emissions(record: Mapping[str, Any] | None, kind: str, language: str) -> str:
    """Return the emissions of a measured energy, "not given" without a factor, "not measured" without an energy.

    Args:
        record: The energy record of a stage.
        kind: location or market.
        language: Of the document.
    """
    record = record or {}
    amount, behind, joules = (record.get(key) for key in (f"{kind}_grams", f"{kind}_joules", "joules"))
    if amount is None:
        factor = record.get("grams_per_kwh" if kind == "location" else f"{kind}_grams_per_kwh")
        return word("not given" if factor is None else "not measured", language)
    part = ""
    if behind is not None and joules and behind < 0.999 * joules:
        part = ", " + word("for {} of the energy", language).format(f"{behind / joules:.0%}")
    return grams(amount, language) + part


def emission_factors(record: Mapping[str, Any] | None, language: str) -> str:
    """Return the factors behind the emissions: g/kWh of both kinds, the overhead of the site, and their source."""
    record = record or {}
    names = (("location-based {} g/kWh", "grams_per_kwh"), ("market-based {} g/kWh", "market_grams_per_kwh"))
    words = [
        word(phrase, language).format(figures(f"{record[name]:g}", language))
        for phrase, name in names
        if record.get(name) is not None
    ]
    if not words:
        return word("not given", language)
    pue = record.get("pue")
    without = word("without cooling and losses (no PUE given)", language)
    words.append(f"PUE {figures(f'{pue:g}', language)}" if pue is not None else without)
    origin = record.get("carbon_source") or word("not given", language)
    return "; ".join([*words, f"{word('source', language)}: {origin}"])

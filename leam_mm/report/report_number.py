"""Numbers and names as the report writes them: units, intervals, languages, and "not measured"."""

from typing import Any, TypeGuard

from markupsafe import Markup

from leam_mm.languages import LANGUAGE_NAMES

Row = dict[str, Any]  # one line of results.jsonl
NOT_MEASURED, NOT_GIVEN = "not measured", "not given"
MISSING = Markup('<span class="missing">not measured</span>')
LARGEST = 1e100  # beyond it, nothing was measured: the file was edited


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not abs(value) > LARGEST


def number(row: Row) -> str:
    """Return the value in its unit, or "not measured"."""
    value = row.get("value")
    return in_unit(float(value), str(row.get("unit", ""))) if _is_number(value) else MISSING


def interval(row: Row) -> str:
    """Return both ends of the interval in the unit of the value, or nothing where there is no interval."""
    low, high, unit = row.get("low"), row.get("high"), str(row.get("unit", ""))
    if not _is_number(low) or not _is_number(high):
        return ""
    return f"{in_unit(float(low), unit).removesuffix(' %')} to {in_unit(float(high), unit)}"


def duration(seconds: object) -> str:
    """Return seconds as seconds, minutes or hours; "not measured" for anything but a number."""
    if not _is_number(seconds):
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def energy(joules: object) -> str:
    """Return joules as Wh or kWh; "not measured" for anything but a number."""
    if not _is_number(joules):
        return MISSING
    return f"{joules / 3600:.3g} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:,.3g} kWh"


def carbon(record: Row, kind: str) -> str:
    """Return the emissions of a measured energy, "not given" without a factor, "not measured" without an energy.

    Args:
        record: What ``CarbonFactors.emitted`` returns, with ``joules``.
        kind: location or market.
    """
    grams, behind, joules = (record.get(key) for key in (f"{kind}_grams", f"{kind}_joules", "joules"))
    if not _is_number(grams):
        factor = record.get("grams_per_kwh" if kind == "location" else f"{kind}_grams_per_kwh")
        return NOT_MEASURED if _is_number(factor) else NOT_GIVEN
    part = ""
    if _is_number(behind) and _is_number(joules) and behind < 0.999 * joules:
        part = f", for {behind / joules:.0%} of the energy"
    steps = ((1.0, "g"), (1e3, "kg"), (1e6, "t"))
    size, unit = next((step for step in reversed(steps) if grams >= step[0]), steps[0])
    return f"{grams / size:,.3g} {unit} CO2e{part}"


def carbon_factors(record: Row) -> str:
    """Return the factors behind the emissions: g/kWh of both kinds, the overhead of the site, and their source."""
    names = (("location", "grams_per_kwh"), ("market", "market_grams_per_kwh"))
    words = [f"{kind}-based {record[name]:g} g/kWh" for kind, name in names if _is_number(record.get(name))]
    if not words:
        return NOT_GIVEN
    pue = record.get("pue")
    words.append(f"PUE {pue:g}" if _is_number(pue) else "without cooling and losses (no PUE given)")
    return "; ".join([*words, f"source: {record.get('carbon_source') or NOT_GIVEN}"])


def in_unit(value: float, unit: str) -> str:
    """Return fractions as percent, counts with separated thousands, and other values with three digits."""
    if unit in ("fraction", "share"):
        return f"{100 * value:.1f} %"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:.2f}" if unit == "ratio" else f"{value:.3g}" + ("" if unit in ("", "distance") else f" {unit}")


def language(code: str) -> str:
    """Return the English name of a language with its code."""
    known = code in LANGUAGE_NAMES
    return Markup('{}<span class="code">{}</span>').format(LANGUAGE_NAMES.get(code, code), code if known else "")


def plain(name: str) -> str:
    """Return a name without underscores."""
    return name.replace("_", " ")

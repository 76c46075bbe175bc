"""Numbers and names of the report as HTML: units, intervals, languages, and "not measured"."""

from html import escape
from typing import Any

Row = dict[str, Any]
MISSING = '<span class="missing">not measured</span>'
LANGUAGES = {
    "bg": "Bulgarian", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "et": "Estonian", "fi": "Finnish", "fr": "French", "ga": "Irish", "hr": "Croatian", "hu": "Hungarian",
    "it": "Italian", "lt": "Lithuanian", "lv": "Latvian", "mt": "Maltese", "nl": "Dutch", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "sk": "Slovak", "sl": "Slovene", "sv": "Swedish",
}  # fmt: skip


def number(row: Row) -> str:
    """A value in its unit; "not measured" where there is none."""
    value = row.get("value")
    return MISSING if value is None else escape(in_unit(float(value), str(row.get("unit", ""))))


def interval(row: Row) -> str:
    """Low and high end in the unit of the value, empty where there is none."""
    low, high, unit = row.get("low"), row.get("high"), str(row.get("unit", ""))
    if low is None or high is None:
        return ""
    return f"{escape(in_unit(float(low), unit).removesuffix(' %'))} to {escape(in_unit(float(high), unit))}"


def duration(seconds: float) -> str:
    """Seconds in the units that people use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def energy(joules: float) -> str:
    """Joules in the units that people know from their bill."""
    return f"{joules / 3600:.3g} Wh" if joules < 3.6e6 else f"{joules / 3.6e6:,.3g} kWh"


def in_unit(value: float, unit: str) -> str:
    """Percent for fractions, thousands separated for counts, three digits else."""
    if unit in ("fraction", "share"):
        return f"{100 * value:.1f} %"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:.2f}" if unit == "ratio" else f"{value:.3g}" + ("" if unit in ("", "distance") else f" {unit}")


def language(code: str) -> str:
    """English name of a language and its code."""
    return f'{escape(LANGUAGES.get(code, code))}<span class="code">{escape(code) if code in LANGUAGES else ""}</span>'


def plain(name: str) -> str:
    """A name without underscores."""
    return name.replace("_", " ")


def table(columns: list[str], lines: list[str], caption: str = "", kind: str = "", head: str = "") -> str:
    """A table that scrolls sideways where the screen is narrow.

    Args:
        columns: Headings, each plain text or `text|class of the cells`.
        lines: Rows, as HTML.
        caption: Above it, as HTML.
        kind: Class of the table.
        head: A row above the headings, as HTML.
    """
    cells = "".join(
        f'<th scope="col" class="{style}">{label}</th>' for label, _, style in (name.partition("|") for name in columns)
    )
    above = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{kind}">{above}<thead>{head}<tr>{cells}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )

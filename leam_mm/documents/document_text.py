"""Text of documents in English and German: templates, numbers, open fields, and strings of strangers.

A template shows every value by the filter ``show``: numbers in the form of the language, ``Open`` as what is missing,
and strings escaped, so that no caption, licence or domain name becomes markup.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment

from leam_mm.report.templates import environment, markdown_cell

TEMPLATES = Path(__file__).parent / "templates"
MAX_TEXT = 4000  # characters of a string that is shown
NOT_STATED = "not stated"  # how JSON files name an open field
Kind = Literal["open", "not_measured", "not_applicable"]


@dataclass(frozen=True)
class Open:
    """A value that is missing.

    Args:
        kind: ``open`` where a person has to state it, ``not_measured`` where no run recorded it, ``not_applicable``
            where the question does not arise.
        field: Its name in ``release.yaml``, shown as it is; empty where there is none.
    """

    kind: Kind = "open"
    field: str = ""


NOT_MEASURED, NOT_APPLICABLE = Open("not_measured"), Open("not_applicable")


def stated(value: Any, field: str = "") -> Any:
    """Return a value that a person stated, or ``Open``; false is an answer.

    Args:
        value: What was stated; None, empty text and empty lists are open.
        field: Name in ``release.yaml``.
    """
    return Open("open", field) if value is None or (not isinstance(value, bool | int | float) and not value) else value


def measured(value: Any) -> Any:
    """Return a measured value, or ``NOT_MEASURED`` for None."""
    return NOT_MEASURED if value is None else value


@lru_cache
def words(language: str) -> Mapping[str, Any]:
    """Return ``messages`` for missing values, and ``phrases``: fixed English words to those of the language."""
    content: dict[str, Any] = yaml.safe_load((TEMPLATES / language / "words.yaml").read_text("utf-8"))
    return content


def show(value: Any, language: str) -> str:
    """Return a value as Markdown on one line.

    Args:
        value: Text, number, date, truth value, ``Open``, None (not measured), or a list or mapping of these.
        language: en or de.
    """
    messages = words(language)["messages"]
    if value is None:
        value = NOT_MEASURED
    if value == NOT_STATED:
        value = Open()
    if isinstance(value, Open):
        return str(messages[f"{value.kind}_field" if value.field else value.kind]).format(value.field)
    if isinstance(value, bool):
        return str(messages["yes" if value else "no"])
    if isinstance(value, int | float):
        return number(value, language)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return "; ".join(f"{show(key, language)}: {show(each, language)}" for key, each in value.items()) or show(
            "none", language
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(each, language) for each in value) or show("none", language)
    phrase = words(language)["phrases"].get(str(value))
    return str(phrase) if phrase is not None else plain_text(value)


def plain_text(text: object) -> str:
    """Return a text of unknown origin as one harmless line: printable, bounded, without markup."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(text)[: MAX_TEXT + 1])
    cut = printable if len(printable) <= MAX_TEXT else printable[:MAX_TEXT] + "..."
    return markdown_cell(cut).replace("~", "&#126;")


def number(value: float, language: str, digits: int = 3) -> str:
    """Return a count with separated thousands, or another number with a few digits.

    Args:
        value: An int is shown in full; a float with ``digits`` significant digits.
        language: en writes 1,234.5, de 1.234,5.
        digits: Significant digits of a float; from a million on, and below a thousandth, in powers of ten.
    """
    whole = isinstance(value, int) or 10**digits <= abs(value) < 1e6
    text = f"{value:,.0f}" if whole else f"{value:.{digits}g}"
    return text.translate(str.maketrans(",.", ".,")) if language == "de" else text


def power(value: Any, language: str, digits: int = 2) -> str:
    """Return a number in powers of ten, such as 1.2e+20; anything else as ``show`` does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return show(value, language)
    text = f"{value:.{digits - 1}e}"
    return text.replace(".", ",") if language == "de" else text


@lru_cache
def document_environment(language: str) -> Environment:
    """Return the environment for the templates of a language, with the filters ``show``, ``power`` and ``plain``."""
    found = environment(TEMPLATES / language)
    found.filters["show"] = partial(show, language=language)
    found.filters["power"] = partial(power, language=language)
    found.filters["plain"] = plain_text
    return found


def render(template: str, language: str, /, **view: Any) -> str:
    """Fill a template.

    Args:
        template: File name without ``.md.jinja``.
        language: en or de.
        view: What the template shows.

    Returns:
        Markdown that ends with one newline.
    """
    text = document_environment(language).get_template(f"{template}.md.jinja").render(**view)
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def open_fields(view: Any) -> list[Open]:
    """Return each missing value of a view once, in its order."""
    found: dict[Open, None] = {}

    def walk(value: Any) -> None:
        if value is None or value == NOT_STATED:
            found[NOT_MEASURED if value is None else Open()] = None
        elif isinstance(value, Open):
            found[value] = None
        elif isinstance(value, Mapping):
            for each in value.values():
                walk(each)
        elif isinstance(value, list | tuple):
            for each in value:
                walk(each)

    walk(view)
    return list(found)

"""Pages and documents from Jinja2 templates that lie beside the code that fills them.

In ``*.html.jinja`` all text is escaped; only ``Markup``, such as our own SVG charts, is inserted as it is. In
``*.md.jinja`` nothing is escaped automatically: table cells pass a filter. An undefined name is an error.
"""

import html
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from leam_mm.report.report_words import PAGE_LANGUAGES, word

FOLDER = Path(__file__).parent


class Table(NamedTuple):
    """A table of a page; see the macro in table.html.jinja.

    Args:
        columns: Headings, each plain text or ``heading|class of its cells``.
        rows: The cells of each row; the first is the heading of the row.
        caption: Text above the table.
        total: Cells of a last row that is set apart; empty for none.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: object = ""
    total: Sequence[object] = ()

    @property
    def headed(self) -> bool:
        """Whether any column has a heading."""
        return any(not column.startswith("|") for column in self.columns)

    @property
    def wide(self) -> bool:
        """Whether it has too many columns for a phone, which then shows each row as a list."""
        styles = [set(column.partition("|")[2].split()) for column in self.columns]
        shown = [style for style in styles if not style & {"wide-only", "drawn"}]
        return self.headed and len(shown) > (3 if set().union(*shown) & {"what", "wrap", "note"} else 4)


class Figure(NamedTuple):
    """A key figure at the top of a page.

    Args:
        label: What it is.
        value: The number.
        note: A few words below it.
        interval: Its interval, or empty.
        section: Anchor of the section that explains it, or empty.
    """

    label: str
    value: object
    note: object = ""
    interval: str = ""
    section: str = ""


class Section(NamedTuple):
    """A section of a page.

    Args:
        name: Its anchor, and the macro that renders it.
        heading: Its heading.
        content: The argument of the macro. A section with empty content is left out.
    """

    name: str
    heading: str
    content: Any


@lru_cache
def environment(folder: Path) -> Environment:
    """Return the environment for the templates of a folder, to which the shared templates of this folder are added."""
    found = Environment(
        loader=FileSystemLoader([folder, FOLDER]),
        autoescape=lambda name: name is None or not name.endswith(".md.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["cell"] = markdown_cell
    found.filters["tag"] = language_tag
    return found


def language_tag(code: object) -> str:
    """Return a code of a language of unknown origin if it has the form of a tag (BCP 47), else an empty string."""
    return str(code) if re.fullmatch(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,3}", str(code)) else ""


def markdown_cell(text: object) -> str:
    """Return a string of unknown origin, harmless in a Markdown table: no markup, no new cell, no new line."""
    plain = html.escape(" ".join(str(text).split()))
    return "".join(f"&#{ord(letter)};" if letter in "|`*_[]\\" else letter for letter in plain)


def render_page(
    parts: Path,
    title: str,
    introduction: str,
    figures: Sequence[Figure],
    sections: Sequence[Section],
    footer: str,
    language: str = "en",
    others: Sequence[tuple[str, str]] = (),
) -> str:
    """Return a self-contained HTML page, whose content policy forbids it to load anything.

    Args:
        parts: Template with one macro for each section.
        title: Heading of the page.
        introduction: Paragraph below the heading.
        figures: Key figures.
        sections: All sections; empty ones are left out.
        footer: Last line.
        language: Of the page, en or de.
        others: The same page in other languages: code and file name of each.
    """
    template = environment(parts.parent).get_template("page.html.jinja")
    present = [section for section in sections if section.content]
    return template.render(
        parts=parts.name, title=title, introduction=introduction, figures=figures, sections=present, footer=footer,
        language=language, names=PAGE_LANGUAGES, others=[(code, quote(name)) for code, name in others],
        word=lambda text, *values: word(text, language).format(*values) if values else word(text, language),
    )  # fmt: skip

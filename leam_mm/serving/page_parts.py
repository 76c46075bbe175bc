"""Pieces of the page as HTML, in which everything from people and releases is escaped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leam_mm.intervals.indicative import INDICATIVE
from leam_mm.report.report_words import word
from leam_mm.report.templates import environment
from leam_mm.serving.drawing_service import DrawnImage
from leam_mm.serving.encoder_service import Match
from leam_mm.serving.page_texts import NAMES, Texts
from leam_mm.serving.release_documents import Document, ReleaseDocuments
from leam_mm.serving.release_numbers import Number

TEMPLATE = "page_parts.html.jinja"


def _macro(name: str) -> Any:
    return getattr(environment(Path(__file__).parent).get_template(TEMPLATE).module, name)


def header(name: str, texts: Texts) -> str:
    """Return name, notice and choice of the language."""
    return str(_macro("header")(name, texts, NAMES))


def status(text: str, is_fault: bool = False) -> str:
    """Return a line of the status region."""
    return str(_macro("status")(text, is_fault))


def images(found: Sequence[DrawnImage], texts: Texts, edited: bool = False) -> str:
    """Return images, each with its prompt as alternative text, and a visible label."""
    label = texts.ai_edited_label if edited else texts.ai_label
    return str(_macro("images")([_shown(image) for image in found], label, texts, texts.images_heading))


def pairs(columns: Sequence[tuple[str, Sequence[DrawnImage]]], texts: Texts) -> str:
    """Return the images of two releases beside each other."""
    return str(_macro("pairs")([(name, [_shown(image) for image in found]) for name, found in columns], texts))


def labels(found: Sequence[Match], texts: Texts) -> str:
    """Return a table of labels."""
    rows = [(match.text, number(100 * match.value, texts, 1) + " %", f"{match.value:.4f}") for match in found]
    heading = (texts.labels_heading, texts.label, texts.probability)
    return str(_macro("matches")(*heading, rows, texts.labels_note))


def captions(found: Sequence[Match], texts: Texts) -> str:
    """Return a table of captions; a sentence if there are none."""
    rows = [(match.text, number(match.value, texts, 3), f"{max(0.0, match.value):.4f}") for match in found]
    note = texts.captions_note if found else texts.no_captions
    return str(_macro("matches")(texts.captions_heading, texts.caption, texts.similarity, rows, note))


def numbers(names: Sequence[str], rows: Sequence[tuple[str, Number | None, Number | None]], texts: Texts) -> str:
    """Return the table of measured numbers of two releases."""
    cells = [(name, *(_measured(entry, texts) for entry in entries)) for name, *entries in rows]
    return str(_macro("numbers")(names, cells, texts))


def document(documents: ReleaseDocuments, chosen: Document) -> str:
    """Return one document; the card is in English."""
    return str(_macro("document")(Markup(documents.html(chosen.name)), chosen.language or "en"))


def files(documents: ReleaseDocuments, texts: Texts) -> str:
    """Return links to the machine-readable documents."""
    return str(_macro("files")(texts.files, documents.files))


def number(value: float, texts: Texts, digits: int) -> str:
    """Return a number with the decimal sign of the language."""
    text = f"{value:.{digits}f}"
    return text.replace(".", ",") if texts.language == "de" else text


def _measured(entry: Number | None, texts: Texts) -> str:
    if entry is None or entry.value is None:
        return texts.not_measured
    text = number(entry.value, texts, 3)
    if entry.low is not None and entry.high is not None:
        text += f" ({number(entry.low, texts, 3)} – {number(entry.high, texts, 3)})"
    text = text if entry.unit in ("", "fraction") else f"{text} {entry.unit}"
    return f"{text}; {word(INDICATIVE, texts.language)}" if entry.indicative else text


def _shown(image: DrawnImage) -> dict[str, object]:
    token, _, _ = image.name.partition("/")
    return {**vars(image), "file": f"image_{token[:8]}_seed{image.seed}.png"}

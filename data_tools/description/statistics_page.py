"""The statistics as self-contained HTML pages with images, for people, in English and German."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from leam_mm.documents.document_text import NOT_STATED
from leam_mm.report.chart import interval_bar
from leam_mm.report.report_images import SMALL
from leam_mm.report.report_number import figures, language_cell, missing
from leam_mm.report.report_section import columns_of
from leam_mm.report.report_words import word
from leam_mm.report.templates import Figure, Section, Table, render_page

INTRODUCTION = (
    "What is in this data set, where it comes from, on which legal basis it is used, and what was left out and why. "
    "Every number was counted."
)
BY_LANGUAGE = ("languages", "samples_by_language")
MAX_ROWS = 30
MAX_CAPTION = 160  # characters
MAX_CAPTIONS = 60  # of one sample
COUNTERS = {  # headings of a section, and names in statistics.json
    "languages": {
        "Captions by language": "languages",
        "Samples that have a language": "samples_by_language",
        "Captions by source": "caption_sources",
    },
    "rights": {
        "Legal basis": "legal_basis",
        "Licence": "licence",
        "Evidence with the samples": "consent",
        "Fetched by": "crawler",
        "Fetched in": "months",
    },
    "images": {
        "Shorter side in pixels": "sides",
        "Shape": "shapes",
        "Format": "formats",
        "Changed": "transforms",
    },
}


def page(
    statistics: dict[str, Any],
    images: list[dict[str, Any]],
    title: str,
    language: str = "en",
    others: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the page as HTML; the same numbers give the same bytes.

    Args:
        statistics: The content of statistics.json.
        images: The chosen samples; see ``thumbnails``.
        title: Heading of the page.
        language: en or de.
        others: The same page in other languages: code and file name of each.
    """
    key_figures = [
        Figure("samples", number(statistics["samples"], language), size(statistics["image_bytes"], language)),
        Figure(
            "captions",
            number(statistics["captions"], language),
            word("{} words", language).format(number(statistics["words"], language)),
        ),
        Figure("languages", number(len(statistics["languages"]), language)),
        Figure("domains", number(statistics["domain_count"], language)),
        Figure("duplicates removed", number(statistics["duplicates_removed"], language)),
        Figure("withdrawn", number(statistics["accounting"]["withdrawn"], language)),
    ]
    translated = number(sum(statistics["machine_translated"].values()), language)

    def counters(section: str) -> list[tuple[str, Table]]:
        return [
            (word(heading, language), counter_table(statistics[name], language, name in BY_LANGUAGE))
            for heading, name in COUNTERS[section].items()
        ]

    content: dict[str, tuple[str, Any]] = {
        "fate": ("What became of every link", fate(statistics, language)),
        "samples": ("Samples", {"list": [sample(image, language) for image in images]}),
        "languages": ("Languages", {"machine_translated": translated, "counters": counters("languages")}),
        "rights": ("Rights", counters("rights")),
        "domains": ("Domains", domains(statistics, language)),
        "images": ("Images", counters("images")),
        "names": ("Names by content", names(statistics, language)),
    }
    sections = [Section(name, word(heading, language), shown) for name, (heading, shown) in content.items()]
    parts = Path(__file__).with_name("statistics.html.jinja")
    footer = word("Written by leam_mm, data_tools/describe_dataset.py.", language)
    shown = [figure._replace(label=word(figure.label, language)) for figure in key_figures]
    return render_page(parts, title, word(INTRODUCTION, language), shown, sections, footer, language, others)


def fate(statistics: dict[str, Any], language: str) -> dict[str, Any]:
    """Return each stage with its drops, and whether everything adds up."""
    rows = []

    def add(stage: str, what: str, rule: str, count: int, whole: int) -> None:
        bar = interval_bar(count, None, None, max(whole, 1))
        rows.append([stage, word(what, language), rule, number(count, language), bar])

    for stage in statistics["stages"]:
        # A withdrawn sample passed all stages. It is subtracted from the last one, which is compared with the shards.
        gone = stage["withdrawn_later"] if stage is statistics["stages"][-1] else 0
        given = stage["given"]
        add(stage["stage"], "in", "", given, given)
        for rule, count in stage["dropped"].items():
            add("", "dropped", rule, count, given)
        if gone:
            add("", "dropped", word("withdrawn later", language), gone, given)
        add("", "kept", "", stage["kept"] - gone, given)
    accounting = statistics["accounting"]
    totals = {key: number(accounting[key], language) for key in ("links", "dropped", "withdrawn", "kept")}
    columns = columns_of(("stage", "", "rule|wrap", "links|number", "|drawn wide-only"), language)
    return {**totals, "faults": accounting["faults"], "table": Table(columns, rows)}


def sample(image: dict[str, Any], language: str) -> dict[str, Any]:
    """Return an image with its caption in the language of the page, else in English, and with all others."""
    record = image["record"]
    captions = [
        {"text": _shortened(str(caption["text"])), "language": str(caption.get("language"))}
        for caption in record["captions"][:MAX_CAPTIONS]
    ]
    codes = [caption["language"] for caption in captions]
    first = next((codes.index(code) for code in (language, "en") if code in codes), 0)
    source = " · ".join(
        str(record.get(name) or word(NOT_STATED, language)) for name in ("domain", "licence", "legal_basis")
    )
    others = captions if len(captions) > 1 else []
    return {
        **image, "caption": captions[first], "others": others, "count": len(record["captions"]), "source": source,
        "small": max(image["size"]) <= SMALL,
    }  # fmt: skip


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_CAPTION else text[: MAX_CAPTION - 1] + "…"


def domains(statistics: dict[str, Any], language: str) -> dict[str, Any]:
    """Return the largest domains by bytes."""
    largest = statistics["largest_domains"][:MAX_ROWS]
    most = max((entry["bytes"] for entry in largest), default=0)
    rows = [
        [
            entry["domain"],
            number(entry["samples"], language),
            size(entry["bytes"], language),
            interval_bar(entry["bytes"], None, None, most),
        ]
        for entry in largest
    ]
    more = statistics["domain_count"] - len(largest)
    columns = columns_of(("registered domain", "samples|number", "bytes|number", "|drawn wide-only"), language)
    kind = word(statistics["domain_bytes"], language)
    return {"table": Table(columns, rows), "kind": kind, "more": number(more, language) if more else ""}


def names(statistics: dict[str, Any], language: str) -> Table:
    """Return the Merkle roots, by which checkpoints name their data."""
    digest = Markup('<code class="digest">{}</code>')
    rows = [
        [
            entry["name"],
            number(entry["samples"], language),
            number(entry["shards"], language),
            digest.format(entry["merkle_root"]),
        ]
        for entry in statistics["data_sets"]
    ]
    return Table(columns_of(("folder|what", "samples|number", "shards|number", "Merkle root|wrap"), language), rows)


def counter_table(counts: dict[str, int], language: str, of_languages: bool = False) -> Table:
    """Return one counter as a table with bars.

    Args:
        counts: Number by value.
        language: Of the page.
        of_languages: Whether the values are codes of languages.
    """
    most = max(counts.values(), default=0)
    shown = list(counts.items())[:MAX_ROWS]
    rows: list[list[object]] = []
    for name, count in shown:
        label = language_cell(name, language) if of_languages else word(name, language)
        rows.append([label, number(count, language), interval_bar(count, None, None, most)])
    if len(counts) > len(shown):
        rest = sum(list(counts.values())[MAX_ROWS:])
        more = word("{} more", language).format(len(counts) - len(shown))
        rows.append([more, number(rest, language), ""])
    return Table(["|wrap", "|number", "|drawn"], rows)


def number(value: int | None, language: str = "en") -> str:
    """Return a count with separated thousands, or "not measured"."""
    return missing(language) if value is None else f"{value:,}".replace(",", "\u202f")


def size(value: int, language: str = "en") -> str:
    """Return bytes in B, kB, MB or GB."""
    for unit, limit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= limit:
            return figures(f"{value / limit:.3g} {unit}", language)
    return f"{value} B"

"""The statistics as one self-contained HTML page with images, for people."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from leam_mm.documents.document_text import NOT_STATED
from leam_mm.report.chart import interval_bar
from leam_mm.report.report_number import MISSING
from leam_mm.report.templates import Section, Table, render_page

INTRODUCTION = (
    "What is in this data set, where it comes from, on which legal basis it is used, and what was left out and why. "
    "Every number was counted."
)
MAX_ROWS = 30
MAX_CAPTION = 160  # characters


def page(statistics: dict[str, Any], images: list[dict[str, Any]], title: str) -> str:
    """Return the page as HTML; the same numbers give the same bytes.

    Args:
        statistics: The content of statistics.json.
        images: The chosen samples; see ``thumbnails``.
        title: Heading of the page.
    """
    figures = [
        ("samples", number(statistics["samples"]), size(statistics["image_bytes"])),
        ("captions", number(statistics["captions"]), f"{number(statistics['words'])} words"),
        ("languages", number(len(statistics["languages"])), ""),
        ("domains", number(statistics["domain_count"]), ""),
        ("duplicates removed", number(statistics["duplicates_removed"]), ""),
        ("withdrawn", number(statistics["accounting"]["withdrawn"]), ""),
    ]
    translated = number(sum(statistics["machine_translated"].values()))
    languages = {"Captions by language": "languages", "Samples that have a language": "samples_by_language",
                 "Captions by source": "caption_sources"}  # fmt: skip
    rights = {"Legal basis": "legal_basis", "Licence": "licence", "Evidence with the samples": "consent",
              "Fetched by": "crawler", "Fetched in": "months"}  # fmt: skip
    shapes = {"Shorter side in pixels": "sides", "Shape": "shapes", "Format": "formats", "Changed": "transforms"}

    def counters(names: dict[str, str]) -> list[tuple[str, Table]]:
        return [(heading, counter_table(statistics[name])) for heading, name in names.items()]

    sections = [
        Section("fate", "What became of every link", fate(statistics)),
        Section("samples", "Samples", {"list": [sample(image) for image in images]}),
        Section("languages", "Languages", {"machine_translated": translated, "counters": counters(languages)}),
        Section("rights", "Rights", counters(rights)),
        Section("domains", "Domains", domains(statistics)),
        Section("images", "Images", counters(shapes)),
        Section("names", "Names by content", names(statistics)),
    ]
    parts = Path(__file__).with_name("statistics.html.jinja")
    footer = "Written by leam_mm, data_tools/describe_dataset.py."
    return render_page(parts, title, INTRODUCTION, figures, sections, footer)


def fate(statistics: dict[str, Any]) -> dict[str, Any]:
    """Return each stage with its drops, and whether everything adds up."""
    rows = []

    def add(stage: str, what: str, rule: str, count: int, whole: int) -> None:
        rows.append([stage, what, rule, number(count), interval_bar(count, None, None, max(whole, 1))])

    for stage in statistics["stages"]:
        # A withdrawn sample passed all stages. It is subtracted from the last one, which is compared with the shards.
        gone = stage["withdrawn_later"] if stage is statistics["stages"][-1] else 0
        given = stage["given"]
        add(stage["stage"], "in", "", given, given)
        for rule, count in stage["dropped"].items():
            add("", "dropped", rule, count, given)
        if gone:
            add("", "dropped", "withdrawn later", gone, given)
        add("", "kept", "", stage["kept"] - gone, given)
    accounting = statistics["accounting"]
    totals = {key: number(accounting[key]) for key in ("links", "dropped", "withdrawn", "kept")}
    table = Table(["stage", "", "rule", "links|number", "|drawn wide-only"], rows)
    return {**totals, "faults": accounting["faults"], "table": table}


def sample(image: dict[str, Any]) -> dict[str, Any]:
    """Return an image with its first caption, origin and licence."""
    record = image["record"]
    caption = record["captions"][0]
    text = " ".join(str(caption["text"]).split())
    text = text if len(text) <= MAX_CAPTION else text[: MAX_CAPTION - 1] + "…"
    source = " · ".join(str(record.get(name) or NOT_STATED) for name in ("domain", "licence", "legal_basis"))
    return {**image, "text": text, "language": str(caption.get("language")), "source": source}


def domains(statistics: dict[str, Any]) -> dict[str, Any]:
    """Return the largest domains by bytes."""
    largest = statistics["largest_domains"][:MAX_ROWS]
    most = max((entry["bytes"] for entry in largest), default=0)
    rows = [
        [
            entry["domain"],
            number(entry["samples"]),
            size(entry["bytes"]),
            interval_bar(entry["bytes"], None, None, most),
        ]
        for entry in largest
    ]
    more = statistics["domain_count"] - len(largest)
    table = Table(["registered domain", "samples|number", "bytes|number", "|drawn wide-only"], rows)
    return {"table": table, "kind": statistics["domain_bytes"], "more": number(more) if more else ""}


def names(statistics: dict[str, Any]) -> Table:
    """Return the Merkle roots, by which checkpoints name their data."""
    digest = Markup('<code class="digest">{}</code>')
    rows = [
        [entry["name"], number(entry["samples"]), number(entry["shards"]), digest.format(entry["merkle_root"])]
        for entry in statistics["data_sets"]
    ]
    return Table(["folder", "samples|number", "shards|number", "Merkle root"], rows)


def counter_table(counts: dict[str, int]) -> Table:
    """Return one counter as a table with bars."""
    most = max(counts.values(), default=0)
    shown = list(counts.items())[:MAX_ROWS]
    rows: list[list[object]] = [[name, number(n), interval_bar(n, None, None, most)] for name, n in shown]
    if len(counts) > len(shown):
        rest = sum(list(counts.values())[MAX_ROWS:])
        rows.append([f"{len(counts) - len(shown)} more", number(rest), ""])
    return Table(["|wrap", "|number", "|drawn"], rows)


def number(value: int | None) -> str:
    """Return a count with separated thousands, or "not measured"."""
    return MISSING if value is None else f"{value:,}".replace(",", "\u202f")


def size(value: int) -> str:
    """Return bytes in B, kB, MB or GB."""
    for unit, limit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value} B"

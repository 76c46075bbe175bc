"""The statistics as one HTML page with pictures, for people: it needs nothing from outside, and may not ask for it."""

from html import escape
from importlib.resources import files
from typing import Any

from leam_mm.report.chart import interval_bar

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1.4rem 1.1rem; }
.samples figure { margin: 0; }
.samples img { display: block; max-width: 100%; border-radius: 4px; background: var(--soft); }
.samples figcaption { font-size: .8rem; line-height: 1.4; margin-top: .35rem; overflow-wrap: anywhere; }
.samples .source { display: block; font-size: .74rem; }
.flow td:first-child { font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2.5rem; }
.columns .drawn { width: 25%; min-width: 2.5rem; }
.columns tbody th { white-space: normal; overflow-wrap: anywhere; }
"""
MOST_ROWS = 30
LONGEST = 160  # characters of a caption


def page(statistics: dict[str, Any], pictures: list[dict[str, Any]], title: str) -> str:
    """The page.

    Args:
        statistics: What was counted.
        pictures: The chosen samples with their pictures; see ``thumbnails``.
        title: Its heading.

    Returns:
        HTML; the same numbers give the same bytes.
    """
    sections = [
        ("fate", "What became of every link", fate(statistics)),
        ("samples", "Samples", samples(pictures)),
        ("languages", "Languages", languages(statistics)),
        ("rights", "Rights", rights(statistics)),
        ("domains", "Domains", domains(statistics)),
        ("pictures", "Pictures", shapes(statistics)),
        ("names", "Names by content", names(statistics)),
    ]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{text}</section>' for name, heading, text in sections
    )
    style = files("leam_mm.report").joinpath("report.css").read_text(encoding="utf-8") + STYLE
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n'
        f"<header><h1>{escape(title)}</h1><p>What is in this data set, where it comes from, on which legal basis it is "
        "used, and what was left out and why. Every number was counted.</p>"
        f'{figures(statistics)}<nav aria-label="Sections">{links}</nav></header>\n<main>{body}</main>\n'
        "<footer>Written by leam_mm, data_tools/describe_dataset.py.</footer>\n</body>\n</html>\n"
    )


def figures(statistics: dict[str, Any]) -> str:
    """The numbers that everyone asks for first."""
    entries = [
        ("samples", number(statistics["samples"]), size(statistics["image_bytes"])),
        ("captions", number(statistics["captions"]), f"{number(statistics['words'])} words"),
        ("languages", number(len(statistics["languages"])), ""),
        ("domains", number(statistics["domain_count"]), ""),
        ("duplicates removed", number(statistics["duplicates_removed"]), ""),
        ("withdrawn", number(statistics["accounting"]["withdrawn"]), ""),
    ]
    return (
        '<dl class="figures">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in entries)
        + "</dl>"
    )


def fate(statistics: dict[str, Any]) -> str:
    """Each stage with its drops, and whether everything adds up."""
    accounting = statistics["accounting"]
    if not statistics["stages"]:
        return '<p class="missing">No ledger was given: what was left out is not known.</p>'
    told = "".join(f'<p class="missing">{escape(fault)}.</p>' for fault in accounting["faults"])
    if not told:
        told = (
            f"<p>{number(accounting['links'])} links came in. {number(accounting['dropped'])} were dropped, "
            f"{number(accounting['withdrawn'])} were withdrawn later, {number(accounting['kept'])} are in the shards: "
            "every link is counted exactly once.</p>"
        )
    rows = []
    for stage in statistics["stages"]:
        # A withdrawn sample had passed all stages: it is taken off the last one, which the shards are held against.
        gone = stage["withdrawn_later"] if stage is statistics["stages"][-1] else 0
        rows.append(_row(stage["stage"], stage["given"], "", stage["given"], "in"))
        rows += [_row("", count, rule, stage["given"], "dropped") for rule, count in stage["dropped"].items()]
        if gone:
            rows.append(_row("", gone, "withdrawn later", stage["given"], "dropped"))
        rows.append(_row("", stage["kept"] - gone, "", stage["given"], "kept"))
    return told + table("".join(rows), "stage", "", "rule", "#links", "-", kind="flow")


def _row(stage: str, count: int, rule: str, whole: int, what: str) -> str:
    bar = interval_bar(count, None, None, max(whole, 1))
    return (
        f"<tr><td>{escape(stage)}</td><td>{what}</td><td>{escape(rule)}</td>"
        f'<td class="number">{number(count)}</td><td class="drawn wide-only">{bar}</td></tr>'
    )


def samples(pictures: list[dict[str, Any]]) -> str:
    """Pictures with their first caption, origin and licence."""
    found = []
    for picture in pictures:
        record = picture["record"]
        caption = record["captions"][0]
        text = " ".join(str(caption["text"]).split())
        text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        source = " · ".join(str(record.get(name) or "not stated") for name in ("domain", "licence", "legal_basis"))
        width, height = picture["size"]
        found.append(
            f'<figure><img src="{picture["address"]}" width="{width}" height="{height}" '
            f'alt="sample {escape(picture["key"])}">'
            f'<figcaption>{escape(text)} <span class="code">{escape(str(caption.get("language")))}</span>'
            f'<span class="source">{escape(source)}</span></figcaption></figure>'
        )
    note = f'<p class="note">{len(pictures)} samples, drawn by a lot that depends on the data alone.</p>'
    return f'{note}<div class="samples">{"".join(found)}</div>' if found else '<p class="missing">No pictures.</p>'


def languages(statistics: dict[str, Any]) -> str:
    """Captions by language, by source, and how many a machine translated."""
    translated = sum(statistics["machine_translated"].values())
    return (
        f"<p>{number(translated)} captions are machine translated.</p>"
        + '<div class="columns">'
        + counts("Captions by language", statistics["languages"])
        + counts("Samples that have a language", statistics["samples_by_language"])
        + counts("Captions by source", statistics["caption_sources"])
        + "</div>"
    )


def rights(statistics: dict[str, Any]) -> str:
    """Legal bases, licences, and the evidence that lies with the samples."""
    return (
        '<div class="columns">'
        + counts("Legal basis", statistics["legal_basis"])
        + counts("Licence", statistics["licence"])
        + counts("Evidence with the samples", statistics["consent"])
        + counts("Fetched by", statistics["crawler"])
        + counts("Fetched in", statistics["months"])
        + "</div>"
    )


def domains(statistics: dict[str, Any]) -> str:
    """The largest domains by bytes."""
    largest = statistics["largest_domains"][:MOST_ROWS]
    if not largest:
        return "<p>No sample comes from a domain: all were files.</p>"
    most = max(entry["bytes"] for entry in largest)
    rows = "".join(
        f'<tr><th>{escape(entry["domain"])}</th><td class="number">{number(entry["samples"])}</td>'
        f'<td class="number">{size(entry["bytes"])}</td>'
        f'<td class="drawn wide-only">{interval_bar(entry["bytes"], None, None, most)}</td></tr>'
        for entry in largest
    )
    more = statistics["domain_count"] - len(largest)
    rest = f"And {number(more)} more." if more else ""
    note = f'<p class="note">Bytes {escape(statistics["domain_bytes"])}. {rest}</p>'
    return note + table(rows, "registered domain", "#samples", "#bytes", "-")


def shapes(statistics: dict[str, Any]) -> str:
    """Sizes, shapes, formats and what was done to the pictures."""
    return (
        '<div class="columns">'
        + counts("Shorter side in pixels", statistics["sides"])
        + counts("Shape", statistics["shapes"])
        + counts("Format", statistics["formats"])
        + counts("Changed", statistics["transforms"])
        + "</div>"
    )


def names(statistics: dict[str, Any]) -> str:
    """The Merkle roots, by which checkpoints name their data."""
    rows = "".join(
        f'<tr><th>{escape(entry["name"])}</th><td class="number">{number(entry["samples"])}</td>'
        f'<td class="number">{number(entry["shards"])}</td>'
        f'<td><code class="digest">{escape(entry["merkle_root"])}</code></td></tr>'
        for entry in statistics["data_sets"]
    )
    return table(rows, "folder", "#samples", "#shards", "Merkle root")


def table(rows: str, *heads: str, kind: str = "") -> str:
    """A table; heads that begin with ``#`` stand above numbers, ``-`` above bars that small screens leave out."""
    classes = {"#": ' class="number"', "-": ' class="wide-only"'}
    head = "".join(f"<th{classes.get(name[:1], '')}>{escape(name.lstrip('#-'))}</th>" for name in heads)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def counts(heading: str, found: dict[str, int]) -> str:
    """One counter as a table with bars."""
    if not found:
        return f'<div><h3>{escape(heading)}</h3><p class="missing">none</p></div>'
    most = max(found.values())
    shown = list(found.items())[:MOST_ROWS]
    rows = "".join(
        f'<tr><th class="wrap">{escape(name)}</th><td class="number">{number(count)}</td>'
        f'<td class="drawn">{interval_bar(count, None, None, most)}</td></tr>'
        for name, count in shown
    )
    if len(found) > len(shown):
        rest = sum(list(found.values())[MOST_ROWS:])
        rows += f'<tr><th>{len(found) - len(shown)} more</th><td class="number">{number(rest)}</td><td></td></tr>'
    return f'<div><h3>{escape(heading)}</h3><div class="scroll"><table><tbody>{rows}</tbody></table></div></div>'


def number(value: int | None) -> str:
    """A count for reading, or that there is none."""
    return '<span class="missing">not measured</span>' if value is None else f"{value:,}".replace(",", "&#8239;")


def size(value: int) -> str:
    """Bytes for reading."""
    for unit, limit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value} B"

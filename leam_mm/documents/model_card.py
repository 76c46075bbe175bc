"""The model card of a release: measured facts, and what the publisher states, with gaps named.

What was not measured is called "not measured". Strings that come from data or from other people are escaped.
"""

import re
from collections import Counter
from pathlib import Path
from typing import Any

from leam_mm.documents.audits import audit_rows
from leam_mm.documents.card_metadata import front_matter
from leam_mm.documents.compute_thresholds import compute_statement
from leam_mm.documents.document_text import plain_text
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.documents.released_weights import variant_rows, weight_rows
from leam_mm.documents.result_summary import headline_rows, summary_rows, unmeasured_languages
from leam_mm.documents.words import (
    count,
    duration,
    emission_factors,
    emissions,
    energy,
    part_name,
    scientific,
    stated,
    word,
)
from leam_mm.report.recognition_section import sentences
from leam_mm.report.templates import environment

TEMPLATES = environment(Path(__file__).parent / "templates")
LISTED = 5  # licences of a shard folder in the body of the card
SUMMARISED = 12  # metrics without a language in the body of the card
POLICY = "acceptable_use_policy.md"


def model_card(
    facts: ReleaseFacts, publisher: PublisherFields | None = None, language: str = "en", metadata: bool = True
) -> str:
    """Return the model card.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states; None leaves all fields open.
        language: Of the card.
        metadata: Whether it begins with the front matter of the Hub; the card is then the release's README.md.
    """
    publisher = publisher or PublisherFields()
    up = "" if metadata else "../../"
    titles = {"licences": ("licence", "Lizenz"), "legal_bases": ("legal basis", "Rechtsgrundlage")}
    return TEMPLATES.get_template(f"{language}/model_card.md.jinja").render(
        facts=facts,
        publisher=publisher,
        language=language,
        up=up,
        stated=lambda name: stated(publisher, name, language),
        hardware=plain_text(facts.hardware) if facts.hardware and not publisher.hardware_used else "",
        front_matter=front_matter(facts, publisher) if metadata else "",
        parameters=count(facts.parameters, language),
        parts=[_part(stage, language) for stage in facts.stages],
        compute=compute_statement(facts, publisher, language),
        summary=summary_rows(facts.metrics, language),
        others=headline_rows(facts.metrics, language)[:SUMMARISED],
        audits=audit_rows(facts, publisher, language),
        acceptable_use=publisher.acceptable_use_policy or f"[{POLICY}]({up}documents/{language}/{POLICY})",
        recognition=recognition(facts, language),
        unmeasured=unmeasured_languages(facts.measured_languages, language),
        data=[_data_summary(entry, facts, language) for entry in facts.data] + _derived_data(facts, language),
        bases=_bases(facts, language),
        roots=_roots(facts, language),
        counts=[(titles[name][language == "de"], _counts(facts, name, language)) for name in titles],
        weights=weight_rows(facts, language),
        variants=variant_rows(facts, language),
        costs=[_cost(stage, language) for stage in facts.stages],
        emissions=[_emissions(stage, language) for stage in facts.stages],
        changes=[row for stage in facts.stages for row in _changes(stage, language)],
        citation=citation(facts, publisher),
        editing=editing(facts.straight_paths, facts.low_rank) if facts.generates else "",
    )  # fmt: skip


def recognition(facts: ReleaseFacts, language: str) -> str:
    """Return what a fine-tuning taught and what not, on one line; empty for other releases."""
    return " ".join(plain_text(each) for each in sentences({row["name"]: row for row in facts.metrics}, language))


def generator_usage(straight_paths: bool, low_rank: bool, denoiser: str = "PRXDenoiser") -> str:
    """Return the parts of the card that show how to use a generator; see ReleaseFacts for the arguments."""
    macros: Any = TEMPLATES.get_template("quick_start.md.jinja").module
    return f"{macros.generator_code(denoiser)}\n{editing(straight_paths, low_rank)}"


def editing(straight_paths: bool, low_rank: bool) -> str:
    """Return how images are edited with diffusers alone."""
    template = TEMPLATES.get_template("en/image_editing.md.jinja")
    return template.render(straight_paths=straight_paths, low_rank=low_rank)


def citation(facts: ReleaseFacts, publisher: PublisherFields) -> str:
    """Return the BibTeX entry; empty without authors."""
    if not publisher.citation_authors:
        return ""
    year = str(publisher.release_date.year) if publisher.release_date else None
    entries = {
        "title": publisher.citation_title or facts.name,
        "author": " and ".join(publisher.citation_authors),
        "year": year,
        "version": publisher.version,
        "publisher": publisher.provider_name,
        "url": publisher.citation_url or publisher.homepage,
    }
    key = re.sub(r"[^a-z0-9]+", "-", facts.name.rpartition("/")[2].lower()).strip("-") or "release"
    lines = [f"  {name} = {{{_bibtex(text)}}}," for name, text in entries.items() if text]
    return "\n".join([f"@misc{{{key},", *lines, "}"])


def _bibtex(text: str) -> str:
    """Return a text without what BibTeX or Markdown would interpret."""
    plain = "".join(f"\\{letter}" if letter in "&%$#_" else letter for letter in text if letter not in "{}\\`<>")
    return " ".join(plain.split())


def _part(stage: StageFacts, language: str) -> list[str]:
    flops = scientific(stage.flops, language) if stage.trained else word("not trained here", language)
    names = (part_name(stage.kind, language), count(stage.parameters, language), count(stage.samples_seen, language))
    return [*names, flops]


def _bases(facts: ReleaseFacts, language: str) -> list[list[str]]:
    unknown = word("not stated", language)
    return [
        [part_name(stage.kind, language), stage.base.get("name") or stage.base.get("weights", unknown),
         stage.base.get("licence") or unknown, stage.base.get("sha256", unknown)]
        for stage in facts.stages if stage.base
    ]  # fmt: skip


def _data_summary(entry: DataFacts, facts: ReleaseFacts, language: str) -> list[str]:
    readers = [part_name(stage.kind, language) for stage in facts.stages if entry.merkle_root in stage.origins]
    licences, legal_bases = (_largest(counts, language) for counts in (entry.licences, entry.legal_bases))
    return [entry.name, ", ".join(readers), count(entry.samples, language), licences, legal_bases]


def _derived_data(facts: ReleaseFacts, language: str) -> list[list[str]]:
    """Return the rows of folders that were made from others, such as latents; rights are those of their sources."""
    known, rows = {entry.merkle_root: entry for entry in facts.data}, {}
    for stage in facts.stages:
        for root, name in stage.data.items():
            origins = [known[one] for one in stage.sources.get(root, ()) if one in known]
            if root in known or root in rows or not origins:
                continue
            merged = [_merged([getattr(one, field) for one in origins]) for field in ("licences", "legal_bases")]
            number = count(stage.samples.get(root), language)
            counts = [_largest(one, language) for one in merged]
            label = f"{name} ({word('made from', language)} {', '.join(one.name for one in origins)})"
            rows[root] = [label, part_name(stage.kind, language), number, *counts]
    return list(rows.values())


def _merged(counts: list[dict[str, int] | None]) -> dict[str, int] | None:
    """Return the sum of counts; None if any is not known."""
    total: Counter[str] = Counter()
    for one in counts:
        if one is None:
            return None
        total.update(one)
    return dict(total)


def _largest(counts: dict[str, int] | None, language: str) -> str:
    if counts is None:
        return word("not measured", language)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = [f"{name or word('(empty)', language)} {count(number, language)}" for name, number in ordered[:LISTED]]
    return ", ".join([*shown, *(["..."] if len(ordered) > LISTED else [])])


def _roots(facts: ReleaseFacts, language: str) -> list[list[str]]:
    known = {entry.merkle_root: entry for entry in facts.data}
    unknown, rows = word("not measured", language), []
    for stage in facts.stages:
        part = part_name(stage.kind, language)
        for root, name in stage.data.items():
            origins = [known[one].name if one in known else one[:12] for one in stage.sources.get(root, ())]
            number = known[root].samples if root in known else stage.samples.get(root)
            samples = count(number, language)
            rows.append([part, name, root, samples, ", ".join(origins)])
        if not stage.data:
            rows.append([part, *[unknown] * 3, ""])
    return rows


def _counts(facts: ReleaseFacts, name: str, language: str) -> list[list[str]]:
    rows: list[list[str]] = []
    for entry in facts.data:
        counts = getattr(entry, name)
        if counts is None:
            rows.append([entry.name, *[word("not measured", language)] * 2])
            continue
        ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        rows += [[entry.name, text or word("(empty)", language), count(number, language)] for text, number in ordered]
    return rows


def _changes(stage: StageFacts, language: str) -> list[list[str]]:
    part = part_name(stage.kind, language)
    return [
        [part, *(str(change.get(name)) for name in ("key", "from", "to")), count(change.get("samples"), language)]
        for change in stage.changes
    ]


def _cost(stage: StageFacts, language: str) -> list[str]:
    record = stage.energy or {}
    source = word(str(record.get("source", "not measured")), language)
    times = [duration(record.get(name), language) for name in ("seconds", "cpu_seconds")]
    return [part_name(stage.kind, language), energy(record, language), source, *times]


def _emissions(stage: StageFacts, language: str) -> list[str]:
    amounts = [emissions(stage.energy, kind, language) for kind in ("location", "market")]
    return [part_name(stage.kind, language), *amounts, emission_factors(stage.energy, language)]

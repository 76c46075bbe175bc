"""The model card of a release: measured facts only, with the front matter that the Hugging Face Hub reads.

What was not measured is called "not measured". Strings that come from data or from other people are escaped.
"""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import JOULES_PER_KWH, ReleaseFacts, StageFacts
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.report.report_number import carbon, carbon_factors, in_unit
from leam_mm.report.templates import environment

# The Hub knows licences by these names; any other licence is given as license_name.
HUB_LICENCES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "eupl-1.2", "openrail"}
NOT_MEASURED, NOT_STATED = "not measured", "not stated"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_METRICS = {"top1": "accuracy", "top5": "accuracy", "recall": "recall", "fid": "fid"}  # by part of our names
TEMPLATES = environment(Path(__file__).parent / "templates" / "en")


def model_card(facts: ReleaseFacts, publisher: PublisherFields | None = None, language: str = "en") -> str:
    """Return the model card.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states; None leaves all fields open.
        language: Of the card.
    """
    bases = [
        [stage.kind, stage.base.get("name") or stage.base.get("weights", NOT_STATED),
         stage.base.get("licence") or NOT_STATED, stage.base.get("sha256", NOT_STATED)]
        for stage in facts.stages if stage.base
    ]  # fmt: skip
    return TEMPLATES.get_template("model_card.md.jinja").render(
        facts=facts,
        front_matter=front_matter(facts),
        parts=[[stage.kind, f"{stage.parameters:,}", _count(stage.samples_seen)] for stage in facts.stages],
        bases=bases,
        generator_usage=generator_usage(facts.straight_paths, facts.low_rank, facts.denoiser),
        data=_data(facts),
        counts=[("licence", _counts(facts, "licences")), ("legal basis", _counts(facts, "legal_bases"))],
        results=_results(facts),
        unmeasured=[name for code, name in LANGUAGE_NAMES.items() if code not in facts.measured_languages],
        costs=[_cost(stage) for stage in facts.stages],
        emissions=[_emissions(stage) for stage in facts.stages],
        changes=[row for stage in facts.stages for row in _changes(stage)],
    )


def generator_usage(straight_paths: bool, low_rank: bool, denoiser: str = "PRXDenoiser") -> str:
    """Return the part of the card that shows how to use a generator; see ReleaseFacts for the arguments."""
    usage = TEMPLATES.get_template("generator_usage.md.jinja")
    return usage.render(straight_paths=straight_paths, low_rank=low_rank, denoiser=denoiser)


def front_matter(facts: ReleaseFacts) -> str:
    """Return the YAML that the Hub reads."""
    licence = facts.licence.lower()
    names = " ".join(str(metric.get("name", "")).lower() for metric in facts.metrics)
    # The Hub knows a base by owner/name only.
    bases = sorted({name for stage in facts.stages if HUB_NAME.fullmatch(name := stage.base.get("name", ""))})
    drawing = ["diffusers", "text-to-image"] if facts.generates else []
    return ModelCardData(
        license=licence if licence in HUB_LICENCES else "other",
        license_name=None if licence in HUB_LICENCES else facts.licence,
        language=facts.measured_languages or None,
        tags=["leam_mm", "multilingual", *(["open_clip"] if facts.embeds else []), *drawing],
        base_model=bases or None,
        library_name="open_clip" if facts.embeds else "diffusers",
        pipeline_tag="zero-shot-image-classification" if facts.embeds else "text-to-image",
        metrics=sorted({kind for word, kind in HUB_METRICS.items() if word in names}) or None,
    ).to_yaml()


def _data(facts: ReleaseFacts) -> list[list[object]]:
    samples = {entry.merkle_root: f"{entry.samples:,}" for entry in facts.data}
    rows: list[list[object]] = []
    for stage in facts.stages:
        rows += [[stage.kind, name, root, samples.get(root, NOT_MEASURED)] for root, name in stage.data.items()]
        if not stage.data:
            rows.append([stage.kind, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED])
    return rows


def _counts(facts: ReleaseFacts, field_name: str) -> list[list[object]]:
    rows: list[list[object]] = []
    for entry in facts.data:
        counts = getattr(entry, field_name)
        if counts is None:
            rows.append([entry.name, NOT_MEASURED, NOT_MEASURED])
        else:
            ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            rows += [[entry.name, value or "(empty)", f"{count:,}"] for value, count in ordered]
    return rows


def _results(facts: ReleaseFacts) -> list[tuple[str, list[list[object]]]]:
    """One table for each group of languages, and one of all other metrics."""
    groups: dict[str, list[list[object]]] = {}
    for metric in facts.metrics:
        start, _, code = str(metric["name"]).rpartition("/")
        start = start if code in LANGUAGE_NAMES else ""
        name = f"{LANGUAGE_NAMES[code]} ({code})" if start else metric["name"]
        row = [name, _value(metric), _interval(metric), _count(metric.get("samples")), metric.get("note") or ""]
        groups.setdefault(start, []).append(row)
    return [(f"{start}, language" if start else "metric", groups[start]) for start in sorted(groups)]


def _changes(stage: StageFacts) -> list[list[object]]:
    names = ("key", "from", "to")
    return [[stage.kind, *(str(one.get(name)) for name in names), _count(one.get("samples"))] for one in stage.changes]


def _cost(stage: StageFacts) -> list[object]:
    if not (record := stage.energy):
        return [stage.kind, *[NOT_MEASURED] * 4]
    times = [_time(record.get("seconds")), _time(record.get("cpu_seconds"))]
    return [stage.kind, energy_words(record), record.get("source", NOT_MEASURED), *times]


def _emissions(stage: StageFacts) -> list[object]:
    record = stage.energy or {}
    return [stage.kind, carbon(record, "location"), carbon(record, "market"), carbon_factors(record)]


def energy_words(record: dict[str, Any]) -> str:
    """Return the energy of a stage with what it covers; estimates and gaps are named."""
    if record.get("joules") is not None:
        words = f"{record['joules'] / JOULES_PER_KWH:.4g} kWh ({record.get('coverage', NOT_MEASURED)})"
        measured, whole = record.get("measured_node_seconds", 0), record.get("node_seconds", 0)
        if measured < 0.999 * whole:
            words += f", measured in {measured / whole:.0%} of the time"
        return words
    if record.get("estimated_joules") is not None:
        return f"{record['estimated_joules'] / JOULES_PER_KWH:.4g} kWh, estimated from processor time"
    return NOT_MEASURED


def _value(metric: dict[str, Any]) -> str:
    return NOT_MEASURED if metric.get("value") is None else in_unit(float(metric["value"]), str(metric.get("unit", "")))


def _interval(metric: dict[str, Any]) -> str:
    if metric.get("low") is None or metric.get("high") is None:
        return "none"
    low, high = (in_unit(float(metric[end]), str(metric.get("unit", ""))) for end in ("low", "high"))
    return f"{low} to {high}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return NOT_MEASURED
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else NOT_MEASURED

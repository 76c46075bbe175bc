"""The Model Documentation Form of the General-Purpose AI Code of Practice (10 July 2025, Transparency, Measure 1.1).

Recipients of each item follow Annexes XI (AI Office, national authorities) and XII (downstream providers) of Regulation
(EU) 2024/1689; where the form asks for a number and for a range, both are given with their recipients.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leam_mm.documents.compute_thresholds import compute_statement
from leam_mm.documents.document_text import NOT_MEASURED, Open, measured, render, stated
from leam_mm.documents.inference_flops import inference_flops
from leam_mm.documents.openness import LICENCE_FILE, OPEN_LICENCES
from leam_mm.documents.public_summary import answer, dependencies, named_languages, summary_view
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import CODEC, JOULES_PER_KWH, ReleaseFacts, StageFacts
from leam_mm.documents.training_summary import ILLEGAL, PERSONAL, recorded_drops

# Ranges of the form for the number of parameters; the last has no upper end.
SIZES = (
    *((5e8, "1-500M"), (5e9, "500M-5B"), (1.5e10, "5B-15B"), (5e10, "15B-50B"), (1e11, "50B-100B")),
    *((5e11, "100B-500B"), (1e12, "500B-1T"), (math.inf, ">1T")),
)
ASSETS = {"configs", "documents", "results.jsonl", "onnx"}  # of a release, beside the weights
MONTH = 30.44 * 86400  # seconds
TIMES = ((1, "less than 1 month"), (3, "1-3 months"), (6, "3-6 months"), (math.inf, "more than 6 months"))
SOURCES = {  # section of the public summary -> category of the form
    "2.3": "web crawling",
    "2.2.1": "private, licensed",
    "2.2.2": "private, other third parties",
    "2.1": "publicly available",
    "2.5": "synthetic, not public",
    "2.6": "other",
}


def size_range(parameters: int) -> str:
    """Return the range of the form for a number of parameters."""
    return "<1M" if parameters < 1e6 else next(name for limit, name in SIZES if parameters < limit)


def time_range(seconds: float | None) -> Any:
    """Return the range of the form for a training time."""
    if seconds is None:
        return NOT_MEASURED
    return next(name for limit, name in TIMES if seconds / MONTH < limit)


def approximate(count: int) -> int:
    """Return a count with one significant digit."""
    return round(count, -int(math.log10(count))) if count > 0 else count


def form_view(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return everything that the template shows, by the names of the form's items."""

    def given(name: str) -> Any:
        return answer(publisher, name, language)

    statistics = facts.content.statistics if facts.content is not None else None
    points: dict[str, int] = (
        {"images": statistics["samples"], "captions": statistics["captions"]} if statistics is not None else {}
    )
    compute = compute_statement(facts, publisher, language).total
    about = {
        "last_updated": stated(publisher.release_date, "release_date"),
        "document_version": given("version"),
        "legal_name": given("provider_name"),
        "model_name": [facts.name, *([publisher.version] if publisher.version else [])],
        "authenticity": {path: digest for path, digest in facts.files.items() if path.endswith(".safetensors")}
        or Open("not_measured"),
        "release_date": stated(publisher.release_date, "release_date"),
        "union_release_date": stated(publisher.eu_placement_date, "eu_placement_date"),
        "dependencies": [base["name"] for base in dependencies(facts, publisher)] or "N/A",
        "architecture": {stage.kind: architecture(stage) for stage in facts.stages},
        "design": given("model_design"),
        "inputs": _inputs(facts),
        "outputs": _outputs(facts),
        "size": facts.parameters,
        "size_range": size_range(facts.parameters),
        "channels": given("distribution"),
        "channels_downstream": given("distribution"),
        "licence": facts.licence,
        "licence_link": publisher.licence_link
        or (LICENCE_FILE if LICENCE_FILE in facts.files else given("licence_link")),
        "licence_category": "free and open-source" if facts.licence in OPEN_LICENCES["data"] else Open(),
        "assets": [*sorted({path.partition("/")[0] for path in facts.files} & ASSETS), facts.licence],
        "use_policy": publisher.acceptable_use_policy or "acceptable_use_policy.md",
        "intended_uses": given("intended_uses"),
        "prohibited_uses": given("out_of_scope_uses"),
        "system_types": given("system_types"),
        "technical_means": list(facts.formats),
        "hardware": given("required_hardware"),
        "software": _versions(facts.stages),
        "training_design": given("training_design"),
        "rationale": given("decision_rationale"),
    }
    data = {
        "data_type": ["image", "text"],
        "data_provenance": _provenance(facts, publisher, language),
        "data_selection": given("data_description"),
        "data_points": points or NOT_MEASURED,
        "data_points_approximate": {name: approximate(count) for name, count in points.items()} or NOT_MEASURED,
        "data_scope": NOT_MEASURED
        if statistics is None
        else {
            "captions": named_languages(statistics["languages"], language),
            "licences": dict(statistics["licence"]),
        },
        "data_curation": _curation(statistics),
        "data_testing": {"results": len(facts.metrics)} if facts.metrics else NOT_MEASURED,
        "unsuitability": [given("illegal_content_measures"), given("personal_data_measures")],
        "unsuitable": measured(recorded_drops(statistics, *ILLEGAL, *PERSONAL) if statistics else None),
        "biases": [given("bias_measures"), *_audits(facts)],
    }
    cost = {
        "training_time": {"hours": facts.seconds / 3600} if facts.seconds is not None else NOT_MEASURED,
        "hardware_time": _hardware_days(facts.stages),
        "training_time_range": time_range(facts.seconds),
        "training_hardware": publisher.hardware_used or facts.hardware or given("hardware_used"),
        "compute": measured(compute),
        "compute_magnitude": 10.0 ** math.floor(math.log10(compute)) if compute else NOT_MEASURED,
        "compute_notes": NOT_MEASURED
        if compute is None
        else list(dict.fromkeys(note for stage in facts.stages for note in stage.flops_notes)),
        "energy": facts.joules / JOULES_PER_KWH / 1000 if facts.joules is not None else NOT_MEASURED,
        "energy_coverage": {stage.kind: _coverage(stage) for stage in facts.stages if stage.trained},
        "energy_source": sorted(
            {str(record["source"]) for stage in facts.stages if (record := stage.energy or {}).get("source")}
        ),
        "inference": inference_flops(facts),
        "stages": [_stage(stage) for stage in facts.stages],
    }
    return {"name": facts.name, "f": about | data | cost}


def documentation_form(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the Model Documentation Form as Markdown.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: en or de.
    """
    return render("documentation_form", language, **form_view(facts, publisher, language))


def architecture(stage: StageFacts) -> Any:
    """Return the classes of a network, as its settings name them."""
    settings = _arguments(stage.recipe.get("model"))
    names = [_class(settings.get(part)) for part in ("encoder", "denoiser", "codec", "autoencoder")]
    return [name for name in names if name] or measured(stage.base.get("name") or stage.base.get("weights"))


def _arguments(section: Any) -> Mapping[str, Any]:
    found = section.get("init_args") if isinstance(section, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _class(section: Any) -> str:
    """Return the last part of a class's dotted path."""
    return str(section.get("class_path", "")).rpartition(".")[2] if isinstance(section, Mapping) else ""


def _stage(stage: StageFacts) -> dict[str, Any]:
    settings = _arguments(stage.recipe.get("model"))
    objective = _class(settings.get("loss")) or _class(settings.get("process"))
    if not objective and stage.kind == CODEC and stage.recipe:
        objective = "reconstruction"
    return {
        "part": stage.kind,
        "objective": measured(objective or None),
        "optimizer": measured(_class(settings.get("optimizer")) or None),
        "samples_seen": stage.samples_seen,
        "changes": len(stage.changes),
    }


def _inputs(facts: ReleaseFacts) -> dict[str, Any]:
    text = {"text": {"tokens": facts.context_length}}
    sizes = {f"{size} x {size}": None for size in (facts.image_size, facts.generated_size) if size}
    return text | ({"image": {"pixels": list(sizes)}} if facts.embeds else {})


def _outputs(facts: ReleaseFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    stage = facts.stage("clip")
    if facts.embeds and stage is not None:
        encoder = _arguments(_arguments(stage.recipe.get("model")).get("encoder"))
        found["other"] = {"embedding": measured(encoder.get("embed_dim"))}
    if facts.generates:
        found["image"] = {"pixels": f"{facts.generated_size} x {facts.generated_size}"}
    return found


def _versions(stages: Sequence[StageFacts]) -> Any:
    found: dict[str, list[str]] = {}
    for stage in stages:
        for library, number in stage.versions.items():
            if number not in found.setdefault(library, []):
                found[library].append(number)
    return found or NOT_MEASURED


def _provenance(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> Any:
    if facts.content is None:
        return NOT_MEASURED
    summary = summary_view(facts, publisher, language)["s"]
    return {name: summary[section]["samples"] for section, name in SOURCES.items() if summary[section]["samples"]}


def _curation(statistics: Mapping[str, Any] | None) -> Any:
    if statistics is None or not (statistics["stages"] or statistics["transforms"]):
        return NOT_MEASURED
    dropped: Counter[str] = Counter()
    for stage in statistics["stages"]:
        dropped.update(stage["dropped"])
    return dict(dropped) | dict(statistics["transforms"])


def _audits(facts: ReleaseFacts) -> list[str]:
    return sorted({str(row["name"]) for row in facts.metrics if str(row["name"]).startswith("audit")})


def _hardware_days(stages: Sequence[StageFacts]) -> Any:
    seconds = [(stage.energy or {}).get("node_seconds") for stage in stages if stage.trained]
    known = [value for value in seconds if value is not None]
    return {"node days": sum(known) / 86400} if known and len(known) == len(seconds) else NOT_MEASURED


def _coverage(stage: StageFacts) -> Any:
    record = stage.energy or {}
    whole, part = record.get("node_seconds"), record.get("measured_node_seconds")
    if stage.joules is None or not whole or part is None:
        return NOT_MEASURED
    return [str(record.get("coverage") or ""), {"share of the time": round(part / whole, 3)}]

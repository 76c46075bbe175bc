"""Contradictions between recorded facts: results, energy and emissions, samples, sizes, data, licences of bases."""

from collections.abc import Iterator, Mapping
from typing import Any

from leam_mm.documents.changed_statements import Contradiction
from leam_mm.documents.facts_file import EVIDENCE_FILE
from leam_mm.documents.release_facts import JOULES_PER_KWH, ReleaseFacts, StageFacts

RESULTS = "results.jsonl"
TOLERANCE = 0.01  # relative, of sums of rounded numbers
# Parts of the names of licences, by how much they forbid; the first that matches counts.
RESTRICTED = ("-nc", "-nd", "noncommercial", "non-commercial", "research", "openrail", "proprietary", "llama", "gemma")
SHARE_ALIKE = ("-sa", "gpl", "eupl", "mpl", "odbl")
PERMISSIVE = ("apache", "mit", "bsd", "isc", "cc0", "cc-by", "unlicense", "cdla-permissive")


def licence_strictness(licence: str) -> int | None:
    """Return 0 for a permissive licence, 1 for share-alike, 2 for one that forbids uses, None for an unknown one."""
    name = licence.lower().replace(" ", "-")
    for level, parts in ((2, RESTRICTED), (1, SHARE_ALIKE), (0, PERMISSIVE)):
        if any(part in name for part in parts):
            return level
    return None


def fact_contradictions(facts: ReleaseFacts) -> list[Contradiction]:
    """Return what contradicts within the facts of a release."""
    found = [*_results(facts), *_data(facts)]
    for stage in facts.stages:
        found += [*_energy(stage), *_run(stage), *_base(stage, facts)]
    return found


def _results(facts: ReleaseFacts) -> Iterator[Contradiction]:
    digests = {stage.kind: stage.checkpoint_sha256 for stage in facts.stages}
    for row in facts.metrics:
        name, value, low, high = (row.get(key) for key in ("name", "value", "low", "high"))
        if value is None:
            continue
        if row.get("unit") == "fraction" and not 0 <= value <= 1:
            yield Contradiction(RESULTS, str(name), f"is {value:g}, but a fraction is between 0 and 1")
        if low is not None and high is not None and not low - 1e-9 <= high:
            yield Contradiction(RESULTS, str(name), f"has an interval from {low:g} to {high:g}")
        if row.get("samples") == 0:
            yield Contradiction(RESULTS, str(name), f"is {value:g}, measured on no sample")
        for kind, entry in (row.get("checkpoints") or {}).items():
            digest = entry.get("sha256") if isinstance(entry, Mapping) else None
            if digest is not None and kind in digests and digest != digests[kind]:
                text = f"was measured on the {kind} {digest[:12]}, but {digests[kind][:12]} is released"
                yield Contradiction(RESULTS, str(name), text)


def _data(facts: ReleaseFacts) -> Iterator[Contradiction]:
    read = {root for stage in facts.stages for root in stage.origins}
    for entry in facts.data:
        where = f"data {entry.name}"
        if entry.merkle_root not in read:
            text = f"has the Merkle root {entry.merkle_root[:12]}, which no part was trained on"
            yield Contradiction(EVIDENCE_FILE, where, text)
        for field in ("licences", "legal_bases"):
            counts = getattr(entry, field)
            if counts is not None and sum(counts.values()) != entry.samples:
                text = f"{field} add up to {sum(counts.values()):,} samples, not to {entry.samples:,}"
                yield Contradiction(EVIDENCE_FILE, where, text)
        for stage in facts.stages:
            if stage.samples.get(entry.merkle_root, entry.samples) != entry.samples:
                text = f"has {entry.samples:,} samples, but {stage.samples[entry.merkle_root]:,} for the {stage.kind}"
                yield Contradiction(EVIDENCE_FILE, where, text)


def _energy(stage: StageFacts) -> Iterator[Contradiction]:
    record = stage.energy or {}

    def fault(field: str, text: str) -> Contradiction:
        return Contradiction(EVIDENCE_FILE, f"stages.{stage.kind}.energy.{field}", text)

    joules, samples = record.get("joules"), record.get("samples")
    measured, whole = record.get("measured_node_seconds"), record.get("node_seconds")
    if joules is not None and record.get("source") == "not measured":
        yield fault("source", f"is 'not measured', but {joules:g} J are stated")
    if None not in (measured, whole) and measured > whole * (1 + TOLERANCE):  # type: ignore[operator]
        yield fault("measured_node_seconds", f"is {measured:g}, more than the run's {whole:g}")
    if samples and stage.samples_seen is not None and samples > stage.samples_seen:
        yield fault("samples", f"is {samples:,}, but the run saw {stage.samples_seen:,}")
    for kind, factor_name in (("location", "grams_per_kwh"), ("market", "market_grams_per_kwh")):
        grams, behind = record.get(f"{kind}_grams"), record.get(f"{kind}_joules")
        if grams is None:
            continue
        if joules is None:
            yield fault(f"{kind}_grams", f"is {grams:g} g, but no energy was measured")
            continue
        factor = record.get(factor_name)
        if factor is None or behind is None:
            yield fault(f"{kind}_grams", f"is {grams:g} g without a factor of the grid")
            continue
        expected = behind / JOULES_PER_KWH * factor * (record.get("pue") or 1.0)
        if abs(grams - expected) > TOLERANCE * max(expected, 1e-9) and not stage.changes:
            energy = behind / JOULES_PER_KWH
            text = f"is {grams:g} g, but {energy:g} kWh at {factor:g} g/kWh are {expected:g} g"
            yield fault(f"{kind}_grams", text)
        if behind > joules * (1 + TOLERANCE):
            yield fault(f"{kind}_joules", f"is {behind:g} J, more than the {joules:g} J that were measured")


def _run(stage: StageFacts) -> Iterator[Contradiction]:
    where = f"configs/{stage.kind}.yaml"
    planned = stage.recipe.get("max_samples")
    batch = _nested(stage.recipe, "data", "init_args", "batch_size") or 0
    if isinstance(planned, int) and stage.samples_seen is not None and stage.samples_seen > planned + batch:
        yield Contradiction(where, "max_samples", f"is {planned:,}, but the run saw {stage.samples_seen:,} samples")
    if stage.flops is not None and stage.samples_seen:
        # Every trained parameter takes part in at least one multiplication of a sample, and in few thousand times more.
        per_sample = stage.flops / stage.samples_seen / max(stage.parameters, 1)
        if not 1e-3 < per_sample < 1e7:
            text = f"is {stage.flops:.1e} for {stage.samples_seen:,} samples and {stage.parameters:,} parameters"
            yield Contradiction(EVIDENCE_FILE, f"stages.{stage.kind}.flops", text)


def _base(stage: StageFacts, facts: ReleaseFacts) -> Iterator[Contradiction]:
    base = stage.base.get("licence")
    if not base:
        return
    own, other = licence_strictness(facts.licence), licence_strictness(base)
    if own is not None and other is not None and other > own:
        name = stage.base.get("name") or stage.base.get("weights", "its base")
        text = f"is {facts.licence}, but the {stage.kind} started from {name} under the stricter licence {base}"
        yield Contradiction(EVIDENCE_FILE, "licence", text)


def _nested(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record

"""The bill of materials of a release as CycloneDX 1.7 JSON: models, files with digests, data, results, energy.

Specification: cyclonedx.org/schema/bom-1.7.schema.json (ECMA-424). One component for each part of the release; results
are its performance metrics, and energy stands only where a run measured it.
"""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from leam_mm.documents.bom_declarations import declarations
from leam_mm.documents.documentation_form import architecture
from leam_mm.documents.openness import CODE, CONTENT
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import JOULES_PER_KWH, ReleaseFacts, StageFacts
from leam_mm.languages import LANGUAGE_NAMES

# Beginnings of the paths of each part's weights in a release.
WEIGHTS = {
    "clip": ("open_clip_model", "model.safetensors", "clip/"),
    "generator": ("transformer/", "unet/", "text_encoder", "generator_lora/", "generator/"),
    "codec": ("vae/", "generator/vae/"),
}
TASKS = {"clip": "image-text embedding", "generator": "text-to-image generation", "codec": "image compression"}
FAMILIES = {
    "clip": "dual encoder",
    "generator": "latent diffusion",
    "codec": "autoencoder",
    "text_encoder": "transformer",
}
SPDX = CODE | CONTENT
NAMESPACE = uuid.UUID("6b1f0f4e-6f0b-5a3e-9f83-4a4d6f9d3c51")  # of the serial numbers, which follow from the content


def ml_bom(facts: ReleaseFacts, publisher: PublisherFields, language: str = "en") -> str:
    """Return the bill of materials as JSON; the same release gives the same bytes.

    Args:
        facts: What was measured and recorded.
        publisher: What the publisher states.
        language: Of the publisher's texts.
    """
    parts = [_part(stage, facts, publisher, language) for stage in facts.stages]
    main = "release"
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": main,
        "name": facts.name,
        "version": publisher.version,
        "supplier": _organisation(publisher),
        "licenses": _licences(facts.licence),
        "externalReferences": _references(publisher),
    }
    bom: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "timestamp": f"{publisher.release_date.isoformat()}T00:00:00Z" if publisher.release_date else None,
            "tools": {"components": [{"type": "application", "name": "leam_mm"}]},
            "supplier": _organisation(publisher),
            "component": component,
        },
        "components": [*parts, *(_library(name, numbers) for name, numbers in sorted(_libraries(facts).items()))],
        **declarations(facts, publisher, main),
        "dependencies": [
            {"ref": main, "dependsOn": [part["bom-ref"] for part in parts]},
            *({"ref": part["bom-ref"]} for part in parts),
        ],
    }
    bom = _without_empty(bom)
    serial = uuid.uuid5(NAMESPACE, json.dumps(bom, sort_keys=True))
    return json.dumps({"$schema": bom.pop("$schema"), "bomFormat": bom.pop("bomFormat"),
                       "specVersion": bom.pop("specVersion"), "serialNumber": f"urn:uuid:{serial}", **bom},
                      indent=1, ensure_ascii=False) + "\n"  # fmt: skip


def _part(stage: StageFacts, facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    """Return the component of one training run."""
    files = {path: digest for path, digest in sorted(facts.files.items()) if path.endswith(".safetensors")}
    own = {path: digest for path, digest in files.items() if path.startswith(WEIGHTS.get(stage.kind, ()))}
    if stage.kind == "generator":
        own = {path: digest for path, digest in own.items() if not path.startswith(WEIGHTS["codec"])}
    main = sorted(own, key=lambda path: path.startswith(("text_encoder", "generator_lora")))[:1]
    return {
        "type": "machine-learning-model",
        "bom-ref": f"part:{stage.kind}",
        "name": f"{facts.name} {stage.kind}",
        "version": publisher.version,
        "hashes": [{"alg": "SHA-256", "content": digest} for digest in (own[path] for path in main)],
        "licenses": _licences(facts.licence),
        "pedigree": {"ancestors": [_ancestor(stage)]} if stage.base else None,
        "components": [
            {"type": "file", "bom-ref": f"file:{stage.kind}:{path}", "name": path,
             "hashes": [{"alg": "SHA-256", "content": digest}]}
            for path, digest in own.items()
        ],
        "modelCard": _model_card(stage, facts, publisher, language),
        "properties": [
            {"name": "leam_mm:parameters", "value": str(stage.parameters)},
            {"name": "leam_mm:samples_seen", "value": _text(stage.samples_seen)},
            {"name": "leam_mm:checkpoint_sha256", "value": stage.checkpoint_sha256},
            {"name": "leam_mm:training_flop_estimate", "value": _text(stage.flops)},
        ],
    }  # fmt: skip


def _model_card(stage: StageFacts, facts: ReleaseFacts, publisher: PublisherFields, language: str) -> dict[str, Any]:
    size = facts.image_size if stage.kind == "clip" else facts.generated_size
    image = {"format": f"image, RGB, {size} x {size} pixels" if size else "image, RGB"}
    text = {"format": f"text, at most {facts.context_length} tokens"}
    inputs = {"clip": [image, text], "generator": [text], "codec": [image]}.get(stage.kind, [])
    outputs = {"clip": [{"format": "embedding"}], "generator": [image], "codec": [image]}.get(stage.kind, [])
    names = architecture(stage)
    return {
        "bom-ref": f"card:{stage.kind}",
        "modelParameters": {
            "approach": {"type": "self-supervised"} if stage.trained else None,
            "task": TASKS.get(stage.kind, stage.kind),
            "architectureFamily": FAMILIES.get(stage.kind, stage.kind),
            "modelArchitecture": ", ".join(names) if isinstance(names, list) else None,
            "datasets": [_data_set(stage.kind, root, name, facts, publisher) for root, name in stage.data.items()],
            "inputs": inputs,
            "outputs": outputs,
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                metric for row in facts.metrics if _concerns(row, stage, facts) for metric in _metrics(row)
            ]
        },
        "considerations": {
            "useCases": publisher.text("intended_uses", language),
            "technicalLimitations": publisher.text("known_limits", language),
            "environmentalConsiderations": _environment(stage, publisher),
        },
    }


def _concerns(row: Mapping[str, Any], stage: StageFacts, facts: ReleaseFacts) -> bool:
    """Return whether a result was measured on a part; a result that names no part concerns the first one."""
    tested = {kind for kind, entry in (row.get("checkpoints") or {}).items() if entry}
    return stage.kind in tested or (not tested and stage is facts.stages[0])


def _metrics(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a result as a metric, and one for each of its parts that is a number."""
    start, _, end = str(row["name"]).rpartition("/")
    by_language = bool(start) and end in LANGUAGE_NAMES
    unit = str(row.get("unit") or "")
    kind = f"{start if by_language else row['name']}{f' ({unit})' if unit else ''}"
    bounds = {"lowerBound": row.get("low"), "upperBound": row.get("high")}
    known = {name: repr(float(bound)) for name, bound in bounds.items() if isinstance(bound, int | float)}
    found: dict[str, Any] = {"type": kind, "value": _text(row.get("value"))}
    if by_language:
        found["slice"] = f"language={end}"
    if known:
        found["confidenceInterval"] = known
    parts = [_slice(kind, name, part) for name, part in (row.get("slices") or {}).items()]
    return [found, *(part for part in parts if part)]


def _slice(kind: str, name: str, part: Any) -> dict[str, Any] | None:
    """Return a part of a result: a number, or a mapping with ``value``, ``low`` and ``high``."""
    entry = part if isinstance(part, Mapping) else {"value": part}
    value, low, high = (entry.get(key) for key in ("value", "low", "high"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    found: dict[str, Any] = {"type": kind, "value": repr(float(value)), "slice": str(name)}
    if isinstance(low, int | float) and isinstance(high, int | float):
        found["confidenceInterval"] = {"lowerBound": repr(float(low)), "upperBound": repr(float(high))}
    return found


def _text(value: Any) -> str:
    return "not measured" if value is None else str(value) if isinstance(value, int) else repr(float(value))


def _data_set(kind: str, root: str, name: str, facts: ReleaseFacts, publisher: PublisherFields) -> dict[str, Any]:
    entry = next((one for one in facts.data if one.merkle_root == root), None)
    stage = facts.stage(kind)
    behind = list(stage.sources.get(root, ())) if stage is not None else []
    properties = {
        "leam_mm:merkle_root": root,
        "leam_mm:samples": _text(entry.samples if entry else None),
        "leam_mm:licences": json.dumps(entry.licences, sort_keys=True) if entry and entry.licences else "not measured",
        "leam_mm:legal_bases": json.dumps(entry.legal_bases, sort_keys=True) if entry and entry.legal_bases
        else "not measured",
        **({"leam_mm:made_from": ", ".join(behind)} if behind else {}),
    }  # fmt: skip
    owner = _organisation(publisher)
    return {
        "type": "dataset",
        "bom-ref": f"data:{kind}:{root}",
        "name": name,
        "contents": {
            "url": (publisher.data_sets or {}).get(name),
            "properties": [{"name": key, "value": text} for key, text in properties.items()],
        },
        "governance": {"custodians": [{"organization": owner}]} if owner else None,
    }


def _environment(stage: StageFacts, publisher: PublisherFields) -> dict[str, Any] | None:
    """Return the measured energy of a run; None where none was measured."""
    if stage.joules is None:
        return None
    energy = {"value": stage.joules / JOULES_PER_KWH, "unit": "kWh"}
    supplier = publisher.energy_supplier or "not stated"
    use: dict[str, Any] = {
        "activity": "fine-tuning" if stage.base else "training",
        "energyProviders": [{"organization": {"name": supplier}, "energySource": "unknown", "energyProvided": energy}],
        "activityEnergyCost": energy,
    }
    if stage.grams is not None:
        use["co2CostEquivalent"] = {"value": stage.grams / 1e6, "unit": "tCO2eq"}
    return {"energyConsumptions": [use]}


def _ancestor(stage: StageFacts) -> dict[str, Any]:
    base = stage.base
    digest = base.get("sha256", "")
    return {
        "type": "machine-learning-model",
        "name": base.get("name") or base.get("weights") or "not stated",
        "hashes": [{"alg": "SHA-256", "content": digest}] if len(digest) == 64 else None,
        "licenses": _licences(base["licence"]) if base.get("licence") else None,
    }


def _organisation(publisher: PublisherFields) -> dict[str, Any] | None:
    if not publisher.provider_name:
        return None
    contact = [{"email": publisher.contact_email}] if publisher.contact_email else None
    return {"name": publisher.provider_name, "url": [publisher.homepage] if publisher.homepage else None,
            "contact": contact}  # fmt: skip


def _licences(licence: str) -> list[dict[str, Any]]:
    return [{"license": {"id": licence} if licence in SPDX else {"name": licence}}]


def _references(publisher: PublisherFields) -> list[dict[str, str]]:
    found = [("model-card", "README.md"), ("documentation", "documents/en/README.md"), ("license", "LICENSE")]
    found += [("website", publisher.homepage)] if publisher.homepage else []
    return [{"type": kind, "url": url} for kind, url in found]


def _libraries(facts: ReleaseFacts) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for stage in facts.stages:
        for name, number in stage.versions.items():
            found.setdefault(name, set()).add(str(number))
    return found


def _library(name: str, numbers: set[str]) -> dict[str, Any]:
    number = ", ".join(sorted(numbers))
    return {"type": "library", "bom-ref": f"library:{name}", "name": name, "version": number}


def _without_empty(value: Any) -> Any:
    """Return JSON without null, empty lists and empty objects, which the schema forbids or which say nothing."""
    if isinstance(value, dict):
        kept = {name: _without_empty(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each not in (None, [], {})}
    if isinstance(value, list):
        return [_without_empty(each) for each in value]
    return value

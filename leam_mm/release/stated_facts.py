"""Facts that several documents of a release repeat: each must be the same everywhere.

A digest protects a file as it was when the record was written. A file that was replaced together with its digest is
found only where it contradicts another one, or by the signature.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from leam_mm.documents.contradictions import contradictions as find_contradictions
from leam_mm.errors import UserError, one_line
from leam_mm.json_text import parse_lines, parse_object
from leam_mm.release.folder_files import Fault
from leam_mm.release.hostile_files import tensor_sizes
from leam_mm.release_record import DIGEST, RELEASE, ReleaseRecord

CARD, RESULTS, PROVENANCE = "README.md", "results.jsonl", "provenance.json"
MAX_TEXT = 1 << 24  # bytes
HEX = re.compile(r"(?<![0-9a-fA-F])[0-9a-f]{64}(?![0-9a-fA-F])")
ENCODER_WEIGHTS = ("open_clip_model.safetensors", "clip/open_clip_model.safetensors")


def contradictions(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    """Yield each fact that one file of a release states otherwise than another.

    Args:
        folder: The release; its files have the stated digests.
        record: Its leam_mm_release.json.
    """
    for check in (_card, _encoder, _results, _provenance, _digests):
        try:
            yield from check(folder, record)
        except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError, RecursionError) as error:
            name = {_card: CARD, _results: RESULTS, _provenance: PROVENANCE}.get(check, RELEASE)
            yield Fault(name, f"cannot be compared with the other documents: {' '.join(str(error).split())[:200]}")


def document_contradictions(folder: Path, record: ReleaseRecord) -> list[Fault]:
    """Return what documents, results, configs and release.yaml state otherwise than the facts of the record.

    Args:
        folder: The release.
        record: Its leam_mm_release.json; one of an older version, without all facts, is not compared.
    """
    if "documents_sha256" not in record.content:
        return []
    try:
        return [Fault(one.document, f"{one.field}: {one.text}") for one in find_contradictions(folder)]
    except UserError as error:
        return [Fault(RELEASE, one_line(error).replace(f"{folder}/", ""))]


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT:
        raise ValueError(f"{path.name} is larger than {MAX_TEXT} bytes")
    return path.read_text(encoding="utf-8")


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML at the top of a model card.

    Raises:
        ValueError: There is none.
    """
    begin, _, rest = card.partition("---\n")
    matter, end, _ = rest.partition("\n---")
    content = yaml.safe_load(matter) if not begin.strip() and end else None
    if not isinstance(content, dict):
        raise ValueError("it has no front matter")
    return content


def _card(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    if CARD not in record.files:
        yield Fault(CARD, "missing: a release has a model card")
        return
    matter, licence = front_matter(_text(folder / CARD)), str(record.content.get("licence"))
    stated = str(matter.get("license_name") if matter.get("license") == "other" else matter.get("license"))
    if stated.lower() != licence.lower():
        yield Fault(CARD, f"license is {stated!r:.100}, but {RELEASE} states {licence!r:.100}")
    bases = matter.get("base_model") or []
    known = {str(stage.get("base", {}).get("name")) for stage in _stages(record).values()}
    for base in bases if isinstance(bases, list) else [bases]:
        if base not in known:
            yield Fault(CARD, f"base_model is {base!r:.100}, which {RELEASE} does not state")
    yield from _card_results(folder, matter)


def _card_results(folder: Path, matter: dict[str, Any]) -> Iterator[Fault]:
    """Compare the values of ``model-index`` with those of results.jsonl, where both are there."""
    if not (folder / RESULTS).is_file():
        return
    values = {row.get("value") for _, row in parse_lines(_text(folder / RESULTS).encode())}
    for model in matter.get("model-index") or []:
        for result in model.get("results") or []:
            for metric in result.get("metrics") or []:
                value = metric.get("value")
                close = [v for v in values if isinstance(v, int | float) and _agree(float(value), float(v))]
                if not close:
                    yield Fault(CARD, f"the metric {metric.get('name')!r:.100} is {value!r:.40}, not in {RESULTS}")


def _agree(shown: float, exact: float) -> bool:
    """Whether a shown value is an exact one, or the percentage of it, rounded to three digits or more."""
    return any(abs(shown - scale * exact) <= 5e-3 * abs(scale * exact) + 1e-9 for scale in (1, 100))


def _encoder(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    stage, name = _stages(record).get("clip"), str(record.content.get("name"))
    weights = next((one for one in ENCODER_WEIGHTS if one in record.files), None)
    if stage is not None and weights is not None:
        held = sum(tensor_sizes(folder / weights).values())
        stated = stage.get("parameters")
        if type(stated) is not int or not stated <= held <= 1.1 * stated + 10_000:  # buffers come on top
            yield Fault(weights, f"holds {held:,} numbers, but {RELEASE} states {stated!r:.40} parameters")
    config = next((f for f in record.files if f.rpartition("/")[2] == "open_clip_config.json"), None)
    if config is not None:
        text = parse_object(_text(folder / config)).get("model_cfg", {}).get("text_cfg", {})
        if text.get("hf_tokenizer_name") not in (None, name):
            yield Fault(config, f"hf_tokenizer_name is not the name {name!r:.100} that {RELEASE} states")


def _results(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    if RESULTS not in record.files:
        return
    stages = _stages(record)
    for number, row in parse_lines(_text(folder / RESULTS).encode()):
        for kind, entry in (row.get("checkpoints") or {}).items():
            digest = entry.get("sha256") if isinstance(entry, dict) else None
            if kind in stages and digest is not None and digest != stages[kind].get("checkpoint_sha256"):
                yield Fault(RESULTS, f"line {number} measured another {kind} checkpoint than the released one")


def _provenance(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    if PROVENANCE not in record.files:
        return
    statement = parse_object(_text(folder / PROVENANCE))
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    stated = {name: file.sha256 for name, file in record.files.items() if name != PROVENANCE}
    for name in sorted(subjects.keys() ^ stated.keys()):
        yield Fault(PROVENANCE, f"{name} is stated in only one of it and {RELEASE}")
    for name in sorted(subjects.keys() & stated.keys()):
        if subjects[name] != stated[name]:
            yield Fault(PROVENANCE, f"the digest of {name} is another one than in {RELEASE}")
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    known = {digest for one in materials for digest in one.get("digest", {}).values()}
    for kind, stage in _stages(record).items():
        for digest in (stage.get("checkpoint_sha256"), *stage.get("data", {})):
            if digest not in known:
                yield Fault(PROVENANCE, f"does not name {str(digest)[:12]} of {kind}, which {RELEASE} states")


def _digests(folder: Path, record: ReleaseRecord) -> Iterator[Fault]:
    """Every full digest in a document for people must be one that a document for programs states."""
    known = set(HEX.findall(_text(folder / RELEASE)))
    for name in (RESULTS, PROVENANCE):
        known.update(HEX.findall(_text(folder / name)) if name in record.files else [])
    for name in record.files:
        if name == CARD or (name.startswith("documents/") and name.endswith((".md", ".cdx.json"))):
            for digest in dict.fromkeys(HEX.findall(_text(folder / name))):
                if digest not in known and DIGEST.fullmatch(digest):
                    yield Fault(name, f"states the digest {digest[:12]}..., which {RELEASE} does not")


def _stages(record: ReleaseRecord) -> dict[str, dict[str, Any]]:
    stages = record.content.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise ValueError("stages is no object of objects")
    return stages

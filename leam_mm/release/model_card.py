"""The model card of a release: made of measured things only, with the front matter that the Hugging Face Hub reads.

What was not measured is called "not measured". Strings that come from data or from other people are escaped.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from leam_mm.release.generator_usage import DRAWING, EDITING, LOW_RANK
from leam_mm.report.report_number import LANGUAGES, in_unit

# The Hub knows licences by these names; any other one is given as license_name.
HUB_LICENCES = {"apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "bsd-3-clause", "eupl-1.2", "openrail"}
NOT_MEASURED, NOT_STATED = "not measured", "not stated"
JOULES_PER_KWH = 3.6e6
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class StageFacts:
    """One training of the release.

    Args:
        kind: clip, generator or codec.
        parameters: Released weights.
        samples_seen: How many samples it was trained on, repetitions counted; None where the checkpoint does not say.
        checkpoint_sha256: Digest of the checkpoint that the weights were taken from.
        data: Name of each shard folder it was trained on, by Merkle root.
        energy: The record of training/energy_meter.EnergyRecord, or None.
        versions: Of the libraries it was trained with.
        base: The weights that it started from: ``weights`` as they were named, ``sha256``, and ``name`` and ``licence``
            where they say so themselves; empty where it started from chance. A part that was taken over has only this.
    """

    kind: str
    parameters: int
    samples_seen: int | None
    checkpoint_sha256: str
    data: dict[str, str]
    energy: dict[str, Any] | None
    versions: dict[str, str]
    base: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataFacts:
    """One shard folder that was at hand when the release was made.

    Args:
        name: Of the folder.
        merkle_root: Its name by content.
        samples: How many it holds.
        licences: Samples by licence, or None where the folder has no ledger.
        legal_bases: Samples by legal basis, or None.
    """

    name: str
    merkle_root: str
    samples: int
    licences: dict[str, int] | None = None
    legal_bases: dict[str, int] | None = None


@dataclass(frozen=True)
class ReleaseFacts:
    """All that the card says.

    Args:
        name: Of the release.
        licence: Of the weights.
        image_size: H = W in pixels of the encoder's pictures.
        context_length: Tokens of a caption, begin and end included.
        stages: The trainings, clip first.
        data: Shard folders at hand.
        metrics: Lines of results.jsonl.
        drawn_size: H = W in pixels of the pictures that the generator draws; None without one.
        low_rank: Whether the generator's low-rank additions are in the release, too.
        straight_paths: Whether the generator is a rectified flow, as the card's lines for editing pictures take it.
    """

    name: str
    licence: str
    image_size: int
    context_length: int
    stages: Sequence[StageFacts]
    data: Sequence[DataFacts] = ()
    metrics: Sequence[dict[str, Any]] = ()
    drawn_size: int | None = None
    low_rank: bool = False
    straight_paths: bool = True

    @property
    def generates(self) -> bool:
        """Whether a generator is part of the release."""
        return self.drawn_size is not None


def model_card(facts: ReleaseFacts) -> str:
    """The README.md of a release folder."""
    parts = [_front_matter(facts), _introduction(facts), _bases(facts), _use(facts), _data(facts), _results(facts)]
    return "\n".join([*parts, _limits(facts), _cost(facts), _licence(facts)])


def escape(text: object) -> str:
    """A string of unknown origin, harmless inside a Markdown table: no markup, no new cell, no new line."""
    plain = html.escape(" ".join(str(text).split()))
    return "".join(f"&#{ord(letter)};" if letter in "|`*_[]\\" else letter for letter in plain)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows)]) + "\n"


def _front_matter(facts: ReleaseFacts) -> str:
    licence = facts.licence.lower()
    front: dict[str, Any] = {"license": licence}
    if licence not in HUB_LICENCES:
        front = {"license": "other", "license_name": facts.licence}
    front["language"] = _measured_languages(facts) or NOT_MEASURED
    front["tags"] = ["leam_mm", "multilingual", "open_clip"] + (
        ["diffusers", "text-to-image"] if facts.generates else []
    )
    # The Hub knows a base by owner/name only.
    bases = sorted({name for stage in facts.stages if HUB_NAME.fullmatch(name := stage.base.get("name", ""))})
    if bases:
        front["base_model"] = bases
    front["library_name"] = "open_clip"
    front["pipeline_tag"] = "zero-shot-image-classification"
    kinds = {"top1": "accuracy", "top5": "accuracy", "recall": "recall", "fid": "fid"}
    names = " ".join(str(metric.get("name", "")).lower() for metric in facts.metrics)
    front["metrics"] = sorted({kind for word, kind in kinds.items() if word in names})
    if front["language"] == NOT_MEASURED:
        del front["language"]
    return "---\n" + yaml.safe_dump(front, sort_keys=False, allow_unicode=True) + "---\n"


def _introduction(facts: ReleaseFacts) -> str:
    rows = [(stage.kind, f"{stage.parameters:,}", _count(stage.samples_seen)) for stage in facts.stages]
    what = f"an image and text encoder for pictures of {facts.image_size} x {facts.image_size} pixels"
    what += f", and a generator that draws {facts.drawn_size} x {facts.drawn_size} pixels" if facts.generates else ""
    return (
        f"# {escape(facts.name)}\n\nThis release holds {what}. It was trained with leam_mm. "
        "The weights are safetensors; no file in this folder is executed when it is loaded.\n\n"
        + table(["part", "parameters", "samples seen in training"], rows)
    )


def _bases(facts: ReleaseFacts) -> str:
    rows = [
        (
            stage.kind,
            stage.base.get("name") or stage.base.get("weights", NOT_STATED),
            stage.base.get("licence") or NOT_STATED,
            stage.base.get("sha256", NOT_STATED),
        )
        for stage in facts.stages
        if stage.base
    ]
    if not rows:
        return ""
    text = "## What it started from\n\nThese parts were trained on from other weights, or taken over as they were; "
    text += "the licences of those bind this release too.\n\n"
    return text + table(["part", "base", "licence of the base", "SHA-256 of its weights"], rows)


def _use(facts: ReleaseFacts) -> str:
    needed = (
        "`open_clip_torch`, `transformers` and `diffusers`"
        if facts.generates
        else "`open_clip_torch` and `transformers`"
    )
    text = f"""## How to load it

Run these lines in this folder. They need {needed}.

```python
import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:clip")
tokenizer = open_clip.get_tokenizer("local-dir:clip")
model.eval()
picture = Image.new("RGB", ({facts.image_size}, {facts.image_size}), "red")  # or Image.open(...)
image, text = preprocess(picture)[None], tokenizer(["ein rotes Bild", "ein blaues Bild"])
with torch.no_grad():
    similarity = model.encode_image(image, normalize=True) @ model.encode_text(text, normalize=True).T
print(similarity)
```
"""
    if facts.generates:
        text += DRAWING + (EDITING if facts.straight_paths else "") + (LOW_RANK if facts.low_rank else "")
    return text


def _data(facts: ReleaseFacts) -> str:
    known = {entry.merkle_root: entry for entry in facts.data}
    rows: list[tuple[object, ...]] = []
    for stage in facts.stages:
        for root, name in stage.data.items():
            entry = known.get(root)
            rows.append((stage.kind, name, root, f"{entry.samples:,}" if entry else NOT_MEASURED))
        if not stage.data:
            rows.append((stage.kind, NOT_MEASURED, NOT_MEASURED, NOT_MEASURED))
    text = "## Training data\n\nA Merkle root names the exact bytes of a shard folder.\n\n"
    text += table(["part", "shard folder", "Merkle root (SHA-256)", "samples"], rows)
    for title, field_name in (("licence", "licences"), ("legal basis", "legal_bases")):
        rows = []
        for entry in facts.data:
            counts = getattr(entry, field_name)
            if counts is None:
                rows.append((entry.name, NOT_MEASURED, NOT_MEASURED))
            else:
                ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
                rows += [(entry.name, value or "(empty)", f"{count:,}") for value, count in ordered]
        if rows:
            text += "\n" + table(["shard folder", title, "samples"], rows)
    return text


def _results(facts: ReleaseFacts) -> str:
    text = "## Results\n\nIntervals are 95 %.\n"
    if not facts.metrics:
        return f"## Results\n\n{NOT_MEASURED.capitalize()}.\n"
    groups: dict[str, list[dict[str, Any]]] = {}
    for metric in facts.metrics:
        start, _, last = str(metric["name"]).rpartition("/")
        groups.setdefault(start if last in LANGUAGES and start else "", []).append(metric)
    for start in sorted(groups):
        header = [f"{escape(start)}, language" if start else "metric", "value", "95 % interval", "samples", "remark"]
        rows = []
        for metric in groups[start]:
            code = str(metric["name"]).rpartition("/")[2]
            name = f"{LANGUAGES[code]} ({code})" if start else metric["name"]
            rows.append(
                (name, _value(metric), _interval(metric), _count(metric.get("samples")), metric.get("note") or "")
            )
        text += "\n" + table(header, rows)
    return text


def _limits(facts: ReleaseFacts) -> str:
    measured = _measured_languages(facts)
    missing = [LANGUAGES[code] for code in sorted(LANGUAGES) if code not in measured]
    lines = [
        f"Captions are cut after {facts.context_length} tokens, begin and end included.",
        f"The encoder sees {facts.image_size} x {facts.image_size} pixels; smaller details are lost.",
        f"Official EU languages without a measured result: {', '.join(missing) if missing else 'none'}.",
        "What no table above shows was not measured: bias, memorisation and personal data included.",
    ]
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def _cost(facts: ReleaseFacts) -> str:
    rows = []
    for stage in facts.stages:
        record = stage.energy or {}
        wall = _time(record["seconds"]) if record else NOT_MEASURED
        cpu = _time(record["cpu_seconds"]) if record else NOT_MEASURED
        rows.append((stage.kind, energy_words(record), record.get("source", NOT_MEASURED), wall, cpu))
    header = ["part", "energy", "source", "time", "processor time"]
    return "## Energy and time\n\nTraining runs only; storage, cooling and failed attempts are outside.\n\n" + table(
        header, rows
    )


def energy_words(record: dict[str, Any]) -> str:
    """Energy of a stage with its boundary, its estimate called one, and its gaps named."""
    if record.get("joules") is not None:
        words = f"{record['joules'] / JOULES_PER_KWH:.4g} kWh ({record['coverage']})"
        if record["measured_node_seconds"] < 0.999 * record["node_seconds"]:
            words += f", measured in {record['measured_node_seconds'] / record['node_seconds']:.0%} of the time"
        return words
    if record.get("estimated_joules") is not None:
        return f"{record['estimated_joules'] / JOULES_PER_KWH:.4g} kWh, estimated from processor time"
    return NOT_MEASURED


def _licence(facts: ReleaseFacts) -> str:
    return (
        f"## Licence\n\nThe weights: {escape(facts.licence)}. The training data keep their own licences.\n\n"
        "`leam_mm_release.json` holds the digest of every file, `configs/` the full settings of each training.\n"
    )


def _measured_languages(facts: ReleaseFacts) -> list[str]:
    found = {str(m["name"]).rpartition("/")[2] for m in facts.metrics if m.get("value") is not None}
    return sorted(found & LANGUAGES.keys())


def _value(metric: dict[str, Any]) -> str:
    return NOT_MEASURED if metric.get("value") is None else in_unit(float(metric["value"]), str(metric.get("unit", "")))


def _interval(metric: dict[str, Any]) -> str:
    if metric.get("low") is None or metric.get("high") is None:
        return "none"
    low, high = (in_unit(float(metric[end]), str(metric.get("unit", ""))) for end in ("low", "high"))
    return f"{low} to {high}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.2f} h"


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else NOT_MEASURED

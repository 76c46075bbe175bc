"""Provenance of training data: valid fields, recomputed digests and Merkle roots, lineage of the models."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.audits.collection_dates import collection_date, ledger_dates
from leam_mm.audits.lineage import Lineage, lineage_faults, model_lineages, release_lineages
from leam_mm.audits.provenance_fields import field_states
from leam_mm.audits.stored_samples import StoredSample, read_stored
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256
from leam_mm.intervals.intervals import wilson_interval

MAPS_TO = ("AI Act Art. 53(1)(d)", "AI Act Annex XI 1(2)(c)", "public summary 2", "Croissant")
MODELS = ("clip", "codec", "generator")
SHOWN = 5  # faults in a note


class Provenance(Audit):
    """Share of samples whose fields are filled and valid, and whether data and models fit together.

    Digests of shards and their Merkle root are recomputed, never believed; so are digests of images that are stored as
    they were fetched. The root must be the one in each checkpoint; latents are given as further folders.

    - class_path: leam_mm.audits.provenance.Provenance
      init_args: {recompute: 100, further: [runs/quickstart/latents/train]}

    Args:
        samples: Samples that are read, drawn at random; None reads all.
        recompute: Images of which the SHA-256 is recomputed, drawn at random from those that are read.
        further: Further folders that the models were trained on: other sources, latents.
        least: Smallest share of valid samples in every field, for a pass.
        seed: Seed of the draws.
    """

    name = "provenance"

    def __init__(
        self,
        samples: int | None = None,
        recompute: int = 100,
        further: Sequence[Path] = (),
        least: float = 0.99,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if (samples is not None and samples < 1) or recompute < 0:
            raise UserError(f"Provenance: samples is {samples}, recompute {recompute}: give at least 1, and at least 0")
        self.samples, self.recompute, self.further = samples, recompute, list(further)
        self.least, self.seed = least, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read the records and recompute the digests."""
        folder = ShardFolder(context.require("shards"))
        folders = [folder, *(ShardFolder(path) for path in self.further)]
        read, valid, wrong, recomputed = self._count(folder)
        results = [self._fields(folder, read, valid), self._integrity(folders, wrong, recomputed)]
        models = [one for kind in MODELS for one in _given(context, kind)]
        models += release_lineages(context.release) if context.release and not models else []
        return results + ([self._lineage(models, folders)] if models else [])

    def _count(self, folder: ShardFolder) -> tuple[int, Counter[str], list[str], int]:
        """Return the samples read, valid ones by field, keys of samples with another digest, and digests recomputed."""
        count = folder.samples if self.samples is None else min(self.samples, folder.samples)
        drawn = np.random.default_rng(self.seed + 1).choice(count, min(self.recompute, count), replace=False)
        chosen = set(drawn.tolist())
        dates = ledger_dates(folder)
        valid: Counter[str] = Counter()
        wrong, recomputed = [], 0
        for number, sample in enumerate(read_stored(folder, self.samples, self.seed)):
            states = field_states(sample.record, collection_date(sample.record, dates.get(sample.key)))
            if number in chosen and _as_fetched(sample):
                recomputed += 1
                if bytes_sha256(sample.image or b"") != sample.record["sha256"]:
                    wrong.append(f"the image of {sample.key} has another SHA-256 than its record")
                    states["sha256"] = False
            elif sample.fault:
                wrong.append(sample.fault)
            valid.update({name: int(state) for name, state in states.items()})
        return count, valid, wrong, recomputed

    def _fields(self, folder: ShardFolder, read: int, valid: Counter[str]) -> AuditResult:
        slices: dict[str, Any] = {}
        for name, count in valid.items():
            share = count / read
            # All fields must pass together: 1 - 0.05 / number of fields for each (Bonferroni).
            confidence = 1 - 0.05 / len(valid)
            low, high = (share, share) if read == folder.samples else wilson_interval(count, read, confidence)
            slices[name] = {"value": share, "low": low, "high": high, "samples": read}
        worst = min(slices, key=lambda name: slices[name]["value"])
        low, high = (min(part[end] for part in slices.values()) for end in ("low", "high"))
        said = f"smallest share of samples with a valid field, that of {worst}"
        if slices[worst]["value"] == 1:
            said = f"share of samples with a valid field: all of {len(slices)} fields in all samples"
        said += "" if read == folder.samples else f"; {read:,} samples drawn from {folder.samples:,}"
        return AuditResult(
            self.name, slices[worst]["value"], low, high, "fraction", read, Threshold(least=self.least), slices,
            said, maps_to=MAPS_TO,
        )  # fmt: skip

    def _integrity(self, folders: list[ShardFolder], wrong: list[str], recomputed: int) -> AuditResult:
        faults, shards = list(wrong), 0
        for folder in folders:
            for number, entry in enumerate(folder.shards):
                shards += 1
                try:
                    fault = folder.digest_fault(number)
                except UserError as error:
                    fault = str(error)
                if fault:
                    faults.append(f"{folder.path.name}/{entry.shard}: {fault}")
        value = float(len(faults))
        roots = {"/".join(folder.path.parts[-2:]): folder.merkle_root for folder in folders}
        said = f"{shards:,} shards and {recomputed:,} images recomputed; Merkle root {folders[0].merkle_root[:12]}"
        return AuditResult(
            f"{self.name}/integrity", value, value, value, "count", shards + recomputed, Threshold(most=0),
            {"merkle roots": roots, "images recomputed": recomputed}, _with_faults(said, faults), maps_to=MAPS_TO,
        )  # fmt: skip

    def _lineage(self, models: list[Lineage], folders: list[ShardFolder]) -> AuditResult:
        faults = lineage_faults(models, folders)
        value = float(len(faults))
        bare = [model.kind for model in models if model.commit is None]
        said = f"config, data and parents of {', '.join(model.kind for model in models)}"
        said += f"; no commit of the code is recorded for {', '.join(bare)}" if bare else ""
        return AuditResult(
            f"{self.name}/lineage", value, value, value, "count", len(models), Threshold(most=0),
            {model.kind: model.as_dict() for model in models}, _with_faults(said, faults), maps_to=MAPS_TO,
        )  # fmt: skip


def _given(context: AuditContext, kind: str) -> list[Lineage]:
    model = getattr(context, kind)
    return [] if model is None else model_lineages(kind, model)


def _as_fetched(sample: StoredSample) -> bool:
    """Return whether an image is stored as it was fetched, so that the SHA-256 of its record is that of its bytes."""
    has = sample.image is not None and isinstance(sample.record.get("sha256"), str)
    return has and sample.record.get("transforms") == []


def _with_faults(said: str, faults: list[str]) -> str:
    """Return a note with the first faults."""
    more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
    return f"{said}; {'; '.join(faults[:SHOWN])}{more}" if faults else said

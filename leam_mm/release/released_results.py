"""Results of evaluate.py that belong to the released checkpoints."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leam_mm.documents.release_facts import StageFacts
from leam_mm.errors import UserError
from leam_mm.evaluators.results import RESULTS, read_results
from leam_mm.files import write_text

log = logging.getLogger(__name__)


def released_metrics(path: Path, stages: Sequence[StageFacts]) -> list[dict[str, Any]]:
    """Return the newest line of each metric of a results.jsonl that was measured on these checkpoints.

    Args:
        path: The file, or its folder.
        stages: Runs of the release; metrics of a network that is not released are skipped.
    """
    digests = {stage.kind: stage.checkpoint_sha256 for stage in stages}
    metrics, skipped = [], 0
    if not path.exists():
        raise UserError(f"{path} is missing: give the results.jsonl of evaluate.py, or leave out --results")
    for name, row in read_results(path if path.is_dir() else path.parent).items():
        for key in ("value", "low", "high"):
            if not isinstance(row.get(key), int | float | None):
                raise UserError(f"{path}: {key} of {name!r} is {row[key]!r}, not a number: evaluate again")
        tested = {kind: entry["sha256"] for kind, entry in (row.get("checkpoints") or {}).items() if entry}
        if not tested.keys() <= digests.keys():
            skipped += 1
            continue
        for kind, digest in tested.items():
            if digest != digests[kind]:
                raise UserError(
                    f"{path}: {name!r} was measured on another {kind} checkpoint (sha256 {digest[:12]}, released "
                    f"{digests[kind][:12]}): evaluate the released one"
                )
        metrics.append(row)
    if skipped:
        log.warning("%d metrics of %s belong to networks that are not released; they are skipped", skipped, path)
    return metrics


def write_results(metrics: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the results that the documents quote into the release; nothing without results."""
    if metrics:
        write_text(folder / RESULTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in metrics))

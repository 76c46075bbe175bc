"""What a release states of each of its parts, from the run that trained it or from the folder it was taken from."""

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from leam_mm.checkpoint import EVIDENCE, checkpoint_config, find_checkpoint, read_checkpoint
from leam_mm.codecs.pretrained_codec import codec_file
from leam_mm.documents.inference_flops import stage_uses
from leam_mm.documents.release_facts import StageFacts
from leam_mm.documents.training_flops import training_flops
from leam_mm.evaluators.recorded_paths import recorded_path
from leam_mm.files import file_sha256
from leam_mm.release.data_sources import add_sources, data_folders

log = logging.getLogger(__name__)
MAX_CARD = 1 << 20  # bytes
ABSOLUTE = re.compile(r"""(?m)(?<=[:-] )(?P<quote>['"]?)(?P<path>/[^\n'"]+)(?P=quote)$""")  # a value of YAML


def recorded_recipe(text: str) -> str:
    """Return the settings of a run, absolute paths among their values as in ``recorded_path``."""
    return ABSOLUTE.sub(lambda found: f"{found['quote']}{recorded_path(found['path'])}{found['quote']}", text)


def stage_facts(kind: str, path: Path, released: nn.Module, temporary: Path) -> StageFacts:
    """Return what the checkpoint records about its run; copy its config into the release, see `recorded_recipe`."""
    checkpoint = read_checkpoint(path)
    evidence = checkpoint[EVIDENCE]
    (temporary / "configs" / f"{kind}.yaml").write_text(recorded_recipe(evidence["config"]), encoding="utf-8")
    recipe, seen = checkpoint_config(checkpoint), evidence.get("samples_seen")
    changes = [one for one in evidence.get("changes", []) if isinstance(one, dict)]
    flops, notes = training_flops(recipe, seen, changes)
    stage = StageFacts(
        kind=kind,
        parameters=sum(parameter.numel() for parameter in released.parameters()),
        samples_seen=seen,
        checkpoint_sha256=file_sha256(find_checkpoint(path)),
        data={root: Path(name).name for name, root in evidence.get("data", {}).items()},
        energy=checkpoint.get("callbacks", {}).get("EnergyRecord"),
        versions=evidence.get("versions", {}),
        base=base_facts(evidence),
        changes=changes,
        flops=flops,
        flops_notes=notes,
        recipe=recipe,
        inference=[asdict(use) for use in stage_uses(kind, recipe)],
    )
    return add_sources(stage, data_folders(evidence.get("data", {})))


def codec_facts(path: Path, released: nn.Module, temporary: Path) -> StageFacts:
    """Return the codec's run; for a folder of diffusers, the digest and the stated licence of its weights."""
    if not (path / "config.json").is_file():
        return stage_facts("codec", path, released, temporary)
    return taken_over("codec", path, released, file_sha256(codec_file(path)))


def taken_over(kind: str, path: Path, released: nn.Module, digest: str) -> StageFacts:
    """Return the facts of a part that no run of ours trained: its digest, and the licence that its folder states."""
    base = {"weights": "/".join(path.resolve().parts[-2:]), "sha256": digest, **stated_licence(path)}
    parameters = sum(parameter.numel() for parameter in released.parameters())
    return StageFacts(kind, parameters, None, digest, {}, None, {}, base)


def stated_licence(folder: Path) -> dict[str, str]:
    """Return the licence in the front matter of a folder's model card, or of the card of the pipeline around it."""
    pipeline = [folder.parent] if (folder.parent / "model_index.json").is_file() else []
    for card in (path / "README.md" for path in (folder, *pipeline)):
        if not card.is_file() or card.stat().st_size > MAX_CARD:
            continue
        begin, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---")
        try:
            front = yaml.safe_load(rest.partition("\n---")[0]) if not begin.strip() else None
        except (yaml.YAMLError, ValueError, RecursionError):
            log.warning("the front matter of %s cannot be read: the licence of these weights is not stated", card)
            continue
        if not isinstance(front, dict):
            continue
        for licence in (front.get("license_name") if front.get("license") == "other" else None, front.get("license")):
            if isinstance(licence, str):
                return {"licence": licence[:200]}
    return {}


def base_facts(evidence: dict[str, Any]) -> dict[str, str]:
    """Return what a run started from, without paths of this machine."""
    recorded = evidence.get("pretrained") or {}
    base = {key: str(value) for key, value in recorded.items() if key not in ("config", "caption_tower")}
    if "weights" in base and Path(base["weights"]).is_absolute():
        base["weights"] = "/".join(Path(base["weights"]).parts[-2:])
    return base

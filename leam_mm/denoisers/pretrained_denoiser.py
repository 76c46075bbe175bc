"""A denoiser that starts from a trained one, for fine-tuning of all weights or of low-rank additions (LoRA).

model:
  init_args:
    denoiser:
      class_path: leam_mm.denoisers.pretrained_denoiser.PretrainedDenoiser
      init_args:
        weights: runs/base/generator
        low_rank: {rank: 8, alpha: 16, patterns: ["*.attention.*", "*.*_proj"]}

Nothing is downloaded, and nothing in a file of weights is executed. A checkpoint holds all weights and the shape of the
network: it can be resumed, evaluated and released without the base.
"""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import nn

from leam_mm.checkpoint import REBUILDING, load_part
from leam_mm.denoisers.denoiser import Denoiser, PRXDenoiser
from leam_mm.encoders.low_rank import LowRank
from leam_mm.errors import UserError
from leam_mm.files import file_sha256, files_sha256
from leam_mm.json_text import parse_object
from leam_mm.released_files import RELEASE, compare_released_files, is_variant

log = logging.getLogger(__name__)
MAX_CONFIG = 1 << 20  # bytes


class PretrainedDenoiser(PRXDenoiser):
    """Photoroom's PRX transformer with the weights of a trained generator.

    Args:
        weights: Run folder or checkpoint of a LatentDiffusionModule, whose averaged weights are taken; or a folder of
            diffusers with a pipeline or its transformer; or a release of this project.
        low_rank: Train low-rank additions to some matrices, and nothing else; None trains all weights.
        gradient_checkpointing: Recompute the blocks in the backward pass: less memory, a third more time.
    """

    def __init__(self, weights: str, low_rank: LowRank | None = None, gradient_checkpointing: bool = False) -> None:
        """See the class for the arguments."""
        evidence = REBUILDING.get()
        model, origin = load_transformer(Path(weights)) if evidence is None else rebuilt_transformer(evidence)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        size = model.config
        Denoiser.__init__(self, model, size.in_channels, size.context_in_dim, size.patch_size)
        self._origin, self.low_rank = origin, low_rank
        if low_rank is not None:
            low_rank.add_to(self.model)

    def origin(self) -> dict[str, Any]:
        """Return path, sha256 and shape of the base, and name and licence if it states them."""
        return dict(self._origin)

    def plain_model(self) -> nn.Module:
        """Return a copy of diffusers' model with the low-rank additions merged into the weights."""
        return self.low_rank.merged(self.model) if self.low_rank is not None else copy.deepcopy(self.model)


def load_transformer(weights: Path) -> tuple[Any, dict[str, Any]]:
    """Load a base.

    Args:
        weights: See PretrainedDenoiser.

    Returns:
        diffusers' model in float32, and its origin; see PretrainedDenoiser.origin.
    """
    candidates = (weights / "generator" / "transformer", weights / "transformer", weights)
    folder = next((candidate for candidate in candidates if (candidate / "config.json").is_file()), None)
    if folder is not None:
        facts: dict[str, Any] = _released([weights, weights.parent, weights.parent.parent])
        model, digest = load_diffusers_model(folder), weights_sha256(folder)
    elif weights.exists():
        model, digest, facts = _from_run(weights)
    else:
        raise UserError(f"{weights} is missing: give a generator's run folder, its checkpoint, or diffusers' folder")
    if model.config.resolution_embeds:
        raise UserError(f"{weights} embeds the resolution of images, which a PRXDenoiser does not: give another base")
    model = model.float().requires_grad_(True).train()
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise UserError(f"{weights} holds NaN or infinite weights: give intact ones")
    log.info("the denoiser starts from %s (sha256 %s)", weights, digest[:12])
    return model, {"weights": str(weights), "sha256": digest, **facts, "config": shape(model)}


def rebuilt_transformer(evidence: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model of the shape in a checkpoint's evidence, with random weights, and its origin."""
    origin = evidence.get("pretrained")
    if not isinstance(origin, dict) or not isinstance(origin.get("config"), dict):
        raise UserError("the checkpoint does not state the shape of the denoiser that it started from: it was edited")
    return PRXTransformer2DModel.from_config(origin["config"]), origin


def shape(model: Any) -> dict[str, Any]:
    """Return the config of diffusers' model as JSON has it, without private keys and paths of this machine."""
    return {key: value for key, value in json.loads(model.to_json_string()).items() if not key.startswith("_")}


def weights_sha256(folder: Path) -> str:
    """Return the digest of the safetensors of a folder; of several files, that of their names and digests."""
    files = sorted(file for file in folder.glob("*.safetensors") if not is_variant(file))
    return file_sha256(files[0]) if len(files) == 1 else files_sha256(files)


def model_class(folder: Path) -> str:
    """Return the class of a network of diffusers, as its config.json states it."""
    config = folder / "config.json"
    try:
        if config.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG} bytes")
        return str(parse_object(config.read_bytes()).get("_class_name"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} cannot be read ({error}): give the folder of a network of diffusers") from None


def load_diffusers_model(folder: Path, kind: Any = PRXTransformer2DModel) -> Any:
    """Load a network of diffusers; its files are compared with the release that they belong to.

    Args:
        folder: With config.json and safetensors.
        kind: Its class.

    Raises:
        UserError: It is of another class, or its files are damaged.
    """
    if (found := model_class(folder)) != kind.__name__:
        raise UserError(
            f"{folder / 'config.json'} describes {found!r}: only a {kind.__name__} fits here; give the folder of one"
        )
    compare_released_files(folder)
    try:
        model, loading = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # diffusers, safetensors and torch raise many kinds for files that do not fit
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{folder} holds no loadable safetensors ({reason}): copy it again") from None
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):  # diffusers fills gaps with random weights
        if loading.get(fault):
            first = sorted(map(str, loading[fault]))[0]
            raise UserError(f"{folder}: its weights are not those of its config.json ({fault}: {first}): copy it again")
    return model


def _from_run(path: Path) -> tuple[Any, str, dict[str, Any]]:
    denoiser = load_part(path, "ema_denoiser")
    if not isinstance(denoiser, PRXDenoiser):
        raise UserError(f"{path} holds a {type(denoiser).__name__}: only a PRXDenoiser can be fine-tuned")
    digest: str = denoiser.checkpoint_evidence["sha256"]  # type: ignore[index, assignment, union-attr]
    facts: dict[str, Any] = _released([path.parent / "release"], digest)
    return denoiser.plain_model(), digest, facts | ({"caption_tower": True} if denoiser.caption_tower else {})


def _released(folders: list[Path], checkpoint: str | None = None) -> dict[str, str]:
    """Return name and licence that the first release in some folders states, of a checkpoint if a digest is given."""
    for file in (folder / RELEASE for folder in folders):
        if not file.is_file() or file.stat().st_size > MAX_CONFIG:
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if checkpoint is None or content["stages"]["generator"]["checkpoint_sha256"] == checkpoint:
                return {key: str(content[key])[:200] for key in ("name", "licence") if content.get(key)}
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            log.warning("%s cannot be read: name and licence of the base are unknown", file)
    return {}

"""Trained models by their address: runs, checkpoints, releases, folders of open_clip and diffusers.

| address | holds |
|---|---|
| run folder, or ``.ckpt`` file | one module, with the evidence of its training |
| release folder of this project | an encoder, a generator with its codec, or both |
| folder with open_clip_config.json, or ``NAME:TAG`` of open_clip | an encoder |
| folder with model_index.json (a pipeline of diffusers) | a generator with its codec and text encoder |
| folder with config.json of an autoencoder of diffusers | a codec |

Nothing is downloaded, and no code in a folder is run.
"""

import re
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule

from leam_mm.captions.caption_encoders import encoder_file
from leam_mm.captions.frozen_parts import FrozenParts
from leam_mm.checkpoint import is_run, load_module
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.codecs.marked_codec import takes_place_of
from leam_mm.codecs.pretrained_codec import load_codec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.tokenizer import ENGLISH
from leam_mm.denoisers.released_denoiser import load_released_denoiser
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import VariancePreserving
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.pretrained_encoder import CONFIG, PretrainedEncoder
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.released_files import RELEASE, Part, released_part, released_parts

PIPELINE = "model_index.json"  # of a folder of diffusers
MAX_CONFIG = 1 << 20  # bytes
Kind = Literal["run", "release", "open_clip", "pipeline", "autoencoder"]
FORMS = "a .ckpt file, a run, a release, a folder of open_clip or diffusers, or NAME:TAG of an open_clip model"


def address_kind(address: Path | str) -> Kind:
    """Return what an address names, from the files that are there.

    Raises:
        UserError: It names nothing that can be opened.
    """
    path = Path(address)
    if is_run(path):
        return "run"
    if path.is_dir():
        for name, kind in ((RELEASE, "release"), (CONFIG, "open_clip"), (PIPELINE, "pipeline")):
            if (path / name).is_file():
                return kind  # type: ignore[return-value]
        if (path / "config.json").is_file():
            return "autoencoder"
        raise UserError(f"{address} holds no model: give {FORMS}")
    if path.is_file() or re.fullmatch(r"[\w.-]+:[\w.-]+", str(address)):
        return "open_clip"
    raise UserError(f"there is no model at {address}: give {FORMS}")


def load_encoder(address: Path | str, tokenizer: Path | str | None = None) -> ContrastiveModule:
    """Load image and text tower with their tokenizer.

    Args:
        address: Run, checkpoint, release, folder or weights file of open_clip, or ``NAME:TAG``.
        tokenizer: Folder of the tokenizer, or ``open_clip``; None takes the encoder's own.

    Returns:
        The module in eval mode on the CPU, with a ``checkpoint_evidence`` dict (path, sha256, and more of a run).

    Raises:
        UserError: There is no encoder, or it is damaged.
    """
    kind = address_kind(address)
    if kind == "run":
        module = load_module(address, ContrastiveModule)
        return module if tokenizer is None else module.with_tokenizer(str(tokenizer))
    weights = str(released_part(address, "encoder"))
    if kind not in ("release", "open_clip"):
        raise UserError(f"{address} is {_named(kind)}, but an encoder is needed here: give its run, or a release")
    encoder = PretrainedEncoder(weights)
    module = ContrastiveModule(encoder, InfoNCE(), str(tokenizer or _own_tokenizer(weights, encoder)))
    encoder.check_tokenizer(module.tokenizer)
    return _with_evidence(module, address, encoder.origin()["sha256"])


def load_generator(
    address: Path | str, clip: Path | str | None = None, codec: Path | str | None = None
) -> LatentDiffusionModule:
    """Load a generator with its text encoder and codec.

    Args:
        address: Run or checkpoint of a generator, release, or folder of a PRXPipeline of diffusers.
        clip: Where the generator's text encoder lies, if it was moved; its digest must be the recorded one.
        codec: The same for the codec.

    Returns:
        The module in eval mode on the CPU, with a ``checkpoint_evidence`` dict as of `load_encoder`.

    Raises:
        UserError: There is no generator, or it is damaged.
    """
    kind = address_kind(address)
    if kind == "run":
        module = load_module(address, LatentDiffusionModule)
        for name, path in (("clip", clip), ("codec", codec)):
            if path is not None:
                recorded = module.frozen.record().get(name, {}).get("sha256")
                marked = name == "codec" and takes_place_of(path, str(recorded), module.frozen.codec)
                if not marked and encoder_file(path)[1] != recorded:
                    raise UserError(
                        f"{path} is not the {name} that {address} was trained with (sha256 {str(recorded)[:12]}): give "
                        f"that one, or leave --{name} out"
                    )
                module.frozen.elsewhere[name] = str(path)
        return module
    if kind not in ("release", "pipeline"):
        raise UserError(f"{address} is {_named(kind)}, but a generator is needed here: give its run, or a release")
    folder = released_part(address, "generator")
    index, scheduler = _json(folder / PIPELINE), _json(folder / "scheduler" / "scheduler_config.json")
    denoiser, digest = load_released_denoiser(folder)
    frozen = FrozenParts(clip=str(clip or folder / "text_encoder"), codec=str(codec or folder / "vae"))
    size = index.get("default_sample_size")
    downscale = load_codec(frozen.paths["codec"] or "").downscale
    if not isinstance(size, int) or size < downscale or size % downscale:
        raise UserError(f"{folder / PIPELINE}: default_sample_size is {size!r}, not a multiple of {downscale} pixels")
    module = LatentDiffusionModule(denoiser, _process(scheduler, folder), size // downscale, frozen, ema=None)
    return _with_evidence(module, address, digest)


def load(address: Path | str, part: Part | None = None) -> LightningModule | LatentCodec:
    """Load the model at an address.

    Args:
        address: See the table above.
        part: Which one of a release with several; None takes the only one.

    Returns:
        ContrastiveModule, LatentDiffusionModule or LatentCodecModule of a run; of other addresses the first two, or a
        LatentCodec. In eval mode on the CPU.
    """
    kind = address_kind(address)
    if part is None and kind == "release":
        parts = released_parts(Path(address))
        if len(parts) != 1:
            raise UserError(f"{address} holds {' and '.join(parts) or 'no model'}: give part='encoder' or 'generator'")
        part = parts[0]
    if part is None and kind == "run":
        return load_module(address)
    implied = {"open_clip": "encoder", "pipeline": "generator", "autoencoder": "codec"}
    wanted = part or implied[kind]
    if wanted == "codec":
        return load_codec(address)
    return load_encoder(address) if wanted == "encoder" else load_generator(address)


def _own_tokenizer(weights: str, encoder: PretrainedEncoder) -> str:
    """Return the folder of an open_clip model's tokenizer, or the name of open_clip's English vocabulary."""
    folder = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    if (folder / "tokenizer.json").is_file():
        return str(folder)
    named = encoder.config()["text_cfg"].get("hf_tokenizer_name") or encoder.config()["text_cfg"].get("hf_model_name")
    if named:
        raise UserError(f"{weights} reads captions with the tokenizer {named}, which is not in it: give its folder")
    return ENGLISH


def _process(scheduler: dict[str, Any], folder: Path) -> DiffusionProcess:
    """Return the process whose sampler takes the steps of a scheduler; see release/diffusers_folder.py."""
    kind, shift = scheduler.get("_class_name"), scheduler.get("shift", 1.0)
    if kind == "FlowMatchEulerDiscreteScheduler" and isinstance(shift, int | float) and shift > 0:
        return RectifiedFlow(shift=float(shift))
    prediction = scheduler.get("prediction_type")
    if kind == "DPMSolverMultistepScheduler" and scheduler.get("beta_schedule") == "scaled_linear":
        kinds: list[type[VariancePreserving]] = [VariancePreserving, *VariancePreserving.__subclasses__()]
        for process in kinds:
            if process.prediction_type == prediction:
                return process(schedule="sd_linear")
    raise UserError(f"{folder}: no process of ours samples like its scheduler {kind}: give a generator of this project")


def _with_evidence(module: Any, address: Path | str, sha256: str) -> Any:
    module.checkpoint_evidence = {"path": str(address), "sha256": sha256}
    return module.eval()


def _named(kind: Kind) -> str:
    return {
        "run": "a run",
        "release": "a release",
        "open_clip": "an encoder of open_clip",
        "pipeline": "a pipeline of diffusers",
        "autoencoder": "a single model of diffusers or transformers",
    }[kind]


def _json(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG} bytes")
        return parse_object(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error!r:.200}): give the folder of a pipeline of diffusers") from None

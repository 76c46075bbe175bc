"""Denoisers from the folder of a released generator, of any kind that can be released."""

from pathlib import Path
from typing import Any

from diffusers import SD3Transformer2DModel, UNet2DConditionModel

from leam_mm.denoisers.denoiser import Denoiser, UNetDenoiser
from leam_mm.denoisers.pretrained_denoiser import (
    PretrainedDenoiser,
    load_diffusers_model,
    model_class,
    weights_sha256,
)
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser
from leam_mm.errors import UserError

# Settings of a U-Net with further inputs, which a UNetDenoiser does not give it.
FURTHER_INPUTS = (
    *("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim", "encoder_hid_dim_type"),
    *("time_cond_proj_dim", "cross_attention_norm"),
)


def load_released_denoiser(pipeline: Path) -> tuple[Denoiser, str]:
    """Load the network of a released generator.

    Args:
        pipeline: Folder of a pipeline of diffusers, whose network lies in ``transformer``.

    Returns:
        The denoiser in float32, and the SHA-256 of its weights.

    Raises:
        UserError: The network is none that this project trains, or its files are damaged.
    """
    folder = pipeline / "transformer"
    denoiser: Denoiser
    match model_class(folder):
        case "UNet2DConditionModel":
            denoiser = UNetDenoiser.from_model(load_unet(folder))
        case "SD3Transformer2DModel":
            denoiser = SD3Denoiser.from_model(load_diffusers_model(folder, SD3Transformer2DModel).float())
        case _:
            denoiser = PretrainedDenoiser(str(pipeline))
    return denoiser, weights_sha256(folder)


def load_unet(folder: Path) -> Any:
    """Load a U-Net in float32, and refuse one with inputs that a UNetDenoiser does not give it."""
    model = load_diffusers_model(folder, UNet2DConditionModel).float()
    config = model.config
    further = [name for name in FURTHER_INPUTS if config.get(name) is not None]
    if further or not isinstance(config.cross_attention_dim, int) or config.in_channels != config.out_channels:
        raise UserError(
            f"{folder / 'config.json'} describes a U-Net with other inputs or outputs ({', '.join(further) or 'sizes'})"
            ": give one that a UNetDenoiser trained"
        )
    return model

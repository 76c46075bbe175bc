"""Low-rank additions alone, as a folder that the library peft adds to the base: a few megabytes instead of all weights.

peft.PeftModel.from_pretrained(pipeline.transformer, FOLDER)

The layout is peft's own: PRXTransformer2DModel of diffusers 0.42 has no PeftAdapterMixin, and the loader that
PRXPipeline inherits expects a U-Net.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.denoisers.pretrained_denoiser import PretrainedDenoiser
from leam_mm.encoders.low_rank import LowRankLinear
from leam_mm.errors import UserError
from leam_mm.release.open_clip_folder import plain_weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's name of the wrapped network


def has_low_rank(denoiser: Denoiser) -> bool:
    """Return whether the denoiser was trained with low-rank additions."""
    return isinstance(denoiser, PretrainedDenoiser) and denoiser.low_rank is not None


def write_low_rank_folder(denoiser: Denoiser, folder: Path) -> None:
    """Write the additions of a denoiser in peft's layout.

    Args:
        denoiser: A PretrainedDenoiser that was trained with low_rank.
        folder: A new or empty folder.
    """
    if not isinstance(denoiser, PretrainedDenoiser) or denoiser.low_rank is None:
        raise UserError("this generator has no low-rank additions: it was not trained with low_rank")
    folder.mkdir(parents=True, exist_ok=True)
    config, weights = low_rank_adapter(denoiser)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})


def low_rank_adapter(denoiser: PretrainedDenoiser) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the content of adapter_config.json, and A (rank, in) and B (out, rank) of each layer by peft's names."""
    assert denoiser.low_rank is not None
    origin = denoiser.origin()
    values = plain_weights(denoiser.model)
    layers = [name for name, layer in denoiser.model.named_modules() if isinstance(layer, LowRankLinear)]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": origin.get("name"),  # never a path of this machine
        "r": denoiser.low_rank.rank,
        "lora_alpha": denoiser.low_rank.alpha,
        "lora_dropout": 0.0,
        "target_modules": layers,
        "fan_in_fan_out": False,
        "bias": "none",
        "inference_mode": True,
    }
    weights = {}
    for name in layers:
        weights[f"{PREFIX}{name}.lora_A.weight"] = values[f"{name}.low_rank_first"]
        weights[f"{PREFIX}{name}.lora_B.weight"] = values[f"{name}.low_rank_second"]
    return config, weights

"""An encoder as a folder that open_clip loads without us: config, safetensors, tokenizer files.

open_clip.create_model_and_transforms("local-dir:FOLDER")
open_clip.get_tokenizer("local-dir:FOLDER")

open_clip reads the config of a text tower of transformers by a path below the current directory, or from the root of a
repository on the hub. Both are written: start open_clip inside FOLDER, with "local-dir:.", or give "hf-hub:owner/name".
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.release.tokenizer_files import copy_tokenizer

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"  # the first name that open_clip looks for
TEXT_MODEL = "text_model"  # folder of the config of a text tower of transformers, without a name on a hub
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def write_open_clip_folder(module: ContrastiveModule, folder: Path, name: str) -> None:
    """Write the encoder (the averaged one if an average is kept) in open_clip's own layout.

    Args:
        module: The trained module.
        folder: A new or empty folder.
        name: Name of the tokenizer once the folder is on a hub (owner/name); on disk any name works. It must not be
            empty: open_clip would silently use its English vocabulary.
    """
    if not name:
        raise UserError("the release needs a name: without one open_clip would use its English vocabulary")
    encoder = module.ema_encoder()
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip_config(encoder, name)
    if not module.tokenizer.has_files:  # open_clip then uses its English vocabulary
        config["model_cfg"]["text_cfg"].pop("hf_tokenizer_name")
    text_model = Path(config["model_cfg"]["text_cfg"].get("hf_model_name") or "")
    if (text_model / "config.json").is_file():
        shape = json.loads((text_model / "config.json").read_text(encoding="utf-8"))
        for word in ("_name_or_path", "auto_map"):  # paths of this machine, and names of code
            shape.pop(word, None)
        place = name if HUB_NAME.fullmatch(name) else TEXT_MODEL
        write_json(folder / place / "config.json", shape, indent=2)
        if place == name:  # a repository of this name on the hub has its config at the root
            write_json(folder / "config.json", shape, indent=2)
        config["model_cfg"]["text_cfg"]["hf_model_name"] = place
    write_json(folder / CONFIG, config, indent=2)
    save_file(plain_weights(encoder.plain_clip()), str(folder / WEIGHTS), metadata={"format": "pt"})
    if module.tokenizer.has_files:
        copy_tokenizer(module.tokenizer, folder)


def open_clip_config(encoder: DualEncoder, name: str) -> dict[str, Any]:
    """Return the content of open_clip_config.json: how to build the model and to preprocess images for it."""
    model = json.loads(json.dumps(encoder.config()))
    model["text_cfg"]["hf_tokenizer_name"] = name
    # Patch dropout is for training only.
    model["vision_cfg"].pop("patch_dropout", None)
    preprocess = {
        "size": encoder.image_size,
        "mode": "RGB",
        "mean": _decimals(encoder.get_buffer("image_mean")),
        "std": _decimals(encoder.get_buffer("image_std")),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of a model as separate, contiguous tensors on the CPU, as safetensors requires."""
    weights = {name: value.detach().to("cpu").clone().contiguous() for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"weight {name} is not finite: the run diverged, release an earlier checkpoint")
    return weights


def _decimals(values: Tensor) -> list[float]:
    """Return floats as written in the recipe: the shortest decimals of the same float32."""
    return [float(str(value)) for value in values.to("cpu", torch.float32).numpy()]

"""Image and text towers initialized from published open_clip weights or from a release of this project.

model:
  init_args:
    encoder:
      class_path: leam_mm.encoders.pretrained_encoder.PretrainedEncoder
      init_args: {weights: "ViT-B-32:laion2b_s34b_b79k"}

Nothing is downloaded, and no code in a weights file is executed. A checkpoint holds all weights. To rebuild a module
from it, only the model config is read again: open_clip_config.json of the folder, or the config of the open_clip model.
"""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch
from open_clip.factory import get_model_config, load_checkpoint
from open_clip.model import CLIP, CLIPTextCfg, CustomTextCLIP
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from leam_mm.checkpoint import REBUILDING
from leam_mm.encoders.dual_encoder import DualEncoder, TextTower, check_timm_name
from leam_mm.encoders.hugging_face_text import HuggingFaceText, transformers_config, transformers_folder
from leam_mm.encoders.low_rank import LowRank
from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.released_files import compare_released_files, released_part

log = logging.getLogger(__name__)
CONFIG = "open_clip_config.json"
FILES = tuple(
    f"{name}{ending}"
    for ending in (".safetensors", ".bin", ".pt", ".pth")
    for name in ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_CONFIG = 1 << 20  # bytes
RELEASED = ("open_clip_*", "tokenizer*.json", "special_tokens_map.json")  # files of an encoder in a release


class PretrainedEncoder(DualEncoder):
    """Dual encoder with the weights of an open_clip model.

    Args:
        weights: Folder with open_clip_config.json and weights, a release that has one, a weights file (safetensors, or
            loadable with ``weights_only=True``), or ``NAME:TAG`` of open_clip in the local cache.
        model: Name of an open_clip model, or a config file; only for a weights file without a config in its folder.
        image_size: H = W in pixels; None keeps that of the model. Position embeddings are interpolated to other sizes.
        context_length: L, tokens per caption; None keeps that of the model. Position embeddings are interpolated.
        patch_dropout: Share of image tokens dropped during training, in [0, 1).
        init_bias: Initial bias of the sigmoid loss if the weights have none; None adds no bias.
        low_rank: Train only low-rank additions to some matrices; None trains all weights.
    """

    def __init__(
        self,
        weights: str,
        model: str | None = None,
        image_size: int | None = None,
        context_length: int | None = None,
        patch_dropout: float = 0.0,
        init_bias: float | None = None,
        low_rank: LowRank | None = None,
    ) -> None:
        """See the class for the arguments."""
        nn.Module.__init__(self)
        file, config, preprocess = find_weights(weights, model)
        refuse_unknown(config, weights)
        vision, text = config["vision_cfg"], config["text_cfg"]
        self._resize(vision, text, image_size, context_length, weights)
        if patch_dropout:
            vision["patch_dropout"] = patch_dropout
        adds_bias = init_bias is not None and config.get("init_logit_bias") is None
        if adds_bias:
            config["init_logit_bias"] = init_bias
        clip = build_clip(config)
        self._origin: dict[str, str] = {}
        if file is not None and not REBUILDING.get():
            self._origin = {"weights": weights, "file": file.name, "sha256": file_sha256(file)}
            load_weights(clip, file)
            if adds_bias:  # open_clip sets a missing bias to 0
                nn.init.constant_(clip.logit_bias, float(init_bias or 0.0))
        self.text = text_settings(text)
        mean, std = (tuple(map(float, preprocess.get(key) or value)) for key, value in (("mean", MEAN), ("std", STD)))
        self._hold(clip, config, mean, std, low_rank)

    @staticmethod
    def _resize(
        vision: dict[str, Any], text: dict[str, Any], image_size: int | None, context_length: int | None, weights: str
    ) -> None:
        """Write the configured sizes into the config and log which position embeddings are interpolated."""
        native, length = vision.get("image_size", 224), text.get("context_length", 77)
        if isinstance(native, list | tuple):
            if len(set(native)) != 1:
                raise UserError(f"{weights} takes images of {native} pixels: only square ones are supported")
            native = native[0]
        vision["image_size"], text["context_length"] = image_size or native, context_length or length
        if vision["image_size"] != native:
            if vision.get("timm_model_name"):
                raise UserError(
                    f"{weights}: open_clip cannot load the timm image tower at another size: remove image_size, "
                    f"or set it to {native}"
                )
            log.info("image tower: positions interpolated from %d to %d pixels", native, vision["image_size"])
        if text["context_length"] != length and not text.get("hf_model_name"):
            log.info("text tower: positions interpolated from %d to %d tokens", length, text["context_length"])

    def origin(self) -> dict[str, str]:
        """Return the ``weights`` argument, the file name and its sha256; empty if rebuilt from a checkpoint."""
        return dict(self._origin)

    @property
    def _own_vocabulary(self) -> bool:
        """False: the vocabulary is that of the weights, and the tokenizer may have fewer tokens than the embedding."""
        return False


def find_weights(weights: str, model: str | None) -> tuple[Path | None, dict[str, Any], dict[str, Any]]:
    """Return the weights file, ``model_cfg`` and ``preprocess_cfg`` of a model.

    Returns:
        The file may be None if a module is rebuilt, because its weights come from its checkpoint.
    """
    path = released_part(weights, "encoder")
    name, _, tag = weights.partition(":")
    if path.is_dir():
        compare_released_files(path, RELEASED)
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None and not REBUILDING.get():
            raise UserError(f"{weights} holds none of {', '.join(FILES[:3])}, ...: give a folder with weights")
        config, preprocess = read_config(path / CONFIG)
        text_model = config["text_cfg"].get("hf_model_name")
        if text_model and (path / text_model / "config.json").is_file():  # as in a release of this project
            config["text_cfg"]["hf_model_name"] = str(path / text_model)
        return file, config, preprocess
    if path.is_file() or path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        if not path.is_file() and not REBUILDING.get():
            raise UserError(f"{weights} does not exist: give the path of a weights file")
        file = path if path.is_file() else None
        if model is None:
            return file, *read_config(path.parent / CONFIG)
        if Path(model).suffix == ".json":
            return file, *read_config(Path(model))
        return file, zoo_config(model), {}
    if re.fullmatch(r"[\w.-]+:[\w.-]+", weights):
        config, pretrained = zoo_config(name), get_pretrained_cfg(name, tag)
        if not pretrained:
            raise UserError(f"open_clip model {name} has no weights {tag!r}; there are {_listed(name)}")
        config["quick_gelu"] = bool(pretrained.get("quick_gelu", config.get("quick_gelu", False)))
        file = None if REBUILDING.get() else cached_file(name, tag, pretrained)
        return file, config, pretrained
    raise UserError(
        f"weights {weights!r} is not a folder, a file (.safetensors, .pt, .bin) or NAME:TAG of an open_clip model"
    )


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``model_cfg`` and ``preprocess_cfg`` of an open_clip_config.json; the file is validated."""
    if not file.is_file():
        raise UserError(f"{file} is missing: add it, or set model to the name of an open_clip model")
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content.get("model_cfg", content)
        if not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")) or "embed_dim" not in model:
            raise ValueError("embed_dim, vision_cfg or text_cfg is missing")
        return model, content.get("preprocess_cfg", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not a valid open_clip config ({str(error)[:120]}): replace the file") from None


def zoo_config(name: str) -> dict[str, Any]:
    """Return the config of an open_clip model by its name."""
    # With a colon, open_clip would ask a hub or read a folder.
    config = get_model_config(name) if re.fullmatch(r"[\w.-]+", name) else None
    if config is None:
        raise UserError(
            f"open_clip has no model {name!r}: see python -c 'import open_clip; print(open_clip.list_models())'"
        )
    return config


def cached_file(name: str, tag: str, pretrained: dict[str, Any]) -> Path:
    """Return the path of downloaded open_clip weights in the local cache."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = pretrained.get("hf_hub", "").rpartition("/")
    if repository:
        names = [file] if file else ["open_clip_model.bin", "open_clip_pytorch_model.bin"]
        safe = [re.sub(r"\.(bin|pt|pth)$", ".safetensors", each) for each in names]
        for each in dict.fromkeys(["open_clip_model.safetensors", *safe, *names]):
            found = try_to_load_from_cache(repository, each)
            if isinstance(found, str):
                return Path(found)
    elif pretrained.get("url"):
        found = os.path.expanduser(f"~/.cache/clip/{Path(pretrained['url']).name}")
        if os.path.isfile(found):
            return Path(found)
    raise UserError(
        f"the weights {name}:{tag} are not on this machine: run, with network access, "
        f"python -c \"import open_clip; open_clip.create_model('{name}', '{tag}')\", or give a folder or file"
    )


def refuse_unknown(config: dict[str, Any], weights: str) -> None:
    """Raise UserError for models whose training is not supported."""
    if "multimodal_cfg" in config:
        raise UserError(f"{weights} is a CoCa model, which is not supported: give a CLIP or SigLIP model")
    if config.get("nonscalar_logit_scale"):
        raise UserError(f"{weights} has a logit scale that is not a scalar: not supported")
    if config["text_cfg"].get("hf_pooler_type") == "max_pooler":
        raise UserError(f"{weights} uses max_pooler, which includes the padding in open_clip 3.3.0: not supported")


def build_clip(config: dict[str, Any]) -> Any:
    """Return an open_clip model with this config and random weights."""
    settings = json.loads(json.dumps(config))
    custom = settings.pop("custom_text", False) or bool(settings["text_cfg"].get("hf_model_name"))
    if settings["vision_cfg"].get("timm_model_name"):
        check_timm_name(str(settings["vision_cfg"]["timm_model_name"]))
        settings["vision_cfg"]["timm_model_pretrained"] = False
    if settings["text_cfg"].get("hf_model_name"):
        folder = str(transformers_folder(str(settings["text_cfg"]["hf_model_name"])))
        transformers_config(folder)  # open_clip would ask whether to run the folder's code
        settings["text_cfg"]["hf_model_name"] = folder
        settings["text_cfg"]["hf_model_pretrained"] = False
    try:
        return (CustomTextCLIP if custom else CLIP)(**settings)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"the model of this config cannot be built ({reason}): give a config that open_clip loads"
        ) from None


def load_weights(clip: nn.Module, file: Path) -> None:
    """Load weights without executing code; open_clip converts old names and interpolates position embeddings."""
    try:
        load_checkpoint(clip, str(file), strict=True, weights_only=True)
    except Exception as error:  # torch, safetensors and open_clip raise many types for invalid files
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        raise UserError(
            f"{file} cannot be loaded into these towers ({' '.join(lines[:2])[:200] or type(error).__name__}): give "
            "undamaged weights of this model, as safetensors or a PyTorch state dict"
        ) from None
    if not all(torch.isfinite(value).all() for value in clip.state_dict().values() if value.is_floating_point()):
        raise UserError(f"{file} holds weights that are NaN or infinite: give undamaged weights")


def text_settings(text: dict[str, Any]) -> TextTower | HuggingFaceText:
    """Return the options of the text tower for an open_clip ``text_cfg``."""
    if text.get("hf_model_name"):
        return HuggingFaceText(
            text["hf_model_name"],
            text["context_length"],
            text.get("hf_pooler_type", "mean_pooler"),
            text.get("hf_proj_type", "mlp"),
        )
    options = CLIPTextCfg(**{key: value for key, value in text.items() if key in CLIPTextCfg.__annotations__})
    return TextTower(options.context_length, options.vocab_size, options.width, options.heads, options.layers)


def _listed(name: str) -> str:
    tags = list_pretrained_tags_by_model(name)
    return ", ".join(sorted(tags)[:8]) or "none"

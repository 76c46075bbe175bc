"""Towers that start from published weights of open_clip, or from a release of ours.

model:
  init_args:
    encoder:
      class_path: leam_mm.encoders.pretrained_encoder.PretrainedEncoder
      init_args: {weights: "ViT-B-32:laion2b_s34b_b79k"}

Nothing is downloaded here, and nothing in a file of weights is executed. A checkpoint holds all weights; what it takes
from here once more is the towers' shape: the folder's open_clip_config.json, or the name in open_clip's zoo.
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
from leam_mm.encoders.dual_encoder import DualEncoder, TextTower
from leam_mm.encoders.hugging_face_text import HuggingFaceText, transformers_folder
from leam_mm.encoders.low_rank import LowRank
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

log = logging.getLogger(__name__)
CONFIG = "open_clip_config.json"
FILES = tuple(
    f"{name}{ending}"
    for ending in (".safetensors", ".bin", ".pt", ".pth")
    for name in ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MAX_CONFIG = 1 << 20  # bytes


class PretrainedEncoder(DualEncoder):
    """Two towers with the weights of a model that open_clip knows.

    Args:
        weights: A folder with open_clip_config.json and weights (such as a release's ``clip``), a file of weights
            (safetensors, or what torch loads without code), or ``NAME:TAG`` of open_clip's zoo, from the local cache.
        model: Name in open_clip's zoo, or a config file; only beside a file of weights that has no config next to it.
        image_size: H = W in pixels; None keeps the model's. Places of patches are interpolated to another size.
        context_length: L, tokens per caption; None keeps the model's. Places are interpolated to another length.
        patch_dropout: Share of image tokens left out in training, in [0, 1).
        init_bias: Of the sigmoid loss, where the weights have none; None adds none.
        low_rank: Train low-rank additions to some matrices, and nothing else.
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
        file, config, picture = find_weights(weights, model)
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
            if adds_bias:  # open_clip fills a missing one with 0
                nn.init.constant_(clip.logit_bias, float(init_bias or 0.0))
        self.text = text_settings(text)
        mean, std = (tuple(map(float, picture.get(key) or usual)) for key, usual in (("mean", MEAN), ("std", STD)))
        self._hold(clip, config, mean, std, low_rank)

    @staticmethod
    def _resize(
        vision: dict[str, Any], text: dict[str, Any], image_size: int | None, context_length: int | None, weights: str
    ) -> None:
        """Write the wanted sizes into the config, and say in one line each what will be interpolated."""
        native, length = vision.get("image_size", 224), text.get("context_length", 77)
        if isinstance(native, list | tuple):
            if len(set(native)) != 1:
                raise UserError(f"{weights} takes pictures of {native} pixels; only square ones are supported")
            native = native[0]
        vision["image_size"], text["context_length"] = image_size or native, context_length or length
        if vision["image_size"] != native:
            if vision.get("timm_model_name"):
                raise UserError(
                    f"{weights}: open_clip could not load its image tower of timm back at another size: leave "
                    f"image_size out, or set it to {native}"
                )
            log.info("image tower: places of patches interpolated from %d to %d pixels", native, vision["image_size"])
        if text["context_length"] != length and not text.get("hf_model_name"):
            log.info("text tower: places of tokens interpolated from %d to %d", length, text["context_length"])

    def origin(self) -> dict[str, str]:
        """The weights as they were named, their file and its sha256; empty in a module rebuilt from a checkpoint."""
        return dict(self._origin)

    @property
    def _own_vocabulary(self) -> bool:
        """The towers come with their vocabulary; a tokenizer may have fewer tokens than the embedding has rows."""
        return False


def find_weights(weights: str, model: str | None) -> tuple[Path | None, dict[str, Any], dict[str, Any]]:
    """The file of weights, the ``model_cfg`` and the ``preprocess_cfg`` of what the recipe names.

    Returns:
        The file is None where a module is rebuilt, whose weights come from its checkpoint.
    """
    place = Path(weights)
    name, _, tag = weights.partition(":")
    if place.is_dir():
        file = next((place / name for name in FILES if (place / name).is_file()), None)
        if file is None and not REBUILDING.get():
            raise UserError(f"{weights} holds none of {', '.join(FILES[:3])}, ...: give a folder with weights")
        config, picture = read_config(place / CONFIG)
        text_model = config["text_cfg"].get("hf_model_name")
        if text_model and (place / text_model / "config.json").is_file():  # as a release of ours has it
            config["text_cfg"]["hf_model_name"] = str(place / text_model)
        return file, config, picture
    if place.is_file() or place.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        if not place.is_file() and not REBUILDING.get():
            raise UserError(f"{weights} is not there: give the path of a file of weights")
        file = place if place.is_file() else None
        if model is None:
            return file, *read_config(place.parent / CONFIG)
        if Path(model).suffix == ".json":
            return file, *read_config(Path(model))
        return file, zoo_config(model), {}
    if re.fullmatch(r"[\w.-]+:[\w.-]+", weights):
        config, known = zoo_config(name), get_pretrained_cfg(name, tag)
        if not known:
            raise UserError(f"open_clip's {name} has no weights {tag!r}; there are {_listed(name)}")
        config["quick_gelu"] = bool(known.get("quick_gelu", config.get("quick_gelu", False)))
        file = None if REBUILDING.get() else cached_file(name, tag, known)
        return file, config, known
    raise UserError(
        f"weights {weights!r} are no folder, no file (.safetensors, .pt, .bin) and no NAME:TAG of open_clip's zoo"
    )


def read_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``model_cfg`` and ``preprocess_cfg`` of an open_clip_config.json; a stranger's file is not trusted."""
    if not file.is_file():
        raise UserError(f"{file} is missing: give the folder it lies in, or model: NAME of open_clip's zoo")
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it is larger than {MAX_CONFIG} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content.get("model_cfg", content)
        if not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")) or "embed_dim" not in model:
            raise ValueError("embed_dim, vision_cfg or text_cfg is missing")
        return model, content.get("preprocess_cfg", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is no config of open_clip ({str(error)[:120]}): give an intact one") from None


def zoo_config(name: str) -> dict[str, Any]:
    """The config of a model in open_clip's zoo."""
    config = get_model_config(name)
    if config is None:
        raise UserError(
            f"open_clip has no model {name!r}: python -c 'import open_clip; print(open_clip.list_models())'"
        )
    return config


def cached_file(name: str, tag: str, known: dict[str, Any]) -> Path:
    """Weights of the zoo that have been downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, file = known.get("hf_hub", "").rpartition("/")
    if repository:
        names = [file] if file else ["open_clip_model.bin", "open_clip_pytorch_model.bin"]
        safe = [re.sub(r"\.(bin|pt|pth)$", ".safetensors", each) for each in names]
        for each in dict.fromkeys(["open_clip_model.safetensors", *safe, *names]):
            found = try_to_load_from_cache(repository, each)
            if isinstance(found, str):
                return Path(found)
    elif known.get("url"):
        found = os.path.expanduser(f"~/.cache/clip/{Path(known['url']).name}")
        if os.path.isfile(found):
            return Path(found)
    raise UserError(
        f"the weights {name}:{tag} are not on this machine: where there is network, run "
        f"python -c \"import open_clip; open_clip.create_model('{name}', '{tag}')\", or give a folder or file"
    )


def refuse_unknown(config: dict[str, Any], weights: str) -> None:
    """Models that need another training than ours."""
    if "multimodal_cfg" in config:
        raise UserError(f"{weights} is a CoCa: its captioning tower is not trained here; give a CLIP or SigLIP model")
    if config.get("nonscalar_logit_scale"):
        raise UserError(f"{weights} has a temperature that is no scalar, which is not supported")
    if config["text_cfg"].get("hf_pooler_type") == "max_pooler":
        raise UserError(f"{weights} pools by max_pooler, which takes in the padding in open_clip 3.3.0: not supported")


def build_clip(config: dict[str, Any]) -> Any:
    """An open_clip model of this config, without weights."""
    settings = json.loads(json.dumps(config))
    custom = settings.pop("custom_text", False) or bool(settings["text_cfg"].get("hf_model_name"))
    if settings["vision_cfg"].get("timm_model_name"):
        settings["vision_cfg"]["timm_model_pretrained"] = False
    if settings["text_cfg"].get("hf_model_name"):
        settings["text_cfg"]["hf_model_name"] = str(transformers_folder(settings["text_cfg"]["hf_model_name"]))
        settings["text_cfg"]["hf_model_pretrained"] = False
    try:
        return (CustomTextCLIP if custom else CLIP)(**settings)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"the config of these weights cannot be built ({reason}): give one that open_clip loads"
        ) from None


def load_weights(clip: nn.Module, file: Path) -> None:
    """Load a file into the towers without running code; open_clip knows older names, and interpolates places."""
    try:
        load_checkpoint(clip, str(file), strict=True, weights_only=True)
    except Exception as error:  # torch, safetensors and open_clip raise half a dozen kinds for files that do not fit
        lines = [line.strip() for line in str(error).split("\n") if line.strip()]
        raise UserError(
            f"{file} cannot be loaded into these towers ({' '.join(lines[:2])[:200] or type(error).__name__}): give "
            "intact weights of this very model, as safetensors or as plain tensors of torch"
        ) from None
    if not all(torch.isfinite(value).all() for value in clip.state_dict().values() if value.is_floating_point()):
        raise UserError(f"{file} holds numbers that are not finite: give intact weights")


def text_settings(text: dict[str, Any]) -> TextTower | HuggingFaceText:
    """The text tower as our own settings name it."""
    if text.get("hf_model_name"):
        return HuggingFaceText(
            text["hf_model_name"],
            text["context_length"],
            text.get("hf_pooler_type", "mean_pooler"),
            text.get("hf_proj_type", "mlp"),
        )
    known = CLIPTextCfg(**{key: value for key, value in text.items() if key in CLIPTextCfg.__annotations__})
    return TextTower(known.context_length, known.vocab_size, known.width, known.heads, known.layers)


def _listed(name: str) -> str:
    tags = list_pretrained_tags_by_model(name)
    return ", ".join(sorted(tags)[:8]) or "none"

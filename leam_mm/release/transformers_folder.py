"""An encoder as a folder that transformers loads as CLIPModel: the same weights under other names.

transformers.CLIPModel.from_pretrained(FOLDER)
transformers.AutoTokenizer.from_pretrained(FOLDER)
transformers.CLIPImageProcessor.from_pretrained(FOLDER)

CLIPModel has one architecture: a vision transformer with a class token, and a causal text transformer that pools at the
end token. Other encoders are left out with a reason. The names of the weights are those of transformers 4 and 5.
"""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import TextTransformer, VisionTransformer
from safetensors.torch import save_file
from torch import Tensor, nn

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.encoders.dual_encoder import DualEncoder
from leam_mm.encoders.text_forward import text_tower
from leam_mm.files import write_json
from leam_mm.release.clip_weight_names import text_weights, vision_weights
from leam_mm.release.open_clip_folder import open_clip_config, plain_weights

log = logging.getLogger(__name__)
CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
BICUBIC = 3  # of PIL
LEGACY_END = 2  # with this id of the end token, CLIPTextModel pools at the highest id
# Settings of open_clip that change the network, and their values in CLIPModel.
BLOCKS: dict[str, Any] = {
    "ls_init_value": None, "block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False,
    "scale_attn_inner": False, "scale_attn": False, "scale_fc": False, "act_kwargs": None,
}  # fmt: skip
VISION = BLOCKS | {"attentional_pool": False, "no_ln_pre": False, "pool_type": "tok"}
TEXT = BLOCKS | {"embed_cls": False, "no_causal_mask": False, "proj_bias": False, "proj_type": "linear"}


def write_transformers_folder(module: ContrastiveModule, folder: Path) -> str | None:
    """Write the encoder in the layout of CLIPModel, if its architecture allows; the tokenizer is written elsewhere.

    Args:
        module: The trained module.
        folder: The release folder, with the files of the tokenizer.

    Returns:
        None, or the reason why nothing was written.
    """
    encoder = module.ema_encoder()
    if reason := why_not(encoder, module.tokenizer):
        log.warning("the release holds no CLIPModel of transformers: %s", reason)
        return reason
    if encoder.clip.logit_bias is not None:
        bias = encoder.clip.logit_bias.item()
        log.warning(
            "CLIPModel adds no logit bias: add %.4f to its logits before a sigmoid (%s: logit_bias)", bias, CONFIG
        )
    write_json(folder / CONFIG, clip_config(encoder, module.tokenizer), indent=2)
    write_json(folder / PROCESSOR, processor_config(encoder), indent=2)
    save_file(clip_weights(encoder), str(folder / WEIGHTS), metadata={"format": "pt"})
    return None


def why_not(encoder: DualEncoder, tokenizer: Tokenizer) -> str | None:
    """Return the reason why CLIPModel cannot compute the embeddings of an encoder, or None if it can."""
    clip, text = encoder.clip, text_tower(encoder.clip)
    for name, tower, kinds in (("image", clip.visual, VisionTransformer), ("text", text, (TextTransformer, CLIP))):
        if not isinstance(tower, kinds):
            return f"its {name} tower is a {type(tower).__name__}"
    config = encoder.config()
    vision = asdict(CLIPVisionCfg(**config["vision_cfg"]))
    text_settings = asdict(CLIPTextCfg(**config["text_cfg"]))
    for name, settings, wanted in (("image", vision, VISION), ("text", text_settings, TEXT)):
        for key, value in wanted.items():
            if settings[key] != value:
                return f"its {name} tower has {key} = {settings[key]!r}"
    if text_settings["pool_type"] not in ("argmax", "eos"):
        return f"its text tower has pool_type = {text_settings['pool_type']!r}"
    if text_settings["pool_type"] == "eos" and tokenizer.end == LEGACY_END:
        return f"the end token has id {LEGACY_END}, for which transformers pools at the highest id"
    if text_settings["tokenizer_kwargs"] or text_settings["tokenizer_mode"]:
        return "open_clip prepares its captions with tokenizer_kwargs or tokenizer_mode"
    if not tokenizer.has_files:
        return "its English vocabulary is inside open_clip"
    return None


def clip_config(encoder: DualEncoder, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json."""
    config, clip = encoder.config(), encoder.clip
    vision, text = asdict(CLIPVisionCfg(**config["vision_cfg"])), asdict(CLIPTextCfg(**config["text_cfg"]))
    # open_clip's default is the exact GELU; that of transformers is quick_gelu
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    ids = {"bos_token_id": tokenizer.begin, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.pad}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "torch_dtype": "float32",
        "projection_dim": encoder.embed_dim,
        "logit_scale_init_value": clip.logit_scale.item(),
        **(
            {} if clip.logit_bias is None else {"logit_bias": clip.logit_bias.item()}
        ),  # for readers; CLIPModel has none
        **ids,
        "vision_config": {
            "model_type": "clip_vision_model",
            **_blocks(vision, clip.visual.transformer),
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": encoder.image_size,
            "patch_size": vision["patch_size"],
            "projection_dim": encoder.embed_dim,
            "hidden_act": activation,
        },
        "text_config": {
            "model_type": "clip_text_model",
            **_blocks(text, text_tower(clip).transformer),
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": encoder.context_length,
            "projection_dim": encoder.embed_dim,
            "hidden_act": activation,
            **ids,
        },
    }


def _blocks(settings: dict[str, Any], transformer: Any) -> dict[str, Any]:
    return {
        "hidden_size": settings["width"],
        "intermediate_size": int(settings["width"] * settings["mlp_ratio"]),
        "num_hidden_layers": settings["layers"],
        "layer_norm_eps": transformer.resblocks[0].ln_1.eps,
    }


def processor_config(encoder: DualEncoder) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: shortest side resized, centre cropped, normalised."""
    preprocess = open_clip_config(encoder, "")["preprocess_cfg"]
    size = encoder.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }


def clip_weights(encoder: DualEncoder) -> dict[str, Tensor]:
    """Return the state of CLIPModel, as separate tensors on the CPU."""
    plain: Any = encoder.plain_clip()
    tower: nn.Module = text_tower(plain)
    vision, text = plain_weights(plain.visual), plain_weights(tower)
    projection = text["text_projection"] if "text_projection" in text else text["text_projection.weight"].T
    renamed = {
        **{f"vision_model.{name}": value for name, value in vision_weights(vision).items()},
        **{f"text_model.{name}": value for name, value in text_weights(text).items()},
        "visual_projection.weight": vision["proj"].T,
        "text_projection.weight": projection.T,
        "logit_scale": plain.logit_scale.detach().to("cpu").clone(),
    }
    return {name: value.clone().contiguous() for name, value in renamed.items()}

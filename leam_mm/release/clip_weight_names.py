"""Names of CLIP weights: from open_clip to transformers.

open_clip keeps the three input projections of an attention as one matrix with rows in the order query, key, value, and
the projections of the towers as (in, out) for a product from the right; transformers has separate linear layers.
"""

import re

from torch import Tensor

# open_clip's names inside a block -> those of transformers; in_proj is split into q, k and v.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def text_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a text tower's weights, without the projection.

    Args:
        weights: State of open_clip's CLIP or TextTransformer; other entries are ignored.
    """
    return {
        "embeddings.token_embedding.weight": weights["token_embedding.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
        "final_layer_norm.weight": weights["ln_final.weight"],
        "final_layer_norm.bias": weights["ln_final.bias"],
        **block_weights(weights),
    }


def vision_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename an image tower's weights, without the projection.

    Args:
        weights: State of open_clip's VisionTransformer.
    """
    return {
        "embeddings.class_embedding": weights["class_embedding"],
        "embeddings.patch_embedding.weight": weights["conv1.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
        "pre_layrnorm.weight": weights["ln_pre.weight"],  # transformers' own spelling
        "pre_layrnorm.bias": weights["ln_pre.bias"],
        "post_layernorm.weight": weights["ln_post.weight"],
        "post_layernorm.bias": weights["ln_post.bias"],
        **block_weights(weights),
    }


def block_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of the blocks of one tower."""
    renamed = {}
    for name, value in weights.items():
        block = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if block is None:
            continue
        layer, part, kind = f"encoder.layers.{block[1]}", block[2], block[3]
        if part == "attn.in_proj":
            for projection, piece in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{layer}.self_attn.{projection}_proj.{kind}"] = piece.clone()
        else:
            renamed[f"{layer}.{BLOCK_NAMES[part]}.{kind}"] = value
    return renamed

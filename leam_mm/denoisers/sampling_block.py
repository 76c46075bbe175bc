"""The blocks of PRX in the steps of a sampler: the same computation with fewer passes over the tokens.

For one caption, most of a step on a CPU is not matrix products but norms, rotations and modulations, each of which
diffusers spells out in several operations that keep their inputs for a backward pass. A sampler needs none.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_prx import PRXBlock
from torch import Tensor

from leam_mm.denoisers.attention_processors import MaskedProcessor
from leam_mm.denoisers.block_step import Tokens
from leam_mm.denoisers.caption_cache import CaptionKeysValues


def runs_plain(blocks: Any, values: Tensor) -> bool:
    """Return whether ``run_plain`` computes what these blocks compute from tokens (B, N, E)."""
    if torch.is_grad_enabled() or values.dtype != torch.float32 or torch.is_autocast_enabled(values.device.type):
        return False
    return all(
        type(block) is PRXBlock
        and type(block.attention.processor) is MaskedProcessor
        and not (block._forward_hooks or block._forward_pre_hooks)
        for block in blocks
    )


class Modulations(NamedTuple):
    """Shifts, scales and gates of the blocks, each (B, 6 E) or (1, 6 E), and of the output layer, (B or 1, 2 E)."""

    blocks: list[Tensor]
    final: Tensor

    @classmethod
    def of(cls, model: Any, embedding: Tensor) -> "Modulations":
        """Compute them from the time embedding (B, E)."""
        activated = F.silu(embedding)
        blocks = [block.modulation.lin(activated) for block in model.blocks]
        return cls(blocks, model.final_layer.adaLN_modulation(embedding))


class TimeTable:
    """Modulations at all times of a sampler, computed together, which reads the weights once.

    Args:
        times: (S,) on the CPU; None if they are not known.
    """

    def __init__(self, times: Tensor | None) -> None:
        """See the class for the arguments."""
        self.times = times
        self._rows: dict[float, int] = {}
        if times is not None:
            self._rows = {time: row for row, time in enumerate(times.tolist())}
        self._all: Modulations | None = None

    def find(self, model: Any, time: Tensor) -> Modulations | None:
        """Return the modulations for times (B,) that are all equal and known; None for others.

        On a GPU it is always None, since looking at the times would wait for it.
        """
        if not self._rows or time.device.type != "cpu" or not bool((time == time[0]).all()):
            return None
        row = self._rows.get(float(time[0]))
        if row is None:
            return None
        if self._all is None:
            assert self.times is not None
            self._all = Modulations.of(model, model._compute_timestep_embedding(self.times, dtype=torch.float32))
        return Modulations([block[row, None] for block in self._all.blocks], self._all.final[row, None])


def run_plain(
    model: Any, tokens: Tokens, text: CaptionKeysValues, modulations: Modulations, mask: Tensor | None
) -> Tensor:
    """Run all blocks and the output layer.

    Args:
        model: PRXTransformer2DModel of diffusers.
        tokens: Input of the first block, with rotation.
        text: Keys and values of the captions.
        modulations: At the time of each sample.
        mask: (B, L) bool, True at real caption tokens; None masks nothing.

    Returns:
        (B, N, C p q), the patches.
    """
    assert tokens.rotary is not None
    values = tokens.values
    rotation = torch.complex(tokens.rotary[..., 0, 0], tokens.rotary[..., 1, 0])  # (1, 1, N, d / 2)
    rotation = rotation.transpose(1, 2)[:, :, None]
    keys = None if mask is None else F.pad(mask.bool(), (0, values.shape[1]), value=True)[:, None, None]
    for block, modulation in zip(model.blocks, modulations.blocks, strict=True):
        values = _run(block, values, text, modulation, rotation, keys)
    shift, scale = modulations.final[:, None].chunk(2, dim=-1)
    return model.final_layer.linear(torch.addcmul(shift, model.final_layer.norm_final(values), 1 + scale))


def _run(
    block: Any, values: Tensor, text: CaptionKeysValues, modulation: Tensor, rotation: Tensor, keys: Tensor | None
) -> Tensor:
    shift, scale, gate, late_shift, late_scale, late_gate = modulation[:, None].chunk(6, dim=-1)
    states = torch.addcmul(shift, block.img_pre_norm(values), 1 + scale)
    values = torch.addcmul(values, gate, _attend(block.attention, states, text, rotation, keys))
    states = torch.addcmul(late_shift, block.post_attention_layernorm(values), 1 + late_scale)
    hidden = block.mlp_act(block.gate_proj(states)).mul_(block.up_proj(states))
    return torch.addcmul(values, late_gate, block.down_proj(hidden))


def _attend(attn: Any, states: Tensor, text: CaptionKeysValues, rotation: Tensor, keys: Tensor | None) -> Tensor:
    batch, count, _ = states.shape
    heads = attn.img_qkv_proj(states).view(batch, count, 3, attn.heads, attn.head_dim)
    both = heads[:, :, :2]  # queries and keys
    norms = torch.stack([attn.norm_q.weight, attn.norm_k.weight])[:, None]
    both = both * torch.rsqrt(both.square().mean(-1, keepdim=True).add_(attn.norm_q.eps))
    pairs = torch.view_as_complex(both.mul_(norms).unflatten(-1, (-1, 2)))
    query, image_key = torch.view_as_real(pairs * rotation).flatten(-2).permute(2, 0, 3, 1, 4)
    key, value = text.of(attn)
    key = torch.cat([key, image_key], dim=2)
    value = torch.cat([value, heads[:, :, 2].transpose(1, 2)], dim=2)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=keys).transpose(1, 2).flatten(2)
    for layer in attn.to_out:
        out = layer(out)
    return out

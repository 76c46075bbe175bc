"""Low-rank adaptation (LoRA, 2106.09685) of a base model to a small domain.

model:
  init_args:
    encoder:
      class_path: leam_mm.encoders.pretrained_encoder.PretrainedEncoder
      init_args: {weights: runs/base/release/clip, low_rank: {rank: 8, alpha: 16}}

W x becomes W x + alpha / rank B A x (Eq. 3 of 2106.09685) with A random and B zero, so training starts from the base.
Only A and B are trained: W has no gradient and no optimizer state. Layers keep their names and weights; A and B are
further parameters of the same layers. Queries, keys and values of torch's attention are one matrix and share one A.
A checkpoint includes the base, so it can be resumed, evaluated and released alone. A release has the merged weights.
"""

import copy
import fnmatch
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.encoders.token_layout import LayoutAttention, TokenLayout
from leam_mm.errors import UserError

log = logging.getLogger(__name__)


@dataclass
class LowRank:
    """Settings of the low-rank additions.

    Args:
        rank: Rank of the additions, at least 1.
        alpha: Scale of the additions times the rank, above 0.
        patterns: Names of layers inside the repeated blocks of the network, with ``*`` and ``?``, such as
            ``visual.*.mlp.*`` or ``transformer.*.attn``. Each must match a linear layer or an attention of torch.
    """

    rank: int = 8
    alpha: float = 16.0
    patterns: list[str] = field(default_factory=lambda: ["*"])

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rank < 1 or not self.alpha > 0:
            raise UserError(
                f"low_rank: rank is {self.rank} and alpha {self.alpha}: give a rank of at least 1 and alpha > 0"
            )

    def add_to(self, network: nn.Module) -> list[nn.Module]:
        """Add low-rank parameters to the matching matrices, freeze all others, and log the number trained.

        Returns:
            Batch norm layers, which must stay in evaluation mode.
        """
        layers = _matrices(network)
        chosen: set[str] = set()
        for pattern in self.patterns:
            found = fnmatch.filter(layers, pattern)
            if not found:
                raise UserError(
                    f"low_rank: no matrix in a repeated block is named {pattern!r}; there are "
                    + (", ".join(sorted(layers)[:8]) or "none in this network")
                )
            chosen.update(found)
        network.requires_grad_(False)
        for name in sorted(chosen):
            self._add(layers[name])
        trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
        whole = sum(weight.numel() for weight in network.parameters())
        log.info("low rank %d on %d matrices: %d of %d parameters are trained", self.rank, len(chosen), trained, whole)
        return [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]

    def _add(self, layer: Any) -> None:
        attention = isinstance(layer, nn.MultiheadAttention)
        weight = layer.in_proj_weight if attention else layer.weight
        first = torch.empty(self.rank, weight.shape[1], dtype=weight.dtype)
        nn.init.kaiming_uniform_(first, a=math.sqrt(5))  # the initialisation of nn.Linear
        layer.low_rank_first = nn.Parameter(first)
        layer.low_rank_second = nn.Parameter(torch.zeros(weight.shape[0], self.rank, dtype=weight.dtype))
        layer.low_rank_scale, layer.plain_class = self.alpha / self.rank, type(layer)
        layer.__class__ = LowRankAttention if attention else LowRankLinear  # the object stays the same

    def merged(self, network: nn.Module) -> nn.Module:
        """Return a copy of the network with the additions merged into its weights."""
        plain: Any = copy.deepcopy(network)
        for layer in plain.modules():
            if isinstance(layer, LowRankLinear | LowRankAttention):
                weight = layer.in_proj_weight if isinstance(layer, LowRankAttention) else layer.weight
                product = layer.low_rank_second.detach().double() @ layer.low_rank_first.detach().double()
                weight.data.add_((layer.low_rank_scale * product).to(weight.dtype))
                del layer.low_rank_first, layer.low_rank_second
                layer.__class__ = layer.plain_class
        return plain


class LowRankLinear(nn.Linear):
    """Linear layer with a low-rank addition."""

    low_rank_first: nn.Parameter
    low_rank_second: nn.Parameter
    low_rank_scale: float
    plain_class: type

    def forward(self, input: Tensor) -> Tensor:
        """Return the sum of the frozen and the low-rank product: (..., in) -> (..., out)."""
        return F.linear(input, self.weight, self.bias) + _addition(self, input)


class LowRankAttention(LayoutAttention):
    """Self-attention with a low-rank addition to the joint matrix of queries, keys and values."""

    low_rank_first: nn.Parameter
    low_rank_second: nn.Parameter
    low_rank_scale: float
    plain_class: type

    def project(self, tokens: Tensor) -> Tensor:
        """Return concatenated queries, keys and values: (..., E) -> (..., 3 E)."""
        return super().project(tokens) + _addition(self, tokens)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | TokenLayout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over a packed batch, or (B, L, E) with an additive mask (L, L); torch's forward omits the addition."""
        if isinstance(attn_mask, TokenLayout):
            return super().forward(query, key, value, need_weights, attn_mask)
        assert key is query and value is query and not need_weights
        parts = self.project(query).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3)  # (B, K, 3, L, E / K)
        query, key, value = parts.unbind(2)
        mask = attn_mask.to(query.dtype) if attn_mask is not None else None
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def _addition(layer: LowRankLinear | LowRankAttention, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, layer.low_rank_first), layer.low_rank_second) * layer.low_rank_scale


def _matrices(network: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers and self-attentions inside the repeated blocks, by name."""
    inside = {layer for block in repeated_blocks(network) for layer in block.modules()}
    return {name: layer for name, layer in network.named_modules() if layer in inside and _is_matrix(layer)}


def _is_matrix(layer: nn.Module) -> bool:
    if isinstance(layer, nn.MultiheadAttention):
        return layer.in_proj_weight is not None and layer.batch_first and layer.dropout == 0
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward

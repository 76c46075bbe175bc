"""Activations that a training step keeps for its backward pass, counted without memory on the meta device.

Counted are the tensors that autograd saves, each storage once; weights are not activations. Attention is counted as its
fused kernels keep it: queries, keys, values, output and a number per query, but no attention matrix.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode


class FusedAttention(torch.autograd.Function):
    """Stands for a fused attention kernel: saves what it saves, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Save the inputs, the output and the logarithm of each row's sum: (B, K, N, d) -> (B, K, N, e)."""
        heads, tokens = query.shape[-3], query.shape[-2]  # kernels return a view of (B, N, K, e)
        output = query.new_empty(*query.shape[:-3], tokens, heads, value.shape[-1]).transpose(-3, -2)
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Return gradients of the right shapes."""
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _FusedMode(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            return FusedAttention.apply(query, key, value)
        return func(*args, **(kwargs or {}))


@dataclass
class SavedTensors:
    """Storages that autograd saved.

    Args:
        size: Bytes.
        blocks: Bytes saved by each watched block, in the order of their calls.
        inputs: Bytes of the input of each watched block.
    """

    size: int = 0
    blocks: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    _seen: set[int] = field(default_factory=set)
    _kept: list[Tensor] = field(default_factory=list)

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage unless it was counted, or is a weight's."""
        base = tensor if tensor._base is None else tensor._base
        storage = tensor.untyped_storage()
        if isinstance(base, nn.Parameter) or storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self._kept.append(tensor)  # a freed storage's address would be used again
        self.size += storage.nbytes()

    def checkpointed(self) -> int:
        """Return the bytes if each watched block keeps its input only and is computed again."""
        return self.size - sum(self.blocks) + sum(self.inputs) + max(self.blocks, default=0)


@contextmanager
def count_saved(blocks: Sequence[nn.Module] = ()) -> Iterator[SavedTensors]:
    """Context in which the tensors that autograd saves are counted."""
    saved, before = SavedTensors(), []

    def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        saved.inputs.append(first.untyped_storage().nbytes())
        before.append(saved.size)

    def leave(block: nn.Module, args: Any, output: Any) -> None:
        saved.blocks.append(saved.size - before.pop())

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor)
        return tensor

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(leave) for block in blocks]
    try:
        with saved_tensors_hooks(pack, lambda tensor: tensor), _FusedMode():
            yield saved
    finally:
        for handle in handles:
            handle.remove()

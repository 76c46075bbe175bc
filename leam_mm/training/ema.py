"""Exponential moving average of a network's weights, the copy that is sampled, evaluated and released."""

import copy

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Keep a frozen shadow of a network: shadow <- decay shadow + (1 - decay) weights, once per optimizer step.

    The shadow and the count of updates are part of the state_dict, so a resumed run goes on with the very same average.
    All weights are moved by one fused call, without a copy.

    Args:
        model: The network to follow; it is copied as it is now.
        decay: In [0, 1). 0.9999 averages over the last ten thousand steps or so.
        ramp: Average over a shorter past while there is none: the decay of update n is min(decay, (1 + n) / (10 + n)).
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float, ramp: bool = True) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA lies in [0, 1), got {decay}")
        self.decay = decay
        self.ramp = ramp
        self.model = copy.deepcopy(unwrap(model)).requires_grad_(False).eval()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # The same number on the host, so that a GPU is asked for it once and not at every step.
        self._counted: int | None = None
        self.register_load_state_dict_post_hook(_forget_count)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadow towards the network's present weights; call it once after each optimizer step."""
        source = unwrap(model)
        decay = self.decay
        if self.ramp:
            count = int(self.updates) if self._counted is None else self._counted
            self._counted = count + 1
            decay = min(decay, (1 + count) / (10 + count))
        weights = dict(source.named_parameters())
        shadow = list(self.model.named_parameters())
        torch._foreach_lerp_([value for _, value in shadow], [weights[name].detach() for name, _ in shadow], 1 - decay)
        # Buffers are statistics, not weights: an average of them means nothing, so they are copied.
        for mine, theirs in zip(self.model.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def train(self, mode: bool = True) -> "Ema":
        """Stay in evaluation mode: the shadow is never trained."""
        return super().train(False)


def _forget_count(module: nn.Module, incompatible: object) -> None:
    module._counted = None  # type: ignore[assignment]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile's wrappers."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)  # where torch.compile keeps the network it wraps
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model

"""Exponential moving average of a network's weights, the copy that is sampled, evaluated and released."""

import copy
import weakref
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Keep a frozen shadow of a network: shadow <- decay shadow + (1 - decay) weights, once per optimizer step.

    The shadow and the count of updates are part of the state_dict, so a resumed run goes on with the very same average.
    All weights are moved by one fused call, without a copy: it reads both and writes one, 12 bytes a weight of float32,
    and its time is that of the memory. The network keeps its layers from the first update on; their weights may be
    replaced (sharding does).

    Args:
        model: The network to follow; it is copied as it is now.
        decay: In [0, 1). 0.9999 averages over the last ten thousand steps or so.
        ramp: Average over a shorter past while there is none: the decay of update n is min(decay, (1 + n) / (10 + n)).
    """

    updates: Tensor
    model: nn.Module

    def __init__(self, model: nn.Module, decay: float, ramp: bool = True) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA lies in [0, 1), got {decay}")
        self.decay = decay
        self.ramp = ramp
        self.model = frozen_copy(model)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # The same number on the host, so that a GPU is asked for it once and not at every step.
        self._counted: int | None = None
        self._places: _Places | None = None
        self.register_load_state_dict_post_hook(_forget_count)

    def copies(self) -> list[nn.Module]:
        """All networks that are kept here, the one that is sampled first."""
        return [self.model]

    def shares(self, count: int) -> list[float]:
        """What the present weights get in each copy, after `count` updates before this one."""
        return [1 - (min(self.decay, (1 + count) / (10 + count)) if self.ramp else self.decay)]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the shadow towards the network's present weights; call it once after each optimizer step."""
        source = unwrap(model)
        copies = self.copies()
        count = int(self.updates) if self._counted is None else self._counted
        self._counted = count + 1
        if self._places is None or self._places.source() is not source:
            self._places = _Places(source, copies)
        weights, *shadows = self._places.weights()
        for shadow, share in zip(shadows, self.shares(count), strict=True):
            torch._foreach_lerp_(shadow, weights, share)
        # Buffers are statistics, not weights: an average of them means nothing, so they are copied.
        buffers, *kept = self._places.buffers()
        for copied in kept if buffers else ():
            torch._foreach_copy_(copied, buffers)
        self.updates += 1

    def train(self, mode: bool = True) -> "Ema":
        """Stay in evaluation mode: the shadow is never trained."""
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """A copy of this finds the layers of its own network anew."""
        return {**self.__dict__, "_places": None}


class Averaging(ABC):
    """A kind of average that a recipe names, before there is a network to follow."""

    @abstractmethod
    def follow(self, model: nn.Module) -> Ema:
        """Begin the average of this network's weights."""


def start_average(model: nn.Module, average: float | Averaging | None) -> Ema | None:
    """Start the average of a network's weights.

    Args:
        model: The network to follow.
        average: Decay per optimizer step in [0, 1), or another kind of average; None keeps none.
    """
    if average is None:
        return None
    return average.follow(model) if isinstance(average, Averaging) else Ema(model, average)


class _Places:
    """Where the weights and buffers of a network and of its copies stand, found once.

    Walking through the layers takes longer than a GPU needs for the average of all of them.
    """

    def __init__(self, source: nn.Module, copies: list[nn.Module]) -> None:
        self.source = weakref.ref(source)
        trees = [dict(module.named_modules()) for module in (source, *copies)]
        weights = [name.rpartition(".") for name, _ in source.named_parameters()]  # tied ones once
        buffers = [name.rpartition(".") for name, _ in source.named_buffers()]
        # For the network and each copy: the dictionary of the layer that holds it, and its name there.
        self.of_weights = [[(tree[layer]._parameters, name) for layer, _, name in weights] for tree in trees]
        self.of_buffers = [[(tree[layer]._buffers, name) for layer, _, name in buffers] for tree in trees]

    def weights(self) -> list[list[Tensor]]:
        """The network's weights now, then those of each copy in the same order."""
        return [[layer[name] for layer, name in places] for places in self.of_weights]  # type: ignore[misc]

    def buffers(self) -> list[list[Tensor]]:
        """The same of the buffers."""
        return [[layer[name] for layer, name in places] for places in self.of_buffers]  # type: ignore[misc]


def frozen_copy(model: nn.Module) -> nn.Module:
    """The network as it is now, in evaluation mode and without gradients."""
    return copy.deepcopy(unwrap(model)).requires_grad_(False).eval()


def _forget_count(module: nn.Module, incompatible: object) -> None:
    module._counted = None  # type: ignore[assignment]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile's wrappers."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)  # where torch.compile keeps the network it wraps
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model

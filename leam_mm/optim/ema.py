"""Exponential moving average of a network's weights, which is evaluated and released in place of the last weights."""

import copy
import weakref
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """Average of a network's weights: average <- decay average + (1 - decay) weights, once per optimizer step.

    The average and the number of updates are part of the state_dict, so a resumed run continues the same average. One
    fused call updates all weights. Layers of the network must not be replaced after the first update; their weights may
    be (sharding does so).

    Args:
        model: The network to follow; the average starts as a copy of it.
        decay: In [0, 1). 0.9999 averages over about the last ten thousand steps.
        ramp: Use a smaller decay at the start: that of update n is min(decay, (1 + n) / (10 + n)).
    """

    updates: Tensor
    model: nn.Module

    def __init__(self, model: nn.Module, decay: float, ramp: bool = True) -> None:
        """See the class for the arguments."""
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay is {decay}, but must be in [0, 1)")
        self.decay = decay
        self.ramp = ramp
        self.model = frozen_copy(model)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # The same count on the host, which saves a device synchronisation per step; None until it is read.
        self._host_updates: int | None = None
        self._layers: _Layers | None = None
        self.register_load_state_dict_post_hook(_reset_host_updates)

    def copies(self) -> list[nn.Module]:
        """Return all averaged networks; the first is evaluated and released."""
        return [self.model]

    def shares(self, count: int) -> list[float]:
        """Return the weight of the current parameters in each average, after ``count`` earlier updates."""
        return [1 - (min(self.decay, (1 + count) / (10 + count)) if self.ramp else self.decay)]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the averages from the network's weights; call it once after each optimizer step."""
        source = unwrap(model)
        copies = self.copies()
        count = int(self.updates) if self._host_updates is None else self._host_updates
        self._host_updates = count + 1
        if self._layers is None or self._layers.source() is not source:
            self._layers = _Layers(source, copies)
        weights, *averages = self._layers.weights()
        for average, share in zip(averages, self.shares(count), strict=True):
            torch._foreach_lerp_(average, weights, share)
        # Buffers (batch norm statistics) are copied, not averaged.
        buffers, *kept = self._layers.buffers()
        for copied in kept if buffers else ():
            torch._foreach_copy_(copied, buffers)
        self.updates += 1

    def train(self, mode: bool = True) -> "Ema":
        """Stay in evaluation mode."""
        return super().train(False)

    def __getstate__(self) -> dict[str, Any]:
        """Exclude the cached layers, since a copy follows another network."""
        return {**self.__dict__, "_layers": None}


class Averaging(ABC):
    """Configuration of an average in a recipe, before the network exists."""

    @abstractmethod
    def follow(self, model: nn.Module) -> Ema:
        """Return a new average of this network's weights."""


def start_average(model: nn.Module, average: float | Averaging | None) -> Ema | None:
    """Start the average of a network's weights.

    Args:
        model: The network to follow.
        average: Decay per optimizer step in [0, 1), or another kind of average; None keeps none.
    """
    if average is None:
        return None
    return average.follow(model) if isinstance(average, Averaging) else Ema(model, average)


class _Layers:
    """Parameter and buffer dictionaries of the layers of a network and of its averages.

    They are collected once: walking through the layers takes longer than a GPU needs to update the average.
    """

    def __init__(self, source: nn.Module, copies: list[nn.Module]) -> None:
        self.source = weakref.ref(source)
        trees = [dict(module.named_modules()) for module in (source, *copies)]
        weights = [name.rpartition(".") for name, _ in source.named_parameters()]  # tied weights once
        buffers = [name.rpartition(".") for name, _ in source.named_buffers()]
        # For the network and each average: the layer's dictionary and the name in it.
        self.of_weights = [[(tree[layer]._parameters, name) for layer, _, name in weights] for tree in trees]
        self.of_buffers = [[(tree[layer]._buffers, name) for layer, _, name in buffers] for tree in trees]

    def weights(self) -> list[list[Tensor]]:
        """Return the network's weights, then those of each average, in the same order."""
        return [[layer[name] for layer, name in entries] for entries in self.of_weights]  # type: ignore[misc]

    def buffers(self) -> list[list[Tensor]]:
        """Return the buffers, likewise."""
        return [[layer[name] for layer, name in entries] for entries in self.of_buffers]  # type: ignore[misc]


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the network in evaluation mode and without gradients."""
    return copy.deepcopy(unwrap(model)).requires_grad_(False).eval()


def _reset_host_updates(module: nn.Module, incompatible: object) -> None:
    module._host_updates = None  # type: ignore[assignment]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside the wrappers of DistributedDataParallel and torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    compiled = getattr(model, "_orig_mod", None)  # the attribute of torch.compile's wrapper
    return unwrap(compiled) if isinstance(compiled, nn.Module) else model

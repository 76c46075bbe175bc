"""Sharding of weights, gradients and optimizer states over the ranks (torch's FSDP2), for models larger than a device.

The average of the weights is sharded like the network, and is updated shard by shard. Scalars (temperature, bias) are
replicated on every rank, and their gradients averaged. A checkpoint has the layout of a run on one device, in one file
or in parts: any number of ranks, sharded or not, can resume it, and ``load_module`` reads it.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from leam_mm.checkpoint import AtomicCheckpointIO, find_checkpoint, read_places
from leam_mm.checkpoint_generations import LAST
from leam_mm.checkpoint_shards import SHARDS
from leam_mm.distributed import any_rank
from leam_mm.encoders.repeated_blocks import repeated_blocks
from leam_mm.optim.sharded_parts import Group, gather_whole, open_parts_together, read_shard, save_parts

log = logging.getLogger(__name__)
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard_blocks(module: nn.Module, mesh: DeviceMesh, methods: Sequence[str] = ()) -> None:
    """Shard a network over the data-parallel ranks: each block is a group, and the rest is one more group.

    A network that is already sharded is not changed.

    Args:
        module: A tower, a pair of towers, or a denoiser.
        mesh: The strategy's device mesh, with a dimension ``data_parallel``.
        methods: Names of methods besides ``forward`` that use the weights.
    """
    if isinstance(module, FSDPModule):
        return
    for value in [*module.parameters(), *module.buffers()]:
        dist.broadcast(value.data, src=0)  # as DDP does: all ranks start from the weights of rank 0
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP2 cannot shard channels-last kernels
    ranks = mesh["data_parallel"]
    scalars = {parameter for parameter in module.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_post_accumulate_grad_hook(_average_gradient)
    blocks = [block for block in repeated_blocks(module) if any(weight.ndim for weight in block.parameters())]
    for block in blocks:
        fully_shard(block, mesh=ranks, ignored_params=scalars)
    # By default torch keeps the outermost group gathered after a forward pass; the average must see its shards.
    fully_shard(module, mesh=ranks, ignored_params=scalars, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(module, method)
    log.info("%s: %d blocks over %d ranks", type(module).__name__, len(blocks), ranks.size())


def _average_gradient(parameter: Tensor) -> None:
    # The earlier part of an accumulated gradient is equal on all ranks, so averaging it again changes nothing.
    assert parameter.grad is not None
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy over all ranks, with checkpoints in the layout of an unsharded run.

    Lightning numbers optimizer states in the order of the module's parameters, torch in the order of the optimizer's
    groups, and a checkpoint of one order is wrong in the other. Saving and loading here use torch's order.

    Args:
        process_group_backend: nccl or gloo; None chooses by device.
        timeout_minutes: Timeout of collectives, in minutes.
        parts: Each rank writes its shards into a file of its own, see checkpoint_shards.py. By default rank 0 gathers
            the whole state in its memory and writes it.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout_minutes: int = 30, parts: bool = False
    ) -> None:
        """See the class for the arguments."""
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=parts,
            process_group_backend=process_group_backend,
            timeout=timedelta(minutes=timeout_minutes),
        )
        self.parts = parts
        self._writing: Group = None  # of threads that write while the ranks train

    def setup_environment(self) -> None:
        """Shard over all ranks; Lightning's default is over nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state in the layout of an unsharded run: with parts this rank's shards, else all of it on rank 0.

        Without parts it is empty on all other ranks.
        """
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.model is not None
        options = StateDictOptions() if self.parts else WHOLE
        named: Any = get_optimizer_state_dict(self.model, plain, options=options)
        if self.global_rank != 0 and not self.parts:
            return {}
        names = self._names(plain)
        numbers = {name: number for number, name in enumerate(names)}
        groups: Any = [dict(group) for group in named["param_groups"]]
        for group in groups:
            group["params"] = sorted(numbers[name] for name in group["params"])
        return {
            "state": {numbers[name]: state for name, state in named["state"].items()},
            "param_groups": sorted(groups, key=lambda group: group["params"][:1]),
        }

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the checkpoint: one part from each rank, or all of it on rank 0, as a run on one device does."""
        path = Path(self.broadcast(str(filepath)))
        writer = self.checkpoint_io if isinstance(self.checkpoint_io, AtomicCheckpointIO) else AtomicCheckpointIO()
        if self.parts and path.name == LAST:
            if self._writing is None:
                self._writing = dist.new_group(backend="gloo", timeout=self._timeout)
            save_parts(checkpoint, path.parent, writer, self._writing, lambda late: any_rank(late, self.root_device))
            return
        if self.parts:
            checkpoint = gather_whole(checkpoint)
        if self.global_rank == 0:
            writer.save_checkpoint(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint on each rank, and keep this rank's shards of weights and optimizer states."""
        file = find_checkpoint(self.broadcast(str(checkpoint_path)))
        assert self.model is not None and self.lightning_module is not None
        checkpoint, strict = read_places(file)[0], self.lightning_module.strict_loading
        parts = open_parts_together(checkpoint, file) if SHARDS in checkpoint else None
        options = StateDictOptions(full_state_dict=parts is None, strict=strict)
        weights = checkpoint["state_dict"]
        if parts is not None:
            likes: dict[str, Any] = get_model_state_dict(self.model)
            weights = {name: read_shard(value, likes.get(name), parts) for name, value in weights.items()}
        set_model_state_dict(self.model, weights, options=options)
        parameters = dict(self.model.named_parameters())
        for optimizer, saved in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            names = self._names(optimizer)
            order = [number for group in saved["param_groups"] for number in group["params"]]
            named = dict(zip(order, names, strict=True))
            states = {named[number]: value for number, value in saved["state"].items()}
            if parts is not None:
                states = {
                    name: {key: read_shard(value, parameters[name], parts) for key, value in state.items()}
                    for name, state in states.items()
                }
            state: dict[str, Any] = {
                "state": states,
                "param_groups": [
                    {**group, "params": [named[number] for number in group["params"]]}
                    for group in saved["param_groups"]
                ],
            }
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return checkpoint

    def teardown(self) -> None:
        """Wait for a file that is still being written, as other strategies do."""
        super().teardown()
        self.checkpoint_io.teardown()

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Return the names of the optimizer's parameters, in the order of its groups."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]

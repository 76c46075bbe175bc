"""Base class of techniques: additions to a generator's training, each in one file and a few lines of YAML.

model:
  init_args:
    techniques:
    - {class_path: my_lab.my_technique.MyTechnique}

A technique may own parameters. They are trained with the denoiser's, saved in the checkpoint and never released: the
result is a plain denoiser.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from leam_mm.data.random_stream import PhiloxStream, RandomStream
from leam_mm.denoisers.block_step import BlockStep
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.errors import UserError


@dataclass
class TrainingStep:
    """What techniques may read in one training step.

    Args:
        batch: The batch of the data module.
        index: (B,) int64, the samples' numbers; with a seed they name all randomness of a step.
        clean: Latents (B, C, h, w).
        noise: (B, C, h, w).
        time: (B,) in [0, 1], 0 data, 1 noise.
        target: (B, C, h, w), the target of the network.
        process: The diffusion process.
        prediction: (B, C, h, w), the network's output; None before it has run.
        stream: Draws random numbers for the samples; a checkpoint names it.
    """

    batch: dict[str, Any]
    index: Tensor
    clean: Tensor
    noise: Tensor
    time: Tensor
    target: Tensor
    process: DiffusionProcess
    prediction: Tensor | None = None
    stream: RandomStream = field(default_factory=PhiloxStream)


class Technique(nn.Module):
    """Base class of techniques; its methods do nothing.

    The order of a step: `begin`, the network with `block_steps` between its blocks, `weigh`, `loss`. This holds in
    training only: validation, sampling and the released model do not use techniques.
    """

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Create what depends on the denoiser's sizes, before the optimizer is built.

        Args:
            denoiser: The network that is trained; it must not be kept as a submodule.
            seed: Seed of the run; a step's ``stream`` draws with it, see data/random_stream.py.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the technique's own weights if the strategy asks for it; see optim/sharding.py.

        Args:
            mesh: Device mesh of the strategy.
        """
        if next(self.parameters(), None) is not None:
            raise UserError(
                f"{type(self).__name__} has weights of its own but no method that shards them: give it a method shard, "
                "or leave overlay_fsdp2.yaml out"
            )

    def frozen_record(self) -> dict[str, dict[str, str]]:
        """Return path and sha256, by name, of further files that the run depends on."""
        return {}

    def begin(self, step: TrainingStep) -> None:
        """Prepare a step, before the network runs."""

    def block_steps(self) -> list[BlockStep]:
        """Return what reads or changes the tokens between blocks in this step; see denoisers/block_step.py."""
        return []

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Change the weighted squared errors (B, C, h, w) before they are averaged over each sample."""
        return errors

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Return a further loss (B,) of each sample, or None."""
        return None

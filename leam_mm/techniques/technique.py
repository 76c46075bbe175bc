"""Something added to a generator's training, in one file and a few lines of YAML: the base class of such plug-ins.

model:
  init_args:
    techniques:
    - {class_path: my_lab.my_technique.MyTechnique}

A technique may own parameters. They are trained beside the denoiser's, saved in the checkpoint and never released:
what a technique leaves behind is a denoiser like any other.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from leam_mm.denoisers.block_step import BlockStep
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.errors import UserError


@dataclass
class TrainingStep:
    """What the techniques may look at in one step; the prediction is there once the network has run.

    Args:
        batch: As the data module made it.
        index: (B,) int64, the samples' numbers; with a seed they name all randomness of a step.
        clean: Latents (B, C, h, w).
        noise: (B, C, h, w).
        time: (B,) in [0, 1], 0 data, 1 noise.
        target: (B, C, h, w), what the network should predict.
        process: Of the training.
        prediction: (B, C, h, w), what the network predicts.
    """

    batch: dict[str, Any]
    index: Tensor
    clean: Tensor
    noise: Tensor
    time: Tensor
    target: Tensor
    process: DiffusionProcess
    prediction: Tensor | None = field(default=None)


class Technique(nn.Module):
    """Base of all plug-ins; each method does nothing until a subclass says more.

    The order of a step: `begin`, the network's run with `block_steps` between its blocks, `weigh`, `loss`. Only the
    trained network runs so: validation, sampling and the released model know nothing of it.
    """

    def attach(self, denoiser: Denoiser, seed: int) -> None:
        """Look at the denoiser once, before the optimizer is built, and make what depends on its sizes.

        Args:
            denoiser: The network that is trained; it must not be kept as a submodule.
            seed: Of the training; random numbers come from (seed, sample's number) by data/sample_order.py.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Spread the technique's own weights over the ranks where the strategy asks for it; see optim/sharding.py.

        Args:
            mesh: Of the strategy.
        """
        if next(self.parameters(), None) is not None:
            raise UserError(
                f"{type(self).__name__} has weights of its own and does not say how they are sharded: give it a method "
                "shard, or leave overlay_fsdp2.yaml out"
            )

    def frozen_record(self) -> dict[str, dict[str, str]]:
        """Name, path and sha256 of each file besides the module's own that the training depends on."""
        return {}

    def begin(self, step: TrainingStep) -> None:
        """Get ready for a step, before the network runs."""

    def block_steps(self) -> list[BlockStep]:
        """What looks at or changes the tokens between the denoiser's blocks in this step; see denoisers/denoiser.py."""
        return []

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Change the weighted squared errors (B, C, h, w) before they are averaged over each sample."""
        return errors

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Return what is added to each sample's loss, (B,), or None."""
        return None

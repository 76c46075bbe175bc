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

from leam_mm.models.denoiser import BlockStep, Denoiser


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
        prediction: (B, C, h, w), what it predicts.
    """

    batch: dict[str, Any]
    index: Tensor
    clean: Tensor
    noise: Tensor
    time: Tensor
    target: Tensor
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

    def begin(self, step: TrainingStep) -> None:
        """Get ready for a step, before the network runs."""

    def block_steps(self) -> list[BlockStep]:
        """What looks at or changes the tokens between the denoiser's blocks in this step; see models/denoiser.py."""
        return []

    def weigh(self, errors: Tensor, step: TrainingStep) -> Tensor:
        """Change the weighted squared errors (B, C, h, w) before they are averaged over each sample."""
        return errors

    def loss(self, step: TrainingStep) -> Tensor | None:
        """Return what is added to each sample's loss, (B,), or None."""
        return None

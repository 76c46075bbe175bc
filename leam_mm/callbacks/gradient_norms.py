"""Norms of gradients and optimizer steps as metrics.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.gradient_norms.GradientNorms
"""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


class GradientNorms(Callback):
    """Log the gradient norm before clipping and the relative size of the update at every logging step.

    ``gradient/norm`` is the Euclidean norm over all trained weights. ``update/relative`` is the norm of the change of
    the weights in that step divided by their norm; typical is 1e-3. It needs a copy of the weights during the step.
    """

    def __init__(self) -> None:
        """Start without a copy of the weights."""
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Log the gradient norm before clipping and copy the weights."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        pl_module.log("gradient/norm", _norm(gradients), batch_size=1)
        self._before = [(weight, weight.detach().clone()) for weight in weights]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Log the relative size of the update and free the copy."""
        if not self._before:
            return
        before, self._before = self._before, []
        change = _norm([weight.detach() - old for weight, old in before])
        relative = change / _norm([old for _, old in before]).clamp(min=1e-12)
        pl_module.log("update/relative", relative, batch_size=1)


def _norm(tensors: list[Tensor]) -> Tensor:
    total = torch.nn.utils.get_total_norm(tensors)
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # gradients or weights sharded over ranks

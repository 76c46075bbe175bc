"""How large gradients and steps are, beside the other metrics.

trainer:
  callbacks:
  - class_path: leam_mm.callbacks.gradient_norms.GradientNorms
"""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer


class GradientNorms(Callback):
    """Logs, at the steps whose metrics are logged, the norm of all gradients before clipping and the relative step.

    ``gradient/norm`` is the Euclidean norm over all trained weights. ``update/relative`` is the norm of the weights'
    change in that step over the norm of the weights; around 1e-3 is usual. It needs a copy of the weights for one step.
    """

    def __init__(self) -> None:
        """Nothing is kept between two looks."""
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The gradients, before they are clipped, and a copy of the weights."""
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        pl_module.log("gradient/norm", _norm(gradients), batch_size=1)
        self._before = [(weight, weight.detach().clone()) for weight in weights]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """The step that was made."""
        if not self._before:
            return
        before, self._before = self._before, []
        change = _norm([weight.detach() - old for weight, old in before])
        relative = change / _norm([old for _, old in before]).clamp(min=1e-12)
        pl_module.log("update/relative", relative, batch_size=1)


def _norm(tensors: list[Tensor]) -> Tensor:
    total = torch.nn.utils.get_total_norm(tensors)
    return total.full_tensor() if hasattr(total, "full_tensor") else total  # weights sharded over ranks

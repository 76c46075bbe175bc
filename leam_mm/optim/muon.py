"""Muon: orthogonalised steps for the matrices inside a network (2502.16982), AdamW for everything else.

    optimizer:
      class_path: leam_mm.optim.muon.MuonAdamW
      init_args: {lr: 0.0015, matrix_lr: 0.003, weight_decay: 0.01}

The step is that of torch.optim.Muon. That optimizer accepts two-dimensional parameters only and leaves all others to a
second one; here kernels of convolutions count as matrices, and schedules, checkpoints and sharding see one optimizer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, muon

MATRICES = "matrices"  # key of the groups that Muon steps; build_optimizer sets it


class MuonAdamW(Optimizer):
    """Muon for the groups of matrices, AdamW for all others.

    The step of an N x M matrix is 0.2 sqrt(max(N, M)) matrix_lr times the orthogonalised momentum. It has the root mean
    square of a usual step of AdamW (2502.16982), so that rates and weight decay mean the same for both.
    A kernel (out, in, height, width) is a matrix with ``out`` rows.

    Args:
        params: Groups; Muon steps those with a true ``matrices``.
        lr: Learning rate of AdamW.
        matrix_lr: Learning rate of Muon.
        betas: Decay of AdamW's two averages.
        eps: Added to AdamW's denominator.
        weight_decay: Decoupled weight decay, multiplied by the rate; the value in a group has priority.
        momentum: Nesterov momentum of Muon.
        iterations: Newton-Schulz iterations of the orthogonalisation.
        fused: Run AdamW as one kernel.

    Raises:
        ValueError: No group has matrices, since the network has no repeated blocks.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        matrix_lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        iterations: int = 5,
        fused: bool = True,
    ) -> None:
        """See the class for the arguments."""
        self.matrix_options = {
            "lr": matrix_lr, "weight_decay": weight_decay, "momentum": momentum, "iterations": iterations,
        }  # fmt: skip
        groups = [{MATRICES: False, **group} for group in params]
        if not any(group[MATRICES] for group in groups):
            raise ValueError("MuonAdamW: the network has no matrices in repeated blocks; use torch.optim.AdamW")
        # AdamW fills its defaults into these dictionaries, which are also this optimizer's groups.
        self.adamw = AdamW(
            [group for group in groups if not group[MATRICES]],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=fused,
        )
        super().__init__(groups, {})
        self._share()

    def _share(self) -> None:
        self.adamw.param_groups = [group for group in self.param_groups if not group[MATRICES]]
        self.adamw.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, such as the weights of a loss; AdamW steps it unless it has a true ``matrices``."""
        if param_group.setdefault(MATRICES, False):
            for name, value in self.matrix_options.items():
                param_group.setdefault(name, value)
        elif all(param_group is not group for group in self.adamw.param_groups):
            self.adamw.add_param_group(param_group)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give AdamW the new groups that a loaded state brings."""
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group[MATRICES]:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._step_matrix(weight, weight.grad, group)
        self.adamw.step()
        return loss

    def _step_matrix(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        kept = [weight, state["momentum_buffer"]]
        matrices = [value.flatten(1) for value in kept]  # views, or copies of kernels in channels-last order
        muon(
            [matrices[0]],
            [grad.flatten(1)],
            [matrices[1]],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            nesterov=True,
            ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
            eps=EPS,
            ns_steps=group["iterations"],
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        for value, matrix in zip(kept, matrices, strict=True):
            if not value.is_contiguous():
                value.copy_(matrix.view_as(value))

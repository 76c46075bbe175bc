"""Muon: orthogonalised steps for the matrices inside a network (2502.16982), AdamW for everything else.

    optimizer:
      class_path: leam_mm.optim.muon.MuonAdamW
      init_args: {lr: 0.0015, matrix_lr: 0.003, weight_decay: 0.01}

torch.optim.Muon takes matrices only and no others beside; here kernels of convolutions count as matrices too, and
schedules, checkpoints and sharding see one optimizer.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

MATRICES = "matrices"  # the key of a group that Muon steps; build_optimizer sets it
# Of a x + b x^3 + c x^5, the polynomial that is iterated: steep at 0; after 5 rounds [0.005, 1] lies in [0.68, 1.16].
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Bring the singular values of a matrix near 1 and leave its singular vectors (Newton-Schulz iteration).

    Args:
        matrix: (N, M), of any scale.
        iterations: 5 are enough for singular values from 0.005 of the Frobenius norm on; smaller ones stay smaller.

    Returns:
        (N, M) in bfloat16, in which the iteration runs: its result is a direction, and need not be exact.
    """
    wide = matrix.bfloat16() if matrix.shape[0] <= matrix.shape[1] else matrix.bfloat16().T
    wide = wide / wide.norm().clamp(min=1e-7)  # the Frobenius norm bounds the largest singular value
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class MuonAdamW(Optimizer):
    """Steps matrices along the orthogonalised direction of their momentum, the rest as AdamW does.

    A matrix of N rows and M columns moves by 0.2 sqrt(max(N, M)) matrix_lr times a nearly orthogonal one, which has the
    root mean square of a usual step of AdamW (2502.16982): rates and weight decay mean the same for both.
    A kernel (out, in, height, width) is a matrix of `out` rows.

    Args:
        params: Groups; those with a true ``matrices`` get Muon.
        lr: Rate of AdamW.
        matrix_lr: Rate of Muon.
        betas: Decay of AdamW's two averages.
        eps: Of AdamW.
        weight_decay: Decoupled, times the rate; a group's own comes first.
        momentum: Of Muon, with Nesterov's look ahead.
        iterations: Of the orthogonalisation.
        fused: AdamW in one kernel.

    Raises:
        ValueError: No group has matrices: the network has no repeated blocks, and AdamW alone would run.
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
        own = {"lr": matrix_lr, "weight_decay": weight_decay, "momentum": momentum, "iterations": iterations}
        groups = [{MATRICES: False, **group} for group in params]
        groups = [{**own, **group} if group[MATRICES] else group for group in groups]
        if not any(group[MATRICES] for group in groups):
            raise ValueError("MuonAdamW: the network has no matrices in repeated blocks; take torch.optim.AdamW")
        # It fills what it needs into these very dictionaries, which are the groups of this optimizer too.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A loaded state brings new groups, which AdamW has to follow."""
        super().__setstate__(state)
        self.state = defaultdict(dict, self.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
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

    def _step_matrix(self, weight: Tensor, slope: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"]
        average.lerp_(slope, 1 - group["momentum"])
        ahead = slope.lerp(average, group["momentum"]).flatten(1)
        direction = orthogonalise(ahead, group["iterations"]).view_as(weight)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(ahead.shape)))

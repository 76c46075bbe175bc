"""Power-function averages of weights, and reconstruction of other widths afterwards (2312.02696, section 3).

model:
  init_args:
    ema:
      class_path: leam_mm.optim.power_ema.PowerFunction
      init_args: {widths: [0.05, 0.1]}

The average at time t gives the weights of time s the density p(s) = (gamma + 1) s^gamma / t^(gamma + 1), so its memory
grows with the run. With g = gamma + 1 the integral of p over (i - 1, i] is (i^g - (i - 1)^g) / t^g; all steps before
the last sum to ((t - 1) / t)^g. Hence average <- beta average + (1 - beta) weights with beta = (1 - 1/t)^g.
s / t has the Beta(g, 1) distribution, whose standard deviation is the width sigma_rel = sqrt(g / (g + 2)) / (g + 1).
Averages are linear in the weights of all steps: a combination of stored averages has the combination of their profiles.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leam_mm.errors import UserError
from leam_mm.optim.ema import Averaging, Ema, frozen_copy

WIDEST = 1 / math.sqrt(12)  # gamma = 0, all steps weigh the same
WIDTH_UNIT = 1e-6  # resolution of the widths in a checkpoint


def width_of(gamma: float) -> float:
    """Return the relative width sigma_rel of a profile: the standard deviation of s / t, with s drawn from it."""
    g = gamma + 1
    return math.sqrt(g / (g + 2)) / (g + 1)


def gamma_of(width: float) -> float:
    """Return the exponent (at least 0) of the profile with this width in (0, 1 / sqrt(12)]; inverse of `width_of`.

    Raises:
        UserError: The width is out of range.
    """
    if not 0 < width <= WIDEST * (1 + 1e-12):
        raise UserError(
            f"the relative width {width} of an average is not in (0, {WIDEST:.4f}]: give 0.05 or 0.1, the usual ones"
        )
    # (g + 1)^2 (g + 2) width^2 = g as a cubic in g, convex for g > 0; right of its largest root Newton only falls.
    inverse = width**-2
    g, last = math.sqrt(inverse), math.inf
    while g < last:
        last = g
        g -= (((g + 4) * g + 5 - inverse) * g + 2) / ((3 * g + 8) * g + 5 - inverse)
    return last - 1


def inner_products(
    times: np.ndarray, gammas: np.ndarray, other_times: np.ndarray, other_gammas: np.ndarray
) -> np.ndarray:
    """Return the integrals (N, M) of p_i p_j over all time, for N profiles and M others, in float64.

    With s the earlier and t the later of both times and gamma the exponent of the later profile, the integral is
    g_i g_j / (g_i + g_j - 1) (s / t)^gamma / t.
    """
    time, other = np.meshgrid(np.asarray(times, np.float64), np.asarray(other_times, np.float64), indexing="ij")
    gamma, beside = np.meshgrid(np.asarray(gammas, np.float64), np.asarray(other_gammas, np.float64), indexing="ij")
    later = np.maximum(time, other)
    share = (np.minimum(time, other) / later) ** np.where(time >= other, gamma, beside)
    return (gamma + 1) * (beside + 1) / (gamma + beside + 1) * share / later


def combination(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> tuple[np.ndarray, float]:
    """Return the coefficients of stored averages whose combined profile is closest to the wanted one (least squares).

    They sum to 1, unlike in the paper: weights that never changed are then reproduced exactly.

    Args:
        times: (N,) times of the stored averages, in updates.
        gammas: (N,) exponents of the stored averages.
        time: Time of the wanted average, in updates.
        gamma: Exponent of the wanted average.

    Returns:
        (N,) float64 coefficients, and the distance of both profiles divided by the norm of the wanted one.
    """
    kept = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    wanted = np.array([time], np.float64), np.array([gamma], np.float64)
    gram = inner_products(*kept, *kept) * time  # in units of the wanted time, which keeps values near 1
    towards = inner_products(*kept, *wanted)[:, 0] * time
    size = len(gram)
    system = np.ones((size + 1, size + 1))
    system[:size, :size], system[size, size] = gram, 0.0
    found = np.linalg.lstsq(system, np.append(towards, 1.0), rcond=1e-13)[0][:size]
    norm = float(inner_products(*wanted, *wanted)[0, 0] * time)
    apart = float(found @ gram @ found - 2 * found @ towards + norm)
    return found, math.sqrt(max(apart, 0.0) / norm)


class PowerEma(Ema):
    """Averages with power-function profiles of several widths; the first is evaluated and released.

    Args:
        model: The network to follow.
        widths: sigma_rel of each average, each in (0, 1 / sqrt(12)].
    """

    width_millionths: Tensor

    def __init__(self, model: nn.Module, widths: Sequence[float]) -> None:
        """See the class for the arguments."""
        super().__init__(model, decay=0.0, ramp=False)
        self.widths = list(widths)
        self.gammas = [gamma_of(width) for width in self.widths]
        self.others = nn.ModuleList(frozen_copy(model) for _ in self.widths[1:])
        # Stored in the checkpoint, so that resuming with other widths or another order fails.
        self.register_buffer("width_millionths", torch.tensor(_millionths(self.widths), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_require_same_widths)

    def copies(self) -> list[nn.Module]:
        """Return the averages in the order of their widths."""
        return [self.model, *self.others]

    def shares(self, count: int) -> list[float]:
        """Return 1 - beta of each average."""
        time = count + 1
        return [1.0 if time == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / time)) for gamma in self.gammas]


@dataclass(frozen=True)
class PowerFunction(Averaging):
    """Averages whose width is a share of the run so far; see PowerEma.

    Args:
        widths: sigma_rel of each average; the first is evaluated and released. Two suffice to reconstruct others from
            snapshots (callbacks/ema_snapshots.py). Each takes the memory of one copy of the weights.
    """

    widths: tuple[float, ...] = (0.05, 0.1)

    def __post_init__(self) -> None:
        """Check the widths."""
        if not self.widths or len(set(_millionths(self.widths))) < len(self.widths):
            raise UserError(f"PowerFunction: widths is {list(self.widths)}: give one or more, all different")
        for width in self.widths:
            gamma_of(width)

    def follow(self, model: nn.Module) -> PowerEma:
        """Return new averages of this network's weights."""
        return PowerEma(model, self.widths)


def _millionths(widths: Sequence[float]) -> list[int]:
    return [round(width / WIDTH_UNIT) for width in widths]


def _require_same_widths(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    assert isinstance(module, PowerEma)
    kept = state.get(f"{prefix}width_millionths")
    if kept is not None and kept.tolist() != _millionths(module.widths):
        old = [value * WIDTH_UNIT for value in kept.tolist()]
        raise UserError(
            f"the checkpoint has averages of the widths {old}, but model.init_args.ema.widths is {module.widths}: give "
            "the old widths in the same order, or start a new run folder"
        )

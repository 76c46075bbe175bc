"""Averages of weights with a power-function profile, and any other width of it afterwards (2312.02696, section 3).

model:
  init_args:
    ema:
      class_path: leam_mm.optim.power_ema.PowerFunction
      init_args: {widths: [0.05, 0.1]}

The average at time t weighs the weights of time s by p(s) = (gamma + 1) s^gamma / t^(gamma + 1): its memory grows with
the training. With g = gamma + 1 the integral of p over (i - 1, i] is (i^g - (i - 1)^g) / t^g, and what all steps before
the last have together is ((t - 1) / t)^g. Hence shadow <- beta shadow + (1 - beta) weights with beta = (1 - 1/t)^g.
s / t has the Beta(g, 1) distribution, whose standard deviation is the width sigma_rel = sqrt(g / (g + 2)) / (g + 1).
Averages are linear in the weights of all steps: a combination of kept averages has the combination of their profiles.
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

WIDEST = 1 / math.sqrt(12)  # gamma = 0, all steps alike
WIDTH_UNIT = 1e-6  # what a checkpoint distinguishes


def width_of(gamma: float) -> float:
    """Relative width sigma_rel of the profile with this exponent: the deviation of s / t, s drawn from the profile."""
    g = gamma + 1
    return math.sqrt(g / (g + 2)) / (g + 1)


def gamma_of(width: float) -> float:
    """Exponent at least 0 of the profile with this relative width in (0, 1 / sqrt(12)]; the inverse of `width_of`.

    Raises:
        UserError: The width is out of range.
    """
    if not 0 < width <= WIDEST * (1 + 1e-12):
        raise UserError(f"the relative width {width} of an average is not in (0, {WIDEST:.4f}]: 0.05 or 0.1 are usual")
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
    """Integrals (N, M) over all past of p_i p_j, of N profiles with M others, in float64.

    Both are powers up to the earlier of both times s, so with t the later time and gamma its exponent the integral is
    g_i g_j / (g_i + g_j - 1) (s / t)^gamma / t.
    """
    time, other = np.meshgrid(np.asarray(times, np.float64), np.asarray(other_times, np.float64), indexing="ij")
    gamma, beside = np.meshgrid(np.asarray(gammas, np.float64), np.asarray(other_gammas, np.float64), indexing="ij")
    later = np.maximum(time, other)
    share = (np.minimum(time, other) / later) ** np.where(time >= other, gamma, beside)
    return (gamma + 1) * (beside + 1) / (gamma + beside + 1) * share / later


def combination(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> tuple[np.ndarray, float]:
    """Coefficients of kept averages whose combined profile is nearest to the wanted one in the least squares.

    They sum up to 1, which is not asked for in the paper: weights that never moved come out as they are.

    Args:
        times: (N,) of the kept averages, in updates.
        gammas: (N,) of theirs.
        time: Of the wanted average.
        gamma: Of the wanted average.

    Returns:
        (N,) float64, and the distance of both profiles over the norm of the wanted one.
    """
    kept = np.asarray(times, np.float64), np.asarray(gammas, np.float64)
    wanted = np.array([time], np.float64), np.array([gamma], np.float64)
    gram = inner_products(*kept, *kept) * time  # in units of the wanted time, so that numbers are near 1
    towards = inner_products(*kept, *wanted)[:, 0] * time
    size = len(gram)
    system = np.ones((size + 1, size + 1))
    system[:size, :size], system[size, size] = gram, 0.0
    found = np.linalg.lstsq(system, np.append(towards, 1.0), rcond=1e-13)[0][:size]
    norm = float(inner_products(*wanted, *wanted)[0, 0] * time)
    apart = float(found @ gram @ found - 2 * found @ towards + norm)
    return found, math.sqrt(max(apart, 0.0) / norm)


class PowerEma(Ema):
    """Averages with power-function profiles of several widths at once; the first is sampled, evaluated and released.

    Args:
        model: The network to follow.
        widths: sigma_rel of each average, in (0, 1 / sqrt(12)].
    """

    width_millionths: Tensor

    def __init__(self, model: nn.Module, widths: Sequence[float]) -> None:
        """See the class for the arguments."""
        super().__init__(model, decay=0.0, ramp=False)
        self.widths = list(widths)
        self.gammas = [gamma_of(width) for width in self.widths]
        self.others = nn.ModuleList(frozen_copy(model) for _ in self.widths[1:])
        # In the checkpoint, so that another order or other widths cannot take over these averages unnoticed.
        self.register_buffer("width_millionths", _millionths(self.widths))
        self.register_load_state_dict_pre_hook(_require_same_widths)

    def copies(self) -> list[nn.Module]:
        """The averages in the order of their widths."""
        return [self.model, *self.others]

    def shares(self, count: int) -> list[float]:
        """1 - beta of each average."""
        time = count + 1
        return [1.0 if time == 1 else -math.expm1((gamma + 1) * math.log1p(-1 / time)) for gamma in self.gammas]


@dataclass(frozen=True)
class PowerFunction(Averaging):
    """Averages whose memory is a share of the training so far; see PowerEma.

    Args:
        widths: sigma_rel of each average; the first validates, samples and is released. Two suffice for the
            reconstruction of others from their snapshots (callbacks/ema_snapshots.py). Each is a copy of the weights.
    """

    widths: tuple[float, ...] = (0.05, 0.1)

    def __post_init__(self) -> None:
        """Check the widths."""
        if not self.widths or len(set(_millionths(self.widths).tolist())) < len(self.widths):
            raise UserError(f"PowerFunction: widths {list(self.widths)} must be one or more, all different")
        for width in self.widths:
            gamma_of(width)

    def follow(self, model: nn.Module) -> PowerEma:
        """Begin the averages."""
        return PowerEma(model, self.widths)


def _millionths(widths: Sequence[float]) -> Tensor:
    return torch.tensor([round(width / WIDTH_UNIT) for width in widths], dtype=torch.int64)


def _require_same_widths(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    assert isinstance(module, PowerEma)
    kept = state.get(f"{prefix}width_millionths")
    if kept is not None and kept.tolist() != _millionths(module.widths).tolist():
        old = [value * WIDTH_UNIT for value in kept.tolist()]
        raise UserError(
            f"the checkpoint holds averages of the widths {old}, model.init_args.ema asks for {module.widths}: give "
            "the old widths in their order, or start a new run folder"
        )

"""Time between checkpoints that loses the least time to saves, restarts and repeated work.

A run saves after every interval of work and returns to the last save when a node fails. Failures are independent and
come at exponentially distributed times; a failure during a save or a restart repeats it. Sources: Young, "A first order
approximation to the optimum checkpoint interval", CACM 17 (1974); Daly, "A higher order estimate of the optimum
checkpoint interval for restart dumps", FGCS 22 (2006).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import lambertw

from leam_mm.errors import UserError


@dataclass(frozen=True)
class FailureModel:
    """Failures of a run and what they cost.

    Args:
        mtbf_seconds: Mean time between failures of the whole run, in seconds; ``math.inf`` for none.
        save_seconds: Time for which a save stops training, in seconds; at least 0.
        restart_seconds: Time from a failure to the first repeated step, in seconds; at least 0.

    Raises:
        UserError: A time is negative or NaN, or the mean time between failures is 0.
    """

    mtbf_seconds: float
    save_seconds: float
    restart_seconds: float

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.mtbf_seconds > 0:
            raise UserError(f"mtbf_seconds is {self.mtbf_seconds}: give a number of more than 0")
        for name in ("save_seconds", "restart_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value}: give a finite number of at least 0")

    @classmethod
    def of_nodes(
        cls, nodes: int, node_mtbf_hours: float | None, save_seconds: float, restart_seconds: float
    ) -> "FailureModel":
        """Return the model of a run on several nodes, which fails when any of them does.

        Args:
            nodes: Number of nodes, at least 1.
            node_mtbf_hours: Mean time between failures of one node, in hours; None means that it is not known, and no
                failures are assumed.
            save_seconds: See the class.
            restart_seconds: See the class.
        """
        mtbf = math.inf if node_mtbf_hours is None else node_mtbf_hours * 3600 / nodes
        return cls(mtbf, save_seconds, restart_seconds)


def young_interval(model: FailureModel) -> float:
    """Return Young's first-order interval of work between two saves, in seconds: sqrt(2 C M), Young (1974)."""
    return math.sqrt(2 * model.save_seconds * model.mtbf_seconds)


def daly_interval(model: FailureModel) -> float:
    """Return Daly's higher-order interval of work between two saves, in seconds: Daly (2006), equation 37.

    It differs from Young's where the save time C is not small beside the mean time between failures M, and is M for
    C of 2 M and more.
    """
    if math.isinf(model.mtbf_seconds):
        return math.inf
    ratio = model.save_seconds / (2 * model.mtbf_seconds)
    if ratio >= 1:
        return model.mtbf_seconds
    return young_interval(model) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - model.save_seconds


def best_interval(model: FailureModel) -> float:
    """Return the interval of work with the shortest expected time, in seconds.

    It is the minimum of ``expected_seconds``: setting its derivative to 0 gives M (1 + W(-exp(-1 - C / M))) with the
    principal branch of Lambert's W. Without failures it is infinite; with saves that take no time, 0.
    """
    if math.isinf(model.mtbf_seconds):
        return math.inf
    share = model.save_seconds / model.mtbf_seconds
    return model.mtbf_seconds * max(0.0, 1 + float(lambertw(-math.exp(-1 - share)).real))


def expected_seconds(work: float, interval: float, model: FailureModel) -> float:
    """Return the expected wall time of a run with exponential failures: Daly (2006), equation 13.

    M e^(R/M) (e^((t+C)/M) - 1) T / t, with M the mean time between failures, R the restart, C the save, t the interval
    and T the work. The last save is counted, too.

    Args:
        work: Seconds of training that count.
        interval: Seconds of work between two saves, more than 0.
        model: The failures.

    Returns:
        Seconds; infinite where a run never ends because failures come too fast.
    """
    segments = work / interval
    length = interval + model.save_seconds
    if math.isinf(model.mtbf_seconds):
        return segments * length
    try:
        growth = math.exp(model.restart_seconds / model.mtbf_seconds) * math.expm1(length / model.mtbf_seconds)
    except OverflowError:
        return math.inf
    return model.mtbf_seconds * growth * segments


def goodput(interval: float, model: FailureModel) -> float:
    """Return the expected share of the wall time in which training proceeds, in [0, 1].

    Args:
        interval: Seconds of work between two saves; ``math.inf`` for a run that neither saves nor fails.
        model: The failures.
    """
    if math.isinf(interval):
        return 1.0 if math.isinf(model.mtbf_seconds) else 0.0
    return interval / expected_seconds(interval, interval, model)


def simulate_run(work: float, interval: float, model: FailureModel, runs: int = 100, seed: int = 0) -> np.ndarray:
    """Simulate runs failure by failure.

    Args:
        work: Seconds of training that count; rounded up to whole intervals.
        interval: Seconds of work between two saves, more than 0.
        model: The failures.
        runs: Number of simulated runs.
        seed: Seed of the failure times; the same seed gives the same result.

    Returns:
        Wall seconds of each run, shape (runs,).
    """
    random = np.random.default_rng(seed)
    length = interval + model.save_seconds
    return np.array([_one_run(math.ceil(work / interval), length, model, random) for _ in range(runs)])


def _one_run(segments: int, length: float, model: FailureModel, random: np.random.Generator) -> float:
    if math.isinf(model.mtbf_seconds):
        return segments * length
    seconds, restart = 0.0, 0.0
    while True:
        until_failure = random.exponential(model.mtbf_seconds)
        saved = math.floor(max(0.0, until_failure - restart) / length)
        if saved >= segments:
            return seconds + restart + segments * length
        segments -= saved
        seconds += until_failure
        restart = model.restart_seconds

"""Learning rate of a run whose length or batch size was changed, as a function of the samples seen.

A schedule counts steps. A run that resumes with another batch size keeps the rate of each sample: one step of its
schedule stays as many samples as at the start of the run. A run of another length continues in one of three ways:

- ``schedule``: the schedule of the new length, as if the run had had it from the start;
- ``constant``: the rate of the last step before the change, to the new end;
- ``cooldown``: the same rate, then a fall over the last part of the run.

During warm-up, ``constant`` and ``cooldown`` first complete it and then keep the full rate.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from leam_mm.errors import UserError
from leam_mm.optim.schedule import Cooldown, Schedule, fallen_share

Extension = Literal["schedule", "cooldown", "constant"]
LAST_PART = 5  # a cool-down that the recipe does not state takes this part of the samples still to come


@dataclass(frozen=True)
class Hold:
    """Constant part of an extended run.

    Args:
        begin: Samples seen where it begins.
        share: Share of the full rate that is kept.
        fall: Samples of the cool-down at the end; 0 for none.
        floor: Share of the full rate that is left after the cool-down.
        shape: See `Cooldown`.
    """

    begin: int
    share: float
    fall: int = 0
    floor: float = 0.0
    shape: Literal["sqrt", "linear"] = "sqrt"


@dataclass(frozen=True)
class RatePlan:
    """Share of the full learning rate after any number of samples.

    Args:
        unit: Samples of one step of the schedule.
        total: Samples of the whole run; None if it has no planned end.
        hold: What replaces the schedule from a sample on; None for nothing.
    """

    unit: int
    total: int | None
    hold: Hold | None = None

    def share(self, schedule: Schedule, seen: int) -> float:
        """Return the share of the full rate of the step that begins after ``seen`` samples."""
        hold = self.hold
        if hold is None or seen < hold.begin:
            return schedule.factor(seen / self.unit, math.inf if self.total is None else self.total / self.unit)
        if self.total is None or not hold.fall or seen < self.total - hold.fall:
            return hold.share
        left = 1 - fallen_share((seen - (self.total - hold.fall)) / hold.fall, hold.shape)
        floor = min(hold.floor, hold.share)
        return floor + (hold.share - floor) * left

    def extended(
        self, kind: Extension, schedule: Schedule, seen: int, last: int, total: int, cooldown: int | None = None
    ) -> "RatePlan":
        """Return the plan of another length.

        Args:
            kind: What happens to the rate.
            schedule: Schedule of the recipe.
            seen: Samples seen.
            last: Samples seen before the last step, whose rate is kept.
            total: New length in samples.
            cooldown: Samples of the cool-down; None takes the recipe's, or the last fifth of what is left.

        Raises:
            UserError: The rate that would be kept is 0, or the cool-down is longer than what is left.
        """
        if kind == "schedule":
            return RatePlan(self.unit, total)
        warm = schedule.warmup_steps * self.unit
        share = 1.0 if seen < warm else self.share(schedule, last)
        if share == 0:
            raise UserError(
                f"the learning rate after {seen:,} samples is 0, so --extend {kind} would learn nothing: give "
                "--extend schedule"
            )
        hold = Hold(max(seen, warm), share)
        if kind == "cooldown":
            stated = schedule.cooldown
            left = max(0, total - hold.begin)
            part = min(left, math.ceil(left / LAST_PART / self.unit) * self.unit)  # of whole steps
            fall = cooldown or (stated.steps * self.unit if stated else part)
            if not 0 < fall <= left:
                raise UserError(
                    f"a cool-down of {fall:,} samples does not fit into the {left:,} samples "
                    "with a constant rate: give fewer --cooldown-samples, or raise max_samples"
                )
            hold = replace(hold, fall=fall, floor=schedule.final_rate, shape=stated.shape if stated else "sqrt")
        return RatePlan(self.unit, total, hold)

    def agrees(self, schedule: Schedule, seen: int, total: int | None) -> bool:
        """Return whether another length leaves the rate of all steps so far, and of the next one, as it was."""
        if self.hold is not None:
            return False
        step, ends = seen / self.unit, [math.inf if end is None else end / self.unit for end in (self.total, total)]
        if step <= schedule.warmup_steps:
            return True
        return schedule.kind == "constant" and (
            schedule.cooldown is None or step <= min(ends) - schedule.cooldown.steps
        )

    def record(self) -> dict[str, Any]:
        """Return it for the evidence of a checkpoint."""
        return asdict(self)


def read_plan(record: Any) -> RatePlan:
    """Return the plan in the evidence of a checkpoint.

    Raises:
        UserError: It has another form than train.py writes.
    """
    try:
        hold = record["hold"]
        plan = RatePlan(record["unit"], record["total"], None if hold is None else Hold(**hold))
        whole = [plan.unit, *([plan.total] if plan.total is not None else [])]
        parts = [plan.hold.begin, plan.hold.fall] if plan.hold is not None else []
        shares = [plan.hold.share, plan.hold.floor] if plan.hold is not None else []
        sound = all(type(number) is int for number in whole + parts) and plan.unit > 0
        sound = sound and all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares)
        if not sound or (plan.hold is not None and plan.hold.shape not in ("sqrt", "linear")):
            raise ValueError("a number has another type or range")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the schedule in the checkpoint's evidence cannot be read ({str(error)[:100]}): take an intact file"
        ) from None
    return plan


def read_schedule(section: Any) -> Schedule | None:
    """Return the schedule that a config describes, or None if it describes something else."""
    names = {one.name for one in fields(Schedule)}
    if not isinstance(section, dict) or not section.keys() <= names or "kind" not in section:
        return None
    try:
        cooldown = section.get("cooldown")
        return Schedule(**{**section, "cooldown": Cooldown(**cooldown) if isinstance(cooldown, dict) else None})
    except (TypeError, UserError):
        return None

"""Lets a changed recipe take effect: a restored optimizer would keep the rates of the checkpoint."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from leam_mm.errors import UserError
from leam_mm.optim.rate_plan import RatePlan
from leam_mm.optim.schedule import Schedule
from leam_mm.optim.sharding import ShardedStrategy

Settings = list[list[dict[str, Any]]]  # of each optimizer's groups


class RecipeChange(Callback):
    """Sets the learning rate of a resumed run whose length, batch size, schedule or optimizer was changed.

    Attributes:
        plan: Learning rate by samples seen; None leaves all schedules as they are.
        start: Samples seen at the start of this process, and the batch size since then.
        follow: Whether ``plan`` differs from the schedule that the module builds, or from the checkpoint's.
        renew_rates, renew_state: See `Decision`.
        history: Changes of the run so far.
        earlier_data: Name to Merkle root of folders that the run was trained on before.
    """

    def __init__(self) -> None:
        """Change nothing; the command line sets the attributes of a resumed run."""
        self.plan: RatePlan | None = None
        self.start = (0, 1)
        self.follow = self.renew_rates = self.renew_state = False
        self.history: list[dict[str, Any]] = []
        self.earlier_data: dict[str, str] = {}
        self._fresh: Settings = []

    def all_data(self, roots: dict[str, str]) -> dict[str, str]:
        """Return name to Merkle root of all folders that the run was trained on, those of now first."""
        earlier = {name: root for name, root in self.earlier_data.items() if root not in roots.values()}
        return roots | {name if name not in roots else f"{name}@{root[:12]}": root for name, root in earlier.items()}

    def evidence(self) -> dict[str, Any]:
        """Return what a checkpoint records: the schedule in samples, and the changes of the run."""
        return {"schedule": None if self.plan is None else self.plan.record(), "changes": self.history}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop the state of another optimizer."""
        if self.renew_state:
            if isinstance(trainer.strategy, ShardedStrategy):
                raise UserError(
                    "another class of optimizer cannot replace one whose state is sharded: leave overlay_fsdp2.yaml "
                    "out for this start, or keep the class"
                )
            checkpoint["optimizer_states"] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the settings of the recipe before the checkpoint's replace them."""
        self._fresh = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set rates and schedules, now that the state is restored."""
        if self.renew_rates:
            for optimizer, fresh in zip(trainer.optimizers, self._fresh, strict=True):
                renew_groups(optimizer, fresh)
        schedule = getattr(pl_module, "schedule", None)
        for config in trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if self.renew_rates and hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [
                    group.get("initial_lr", group["lr"]) for group in scheduler.optimizer.param_groups
                ]
            if (self.follow or self.renew_rates) and isinstance(scheduler, LambdaLR):
                if self.plan is not None and isinstance(schedule, Schedule):
                    follow_plan(scheduler, self.plan, schedule, *self.start)
                set_rates(scheduler)


def renew_groups(optimizer: Optimizer, fresh: list[dict[str, Any]]) -> None:
    """Give the groups of an optimizer other settings; their current rate changes as their full rate does."""
    if len(optimizer.param_groups) != len(fresh):
        raise UserError(
            f"the recipe's optimizer has {len(fresh)} groups of parameters, the checkpoint's "
            f"{len(optimizer.param_groups)}: undo the change, or start a new run folder"
        )
    for group, settings in zip(optimizer.param_groups, fresh, strict=True):
        before, now = group.get("initial_lr"), settings.get("initial_lr")
        rate = group["lr"] * now / before if before and now else settings["lr"]
        group.update({**settings, "lr": rate})


def follow_plan(scheduler: LambdaLR, plan: RatePlan, schedule: Schedule, seen: int, batch_size: int) -> None:
    """Let a schedule follow a plan from its current step on.

    Args:
        scheduler: Of an optimizer whose next step begins after ``seen`` samples.
        plan: Share of the full rate by samples.
        schedule: Schedule of the recipe.
        seen: Samples seen.
        batch_size: Samples of each step from now on.
    """
    first = scheduler.last_epoch

    def share(step: int) -> float:  # a function, since the state of a callable object would be saved
        return plan.share(schedule, seen + (step - first) * batch_size)

    scheduler.lr_lambdas = [share] * len(scheduler.base_lrs)


def set_rates(scheduler: LambdaLR) -> None:
    """Set the rates of the current step."""
    rates = [
        full * share(scheduler.last_epoch) for full, share in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # type: ignore[assignment]

"""What a resumed run does if its recipe differs from the one in its checkpoint; decided before the first step."""

import filecmp
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leam_mm.checkpoint import EVIDENCE, checkpoint_config
from leam_mm.config_defaults import default_of
from leam_mm.data.kept_tokenizer import read_tokenizer
from leam_mm.errors import UserError
from leam_mm.optim.rate_plan import Extension, RatePlan, read_plan, read_schedule
from leam_mm.optim.schedule import Schedule
from leam_mm.recipe_changes import (
    ABSENT,
    TRAIN,
    Change,
    compare,
    covers,
    has_key,
    permit,
    refusal,
    shown,
)

SCHEDULE, OPTIMIZER = "model.init_args.schedule", "model.init_args.optimizer"
RATES = ("optimizer", "layer_decay")  # parts of keys whose values an optimizer's saved state would restore
MOST_FILES = 1000  # of two folders that are compared


@dataclass(frozen=True)
class Options:
    """What the command line says about changes.

    Args:
        extend: What happens to the learning rate if max_samples differs.
        allowed: Keys that may change.
        cooldown_samples: Length of the fall of ``extend: cooldown``.
    """

    extend: Extension | None = None
    allowed: Sequence[str] = ()
    cooldown_samples: int | None = None


@dataclass(frozen=True)
class Decision:
    """How a run resumes.

    Args:
        changes: All that differs, with its effect.
        plan: Learning rate by samples seen; None if the model has a schedule of its own.
        history: Changes of this run so far, for the evidence.
        earlier_data: Training folders of the checkpoint, with their Merkle roots.
        renew_rates: The settings of the optimizer's groups are those of the recipe, not those of the checkpoint.
        renew_state: The optimizer is another one and starts without state.
    """

    changes: list[Change]
    plan: RatePlan | None
    history: list[dict[str, Any]]
    earlier_data: dict[str, str] = field(default_factory=dict)
    renew_rates: bool = False
    renew_state: bool = False


class ResumeCheck:
    """Compares a checkpoint with the recipe that resumes it.

    Args:
        file: The checkpoint.
        evidence: Its evidence.
        now: Resolved recipe.
        options: Choices of the command line.

    Attributes:
        seen: Samples seen.
        steps: Optimizer steps taken.
        end: Samples of the whole run; None without a planned end.
    """

    def __init__(self, file: Path, evidence: dict[str, Any], now: dict[str, Any], options: Options) -> None:
        """See the class for the arguments."""
        self.file, self.evidence, self.now, self.options = file, evidence, now, options
        self.before = checkpoint_config({EVIDENCE: evidence})
        self.old_batch, self.batch = _batch_size(self.before), _batch_size(now)
        self.seen = int(evidence.get("samples_seen") or 0)
        self.steps = int(evidence.get("steps", self.seen // self.old_batch if self.old_batch else 0))
        self.end = now.get("max_samples")
        steps = (now.get("trainer") or {}).get("max_steps") or -1
        if self.end is None and steps > 0 and self.batch:
            self.end = self.seen + max(0, steps - self.steps) * self.batch

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps of the whole run, those with an earlier batch size counted; None without a planned end."""
        if self.end is None or not self.batch:
            return None
        return self.steps + -(-max(0, self.end - self.seen) // self.batch)

    def decide(self, roots: Sequence[str] | None = None) -> Decision:
        """Return how the run resumes.

        Args:
            roots: Merkle roots of the training folders now; None if the data module states none.

        Raises:
            UserError: A choice is missing or impossible.
        """
        changes = compare(self.before, self.now, self._same_files, lambda key: default_of(self.now, key, ABSENT))
        changes = self._data(changes, roots)
        known = [self.before, self.now]
        changes = permit(changes, self.options.allowed, lambda key: any(has_key(config, key) for config in known))
        if refusal(changes, str(self.file)) is not None:
            return Decision(changes, None, [])
        plan, effect = self._plan(changes)
        changes = [self._counted(change, effect) for change in changes]
        steers = [change for change in changes if change.rule in ("allowed", "length", "batch")]
        renew = [change.key for change in steers if any(word in change.key for word in RATES)]
        if plan is not None and steers:
            changes += self._rate_row(plan)
        old, new = (config["model"]["init_args"].get("optimizer") or {} for config in (self.before, self.now))
        return Decision(
            changes,
            plan,
            [*self.evidence.get("changes", []), *map(self._record, steers)],
            dict(self.evidence.get("data", {})),
            renew_rates=bool(renew),
            renew_state=bool(renew) and old.get("class_path") != new.get("class_path"),
        )

    def _same_files(self, before: str, now: str) -> bool:
        """Return whether two paths hold the same content; that of a tokenizer is in the checkpoint."""
        kept = self.evidence.get("tokenizer")
        return same_files(before, now) or (bool(kept) and read_tokenizer(Path(now)) == kept)

    def _data(self, changes: list[Change], roots: Sequence[str] | None) -> list[Change]:
        """Judge the training folders by their content."""
        before = self.evidence.get("data_now", list(self.evidence.get("data", {}).values()))
        same = bool(before) and roots is not None and before == list(roots)
        found = [
            replace(change, rule="free", effect="the same data (Merkle root)")
            if change.rule == "data" and same and change.key.endswith(".path")
            else replace(change, rule="refused", effect="changes the order of the samples")
            if change.rule == "data"
            else change
            for change in changes
        ]
        if before and roots is not None and not same:
            one, two = (", ".join(str(root)[:12] for root in several) for several in (before, roots))
            found.append(Change(TRAIN, one, two, "refused", "other data (Merkle root)"))
        return found

    def _plan(self, changes: list[Change]) -> tuple[RatePlan | None, str]:
        """Return the learning rate of the rest of the run, and the effect of another length in words."""
        schedule = read_schedule(self.now["model"].get("init_args", {}).get("schedule"))
        if schedule is None or not self.batch:
            whose = "the model's own schedule" if schedule is None else "the schedule of the new length"
            return None, f"{whose} decides the learning rate"
        recorded = self.evidence.get("schedule")
        old = read_plan(recorded) if recorded else RatePlan(self.old_batch or self.batch, _length(self.before))
        if self.end is not None and self.end < self.seen:
            raise UserError(
                f"{self.file} has seen {self.seen:,} samples, and max_samples is {self.end:,}: nothing is left to "
                "train; raise it"
            )
        kind = self.options.extend
        if any(change.rule == "allowed" and covers(SCHEDULE, change.key) for change in changes):
            if kind in ("constant", "cooldown"):
                raise UserError(f"--extend {kind} keeps the rate that the changed {SCHEDULE} sets: give only one")
            return RatePlan(self.batch, self.end), "the new schedule, of this length"
        if self.end == old.total:
            return old, ""
        if self.end is None or self.end == self.seen:
            return RatePlan(old.unit, self.end), "no step is left" if self.end else "no planned end"
        if kind is None:
            if not old.agrees(schedule, self.seen, self.end):
                raise UserError(self._choice(schedule, old))
            return RatePlan(old.unit, self.end), "as if the run had had this length from the start"
        return self._extended(kind, schedule, old), self._extension_words(kind, schedule, old)

    def _extended(self, kind: Extension, schedule: Schedule, old: RatePlan) -> RatePlan:
        assert self.end is not None
        return old.extended(kind, schedule, self.seen, self._last, self.end, self.options.cooldown_samples)

    @property
    def _last(self) -> int:
        """Samples seen before the last step."""
        return max(0, self.seen - (self.old_batch or 0))

    def _extension_words(self, kind: Extension, schedule: Schedule, old: RatePlan) -> str:
        if kind == "schedule":
            return "schedule of the new length, as if from the start"
        hold = self._extended(kind, schedule, old).hold
        assert hold is not None and self.end is not None
        kept = "the rate of the last step" if hold.begin == self.seen else f"the full rate after {hold.begin:,} samples"
        return f"{kept} is kept" + (f", and falls over the last {hold.fall:,} samples" if hold.fall else " to the end")

    def _choice(self, schedule: Schedule, old: RatePlan) -> str:
        """Return the line that names the three ways to continue."""
        texts = []
        for kind in ("schedule", "cooldown", "constant"):
            try:
                plan = self._extended(kind, schedule, old)  # type: ignore[arg-type]
                words = self._extension_words(kind, schedule, old)  # type: ignore[arg-type]
                texts.append(f"--extend {kind} ({words}; next rate {self._rate(self.now, plan, self.seen)})")
            except UserError:
                texts.append(f"--extend {kind} (impossible here: the rate is 0, or the rest too short)")
        return (
            f"max_samples is {shown(self.end)} and was {shown(old.total)} in {self.file}, which has seen "
            f"{self.seen:,}; the rate was {self._rate(self.before, old, self._last)}: choose {', '.join(texts)}"
        )

    def _rate(self, config: dict[str, Any], plan: RatePlan, seen: int) -> str:
        """Return the learning rate of the step after ``seen`` samples; without a known full rate its share."""
        schedule = read_schedule(config["model"]["init_args"].get("schedule"))
        share = plan.share(schedule, seen) if schedule is not None else math.nan
        full = ((config["model"]["init_args"].get("optimizer") or {}).get("init_args") or {}).get("lr")
        return f"{full * share:.4g}" if isinstance(full, int | float) else f"{share:.4g} of the full rate"

    def _rate_row(self, plan: RatePlan) -> list[Change]:
        recorded = self.evidence.get("schedule")
        old = read_plan(recorded) if recorded else RatePlan(self.old_batch or 1, _length(self.before))
        before, now = self._rate(self.before, old, self._last), self._rate(self.now, plan, self.seen)
        return [Change("learning rate", before, now, "said", "of the last step, and of the next")]

    def _counted(self, change: Change, length: str) -> Change:
        if change.rule == "length":
            shorter = isinstance(change.before, int) and isinstance(change.now, int) and change.now < change.before
            return replace(change, effect=("shorter: " if shorter else "") + length)
        if change.rule == "batch" and self.end is not None and self.batch:
            left, rest = self.end - self.seen, (self.end - self.seen) % self.batch
            steps = f"{left:,} samples are left, {-(-left // self.batch):,} steps"
            last = f", the last of {rest:,} samples" if rest else ""
            return replace(change, effect=f"{steps}{last}; the schedule follows the samples")
        return change

    def _record(self, change: Change) -> dict[str, Any]:
        return {
            **{"key": change.key, "from": shown(change.before), "to": shown(change.now)},
            **{"samples": self.seen, "effect": change.effect},
        }


def _batch_size(config: dict[str, Any]) -> int | None:
    size = ((config.get("data") or {}).get("init_args") or {}).get("batch_size")
    return size if type(size) is int and size > 0 else None


def _length(config: dict[str, Any]) -> int | None:
    """Return the samples of the whole run, as a recipe states them."""
    if type(config.get("max_samples")) is int:
        return config["max_samples"]
    steps, batch = (config.get("trainer") or {}).get("max_steps"), _batch_size(config)
    return steps * batch if type(steps) is int and steps > 0 and batch else None


def same_files(before: str, now: str) -> bool:
    """Return whether two paths hold the same files, byte for byte."""
    one, two = Path(before), Path(now)
    try:
        if one.is_file() and two.is_file():
            return one.stat().st_size == two.stat().st_size and filecmp.cmp(one, two, shallow=False)
        if not (one.is_dir() and two.is_dir()):
            return False
        names = [sorted(path.relative_to(top) for path in top.rglob("*") if path.is_file()) for top in (one, two)]
        equal = names[0] == names[1] and 0 < len(names[0]) <= MOST_FILES
        return equal and all(filecmp.cmp(one / name, two / name, shallow=False) for name in names[0])
    except (OSError, ValueError):
        return False

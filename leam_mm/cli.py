"""The command line of train.py: LightningCLI with one complete YAML per run, checkpoints that rebuild themselves."""

import logging
import os
import platform
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from leam_mm.arithmetic import arithmetic_record, caution, changes
from leam_mm.callbacks.divergence import Divergence
from leam_mm.callbacks.energy_record import EnergyRecord
from leam_mm.callbacks.learning_rates import LearningRates
from leam_mm.callbacks.metrics_log import EventsLog, MetricsLog, RowBeforeCheckpoint
from leam_mm.callbacks.preemption import Preemption
from leam_mm.callbacks.recipe_change import RecipeChange
from leam_mm.callbacks.run_checkpoint import RunCheckpoint
from leam_mm.callbacks.save_failures import LastSave
from leam_mm.callbacks.terminal_display import replace_displays
from leam_mm.callbacks.throughput import Throughput
from leam_mm.callbacks.watchdog import AfterCallbacks, Watchdog
from leam_mm.checkpoint import (
    EVIDENCE,
    read_evidence,
    restoring_failed,
    sound_checkpoint,
)
from leam_mm.checkpoint_generations import LAST
from leam_mm.code_commit import code_commit
from leam_mm.config_error import explain
from leam_mm.data.batch import SamplePosition, samples_seen
from leam_mm.errors import UserError
from leam_mm.files import remove_leftovers, write_text
from leam_mm.optim.rate_plan import RatePlan
from leam_mm.recipe_changes import refusal, table
from leam_mm.recorded_classes import class_names, trust_modules
from leam_mm.resume_check import Options, ResumeCheck
from leam_mm.run_lock import LOCK, run_lock

CONFIG = "config.yaml"


class ConfigInCheckpoint(SaveConfigCallback):
    """Writes config.yaml into the run folder and the same text, with data and versions, into each checkpoint."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved config into the run folder."""
        if stage == "fit":
            text = self.parser.dump(self.config, skip_none=False, skip_link_targets=False)
            remove_leftovers(Path(trainer.default_root_dir), CONFIG)
            write_text(Path(trainer.default_root_dir) / CONFIG, text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config that rebuilds the module, and its training data."""
        plan = getattr(trainer.datamodule, "train_plan", None)  # type: ignore[attr-defined]
        change, roots = _recipe_change(trainer), plan.roots() if plan is not None else {}
        checkpoint[EVIDENCE] = {
            "config": self.parser.dump(self.config, skip_none=False, skip_link_targets=False),
            "model_class": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "data": change.all_data(roots),
            "data_now": list(roots.values()),
            "samples_seen": samples_seen(trainer),
            "steps": trainer.global_step,
            **change.evidence(),
            "arithmetic": arithmetic_record(torch.get_num_threads()),
            "versions": {
                "torch": str(torch.__version__),
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
            "code": _code() if trainer.is_global_zero else {},  # the checkpoint is that of the first rank
        }


@lru_cache
def _code() -> dict[str, Any]:
    """Return commit and state of the working tree when the run first saved; empty outside a working tree."""
    commit, changed = code_commit()
    return {} if commit is None else {"commit": commit, "modified": changed}


def _recipe_change(trainer: Trainer) -> RecipeChange:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((one for one in callbacks if isinstance(one, RecipeChange)), RecipeChange())


class LeamCLI(LightningCLI):
    """fit and validate, with the callbacks that every run needs as named sections."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add named sections of the callbacks of every run, the length of the run in samples, and threads."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(EnergyRecord, "energy")
        parser.add_lightning_class_args(Divergence, "divergence")
        parser.add_lightning_class_args(Watchdog, "watchdog")
        parser.add_argument(
            "--max_samples",
            type=int | None,
            default=None,
            help="Length of the run in samples seen; sets trainer.max_steps.",
        )
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            default=None,
            help="CPU threads of torch in each rank; by default torch's own choice (OMP_NUM_THREADS, else the cores).",
        )

        parser.add_argument(
            "--extend",
            type=Literal["schedule", "cooldown", "constant"] | None,
            default=None,
            help="Learning rate of a resumed run whose max_samples was changed: the schedule of the new length, the "
            "rate of the last step with a cool-down at the end, or that rate to the end.",
        )
        parser.add_argument(
            "--cooldown-samples",
            type=PositiveInt | None,
            default=None,
            help="Length of the fall of --extend cooldown; by default the recipe's, or the last fifth of the rest.",
        )
        parser.add_argument(
            "--allow-change",
            action="append",
            metavar="KEY",
            help="Dotted key that may differ from the recipe of the checkpoint; repeatable, on the command line only.",
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the supported subcommands."""
        return {name: names for name, names in LightningCLI.subcommands().items() if name in {"fit", "validate"}}

    _last: Path | None = None  # the last checkpoint, if the run resumes from it or from one before it
    _damaged: Path | None = None  # the same, if it is damaged or missing
    _check: ResumeCheck | None = None  # of a run that resumes
    _changed = ""  # keys that differ, for the message of a checkpoint that does not fit

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: Lightning would let them override the recipe."""

    def before_instantiate_classes(self) -> None:
        """Derive steps from samples, and the checkpoint folder from the run folder."""
        config = self.config[self.subcommand]
        # The recipe is the person's own: checkpoints that this run opens may name its classes.
        trust_modules(name for name in class_names(config.as_dict()) if "." in name)
        _follow_slurm(config.trainer, os.environ)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self.subcommand == "fit" and (advice := caution(arithmetic_record(torch.get_num_threads()))):
            rank_zero_info(advice)
        run = Path(config.trainer.default_root_dir or ".")
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(run / "checkpoints")
        if self.subcommand == "fit":
            self._open_check(config)
            self._set_length(config)

    def _set_length(self, config: Any) -> None:
        """Set the optimizer steps from the samples of the run, and from those already seen."""
        if self._check is not None and self._check.max_steps is not None:
            config.trainer.max_steps = self._check.max_steps
        elif config.max_samples is not None:
            batch = config.data.init_args.batch_size
            if config.max_samples % batch:
                raise UserError(f"max_samples {config.max_samples} is no multiple of data.init_args.batch_size {batch}")
            config.trainer.max_steps = config.max_samples // batch
        elif config.trainer.max_steps == -1 and config.trainer.max_epochs in (-1, None):
            raise UserError("the recipe sets no length of training: set max_samples (total number of samples seen)")

    def _open_check(self, config: Any) -> None:
        """Read the evidence of the checkpoint that the run resumes from; note a last checkpoint that is damaged."""
        cooldown = None if config.cooldown_samples is None else int(config.cooldown_samples)
        options = Options(config.extend, tuple(config.allow_change or ()), cooldown)
        config.extend = config.allow_change = config.cooldown_samples = None  # choices of this start, not of the recipe
        if config.ckpt_path is None:
            return
        last = config.ckpt_path == "last"
        path = Path(config.checkpoint.dirpath) / LAST if last else Path(config.ckpt_path)
        if not (last or path.is_file()):
            return
        sound = sound_checkpoint(path, replace=False) if last else (path, read_evidence(path))
        if sound is None:
            return
        file, evidence = sound
        self._last = path if last else None
        self._damaged = None if file == path else path
        found = evidence.get("model_class")
        now = arithmetic_record(torch.get_num_threads())
        if different := changes(evidence.get("arithmetic", {}), now):
            rank_zero_warn(f"{path} was written with other arithmetic ({different}): results may differ in last digits")
        if found != config.model.class_path:
            raise UserError(
                f"{path} is a checkpoint of {found}, this recipe trains {config.model.class_path}: "
                "set trainer.default_root_dir to another folder or remove that one"
            )
        if evidence.get("samples_seen") is None:
            return
        text = self._parser(self.subcommand).dump(config, skip_none=False, skip_link_targets=False)
        self._check = ResumeCheck(path, evidence, yaml.safe_load(text), options)

    def _decide(self) -> None:
        """Say what differs from the checkpoint's recipe and what it means, before the first step."""
        change, batch = _recipe_change(self.trainer), getattr(self.datamodule, "batch_size", None)
        if self._check is None:
            length = self.config[self.subcommand].max_samples
            change.plan = RatePlan(batch, length) if batch and length else None
            return
        check, roots = self._check, getattr(self.datamodule, "roots", None)
        try:
            decision = check.decide(list(roots().values()) if roots is not None else None)
            if decision.changes:
                rank_zero_info(
                    f"{check.file}, {check.seen:,} samples seen, resumes with changes:\n{table(decision.changes)}"
                )
            if reason := refusal(decision.changes, str(check.file)):
                raise UserError(reason)
        except UserError:
            if not self.trainer.is_global_zero:  # all ranks stop, the first one says why
                raise SystemExit(2) from None
            raise
        self._changed = ", ".join(one.key for one in decision.changes if one.rule == "allowed")
        change.plan, change.history, change.earlier_data = decision.plan, decision.history, decision.earlier_data
        change.renew_rates, change.renew_state = decision.renew_rates, decision.renew_state
        if change.plan is not None and batch:
            change.start = check.seen, batch
            built = RatePlan(batch, check.max_steps * batch if check.max_steps is not None else None)
            moved = any(one.rule in ("allowed", "length", "batch") for one in decision.changes)
            change.follow = moved or change.plan != built or check.seen != check.steps * batch

    def _run_subcommand(self, subcommand: str) -> None:
        """Train as the only run in the run folder: the first rank holds its lock."""
        if subcommand == "fit":
            self._decide()
        alone = subcommand == "fit" and self.trainer.is_global_zero
        lock = run_lock(Path(self.trainer.default_root_dir) / LOCK) if alone else nullcontext()
        with lock, self._watchdog.meeting(self.trainer) if subcommand == "fit" else nullcontext():
            if alone and self._damaged is not None:
                sound_checkpoint(self._damaged, replace=True)  # the other ranks read the file later
            try:
                super()._run_subcommand(subcommand)
            except Exception as error:  # Lightning and torch raise many kinds for a checkpoint that does not fit
                if isinstance(error, UserError) or not restoring_failed(error):
                    raise
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                changed = f" with the changed {self._changed}" if self._changed else ""
                raise UserError(
                    f"{self.trainer.ckpt_path} cannot be restored here{changed} ({reason}): give a checkpoint of this "
                    "recipe"
                ) from None

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Name the last checkpoint: a rank that looks before the first one replaces it would find none."""
        found = super()._prepare_subcommand_kwargs(subcommand)
        return found | ({"ckpt_path": str(self._last)} if self._last is not None else {})

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the plugins, loggers and callbacks of every run."""
        config = self.config_init[self.subcommand].trainer
        plugins = config.plugins if isinstance(config.plugins, list) else [p for p in [config.plugins] if p is not None]
        if "ModelParallel" not in str(type(config.strategy)) and "ModelParallel" not in str(config.strategy):
            plugins = [*plugins, self._get(self.config_init, "checkpoint").writer()]
        if config.logger is not False:
            # Loggers of the recipe (such as W&B) are added to the two of every run.
            named = self._loggers(self.config_init[self.subcommand].trainer.logger)
            run = config.default_root_dir or "."
            kwargs["logger"] = [MetricsLog(run), EventsLog(run, name="", version="tensorboard"), *named]
        trainer = super().instantiate_trainer(**kwargs, plugins=plugins)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        end = self._check.end if self._check is not None else self.config_init[self.subcommand].max_samples
        callbacks[:0] = [SamplePosition(end), RowBeforeCheckpoint(), RecipeChange(), LearningRates()]
        # Its save must contain what all other callbacks record after a step, like the regular saves, which come last.
        last = next((n for n, one in enumerate(callbacks) if isinstance(one, Checkpoint)), len(callbacks))
        callbacks.insert(last, Preemption())
        callbacks.append(LastSave())
        self._watchdog = next(one for one in callbacks if isinstance(one, Watchdog))
        callbacks.remove(self._watchdog)
        callbacks.insert(0, self._watchdog)
        callbacks.append(AfterCallbacks(self._watchdog))
        if self.subcommand == "fit":
            self._watchdog.configure(trainer)
        replace_displays(callbacks)
        return trainer

    @staticmethod
    def _loggers(logger: Any) -> list[Any]:
        if logger is None or isinstance(logger, bool):
            return []
        return list(logger) if isinstance(logger, list | tuple) else [logger]


def _follow_slurm(trainer: Any, environment: Mapping[str, str]) -> None:
    """Take nodes and devices from the Slurm job, if there is one; elsewhere refuse Slurm's plugin."""
    tasks = int(environment.get("SLURM_NTASKS", 0))
    if not tasks or environment.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        if "SLURMEnvironment" in str(trainer.plugins):
            raise UserError(
                "configs/overlay_slurm.yaml is for jobs of Slurm: sbatch configs/clusters/slurm.sh RECIPE.yaml, "
                "or leave it out"
            )
        return
    if tasks > 1 and "SLURM_STEP_ID" not in environment:
        raise UserError(
            f"this is one process in a Slurm job of {tasks} tasks and would wait for the others for ever: "
            "start it with srun, as configs/clusters/slurm.sh does"
        )
    trainer.num_nodes = int(environment.get("SLURM_NNODES", 1))
    trainer.devices = int(environment.get("SLURM_NTASKS_PER_NODE") or tasks // trainer.num_nodes)


# Warnings that do not apply here: the sampler resumes, the averaged copy stays in eval mode, a module moves its batch.
QUIET = (
    r".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",
    r".*there is no last checkpoint available.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*ended before the epoch ended and your dataloader is not resumable.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*does not have many workers.*",
    r".*The `srun` command is available on your system but is not used.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Checkpoint directory .* exists and is not empty.*",
)


def main(args: list[str] | None = None) -> LeamCLI:
    """Run the command line; tests call it in process with their own arguments."""
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    # Its "weights_only was not set" does not hold: our checkpoint writers never unpickle code.
    logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").addFilter(
        lambda record: "weights_only" not in record.getMessage()
    )
    raising = {"exit_on_error": False}  # otherwise jsonargparse prints a page of usage before the error
    try:
        return LeamCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=ConfigInCheckpoint,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, "max_epochs": -1},
            # The modules build their own optimizer: a top-level `optimizer:` would be ignored silently.
            auto_configure_optimizers=False,
            parser_kwargs={**raising, **dict.fromkeys(LeamCLI.subcommands(), raising)},
            args=args,
        )
    except ArgumentError as error:
        raise UserError(explain(str(error), sys.argv[1:] if args is None else args)) from None

"""What differs between the recipe that wrote a checkpoint and the one that resumes it, and what each difference means.

One table of rules decides by key. A key without a rule is refused, because it may change the result; this includes the
options of a lab's own classes.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from leam_mm.errors import UserError

Rule = Literal["free", "refused", "locked", "data", "length", "batch", "callback", "silent", "allowed", "said"]
ABSENT = "absent"
LENGTH = ("max_samples", "trainer.max_steps")
BATCH, TRAIN = "data.init_args.batch_size", "data.init_args.train"
LONGEST = 60  # characters of a value in the table
# Patterns of keys, the first that matches decides: `*` is any number of parts or letters.
RULES: tuple[tuple[str, Rule, str], ...] = (
    ("extend allow_change cooldown_samples ckpt_path config", "silent", ""),
    ("trainer.max_epochs trainer.min_epochs trainer.min_steps trainer.max_time", "free", "when the run ends"),
    ("max_samples trainer.max_steps", "length", ""),
    (BATCH, "batch", ""),
    (f"{TRAIN} {TRAIN}.*", "data", ""),
    ("data.init_args.loading* threads", "free", "speed"),
    ("data.init_args.validation data.init_args.validation_samples", "free", "what is measured"),
    ("model", "locked", "another kind of model: start a new run folder with --trainer.default_root_dir"),
    ("model.init_args.frozen*", "free", "their digests are compared when the run starts"),
    ("model.init_args.weights", "free", "its digest is compared when the run starts"),
    ("*.init_scale", "free", "an initial value, which the checkpoint replaces"),
    ("model.init_args.micro_batch model.init_args.exchange model.init_args.attention", "free", "same up to rounding"),
    ("trainer.accelerator trainer.devices trainer.num_nodes", "free", "same samples, same up to rounding"),
    ("trainer.strategy* trainer.plugins* trainer.benchmark trainer.deterministic", "free", "same up to rounding"),
    ("trainer.callbacks*", "callback", ""),
    ("trainer.default_root_dir checkpoint* throughput* energy* divergence*", "free", "what is kept and measured"),
    ("watchdog*", "free", "when a run without progress ends"),
    ("trainer.logger* trainer.log_every_n_steps trainer.profiler trainer.enable_*", "free", "what is logged"),
    ("trainer.val_check_interval trainer.check_val_every_n_epoch trainer.limit_*", "free", "what is measured"),
    ("trainer.num_sanity_val_steps trainer.detect_anomaly trainer.barebones", "free", "what is measured"),
    ("trainer.inference_mode trainer.model_registry trainer.use_distributed_sampler", "free", "what is measured"),
)
NOT_FREE = ("trainer.limit_train_batches",)  # although a pattern above matches
ROUNDING = {"Compilation", "GradientCheckpointing"}  # callbacks that change the speed, and digits by rounding
# Callbacks that change the weights of a run; all others are taken as ones that only watch.
STEERING = {
    *("Freezing", "Float8", "GradientAccumulationScheduler", "StochasticWeightAveraging", "WeightAveraging"),
    *("EMAWeightAveraging", "ModelPruning", "BackboneFinetuning", "BaseFinetuning", "BatchSizeFinder"),
    *("LearningRateFinder", "EarlyStopping"),
}


@dataclass(frozen=True)
class Change:
    """One key that differs.

    Args:
        key: Dotted key; a class in a list stands under its name.
        before: Value in the checkpoint, or ABSENT.
        now: Value in the recipe, or ABSENT.
        rule: What the table says about it.
        effect: What it means for the run, in a few words.
    """

    key: str
    before: Any
    now: Any
    rule: Rule
    effect: str


def find_rule(key: str) -> tuple[Rule, str]:
    """Return the rule of a key and its effect in words."""
    if key not in NOT_FREE:
        for patterns, rule, effect in RULES:
            if any(_matches(pattern, key) for pattern in patterns.split()):
                return _callback_rule(key) if rule == "callback" else (rule, effect)
    return "refused", "changes the result"


def _matches(pattern: str, key: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) is not None


def _callback_rule(key: str) -> tuple[Rule, str]:
    name = key.removeprefix("trainer.callbacks").lstrip(".").partition(".")[0]
    name = re.sub(r"_\d+$", "", name)
    if name in STEERING:
        return "refused", "changes the result"
    if name in ROUNDING:
        return "free", "same up to rounding"
    return "free", "taken as a callback that only watches"


def compare(
    before: dict[str, Any],
    now: dict[str, Any],
    same_files: Callable[[str, str], bool] = lambda before, now: False,
    default: Callable[[str], Any] = lambda key: ABSENT,
) -> list[Change]:
    """Return what differs, in the order of the recipe.

    Args:
        before: Resolved config of the run that wrote the checkpoint.
        now: Resolved config of the run that resumes.
        same_files: Whether two paths hold the same content.
        default: Default of a key of the recipe. An option that the checkpoint does not have, because an earlier version
            wrote it, is no change if it has its default.
    """
    found: list[Change] = []
    for key, one, two in _differences("", _plain(before), _plain(now)):
        rule, effect = find_rule(key)
        if rule == "silent" or (one is ABSENT and two == default(key)) or (two is ABSENT and one is None):
            continue
        if rule == "refused" and isinstance(one, str) and isinstance(two, str) and same_files(one, two):
            rule, effect = "free", "the same files"
        found.append(Change(key, one, two, rule, effect))
    return [change for change in found if change.key != "trainer.max_steps" or now.get("max_samples") is None]


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config in which one training folder is a list of one source."""
    arguments = (config.get("data") or {}).get("init_args") or {}
    if not isinstance(train := arguments.get("train"), str):
        return config
    sources = [{"path": train, "weight": 1.0, "language": None}]
    return {**config, "data": {**config["data"], "init_args": {**arguments, "train": sources}}}


def _differences(key: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    one, two = _named(before, now), _named(now, before)
    if before == now:
        return
    if not isinstance(one, dict) or not isinstance(two, dict):
        yield key, before, now
    elif one.get("class_path") != two.get("class_path"):
        yield key, one.get("class_path", before), two.get("class_path", now)
    else:
        for name in [*two, *(name for name in one if name not in two)]:
            yield from _differences(f"{key}.{name}" if key else name, one.get(name, ABSENT), two.get(name, ABSENT))


def _named(value: Any, other: Any) -> Any:
    """Return a list of mappings as one mapping: its items by their class, or by their number if they name none."""
    if _mappings(value):
        names = [str(item.get("class_path", number)).rpartition(".")[2] for number, item in enumerate(value)]
        counts = [names[:number].count(name) for number, name in enumerate(names)]
        return {
            f"{name}_{count + 1}" if count else name: item
            for name, count, item in zip(names, counts, value, strict=True)
        }
    return {} if value in (None, []) and _mappings(other) else value


def _mappings(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def covers(option: str, key: str) -> bool:
    """Return whether ``--allow-change option`` permits a change of a key: the key itself, or anything below it.

    ``init_args`` may be left out, as recipes do where the class is the default one.
    """
    option, key = (_short(name) for name in (option, key))
    return option in (key, f"{key}.class_path") or key.startswith(f"{option}.")


def _short(key: str) -> str:
    return ".".join(name for name in key.split(".") if name != "init_args")


def permit(changes: Sequence[Change], options: Sequence[str], known: Callable[[str], bool]) -> list[Change]:
    """Return the changes with those marked that ``--allow-change`` permits.

    Args:
        changes: Result of `compare`.
        options: Dotted keys. One without a change has no effect, so that the same command resumes again.
        known: Whether a dotted key is in one of the recipes.

    Raises:
        UserError: A key is in neither recipe.
    """
    for option in options:
        if not known(option) and not any(covers(option, change.key) for change in changes):
            raise UserError(f"--allow-change {option}: no such key in the recipe; --print_config shows the valid ones")
    return [
        replace(change, rule="allowed", effect="allowed: takes effect at the next step")
        if change.rule == "refused" and any(covers(option, change.key) for option in options)
        else change
        for change in changes
    ]


def has_key(config: Any, key: str) -> bool:
    """Return whether a config has a dotted key; a class in a list stands under its name."""
    for name in _short(key).split("."):
        config = _named(config, None)
        if isinstance(config, dict) and name not in config and isinstance(config.get("init_args"), dict):
            config = config["init_args"]
        if not isinstance(config, dict) or name not in config:
            return False
        config = config[name]
    return True


def refusal(changes: Sequence[Change], file: str) -> str | None:
    """Return why a run does not resume, in one line; None if it does."""
    if locked := [change for change in changes if change.rule == "locked"]:
        return f"{file}: {_words(locked)}: {locked[0].effect}"
    refused = [change for change in changes if change.rule == "refused"]
    if not refused:
        return None
    options = " ".join(f"--allow-change {change.key}" for change in refused)
    return (
        f"{file} was trained with another recipe: {_words(refused)}; set it back, start a new run folder with "
        f"--trainer.default_root_dir FOLDER, or resume with {options}"
    )


def _words(changes: Sequence[Change]) -> str:
    return ", ".join(f"{change.key} {shown(change.before)} -> {shown(change.now)}" for change in changes)


def shown(value: Any) -> str:
    """Return a value in a few letters; of a class its name."""
    if isinstance(value, dict) and "class_path" in value:
        value = value["class_path"]
    text = f"{value:,}" if type(value) is int else str(value)
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*\.[A-Z]\w*", value):
        text = value.rpartition(".")[2]
    if len(text) > LONGEST:
        text = f"...{text[3 - LONGEST :]}" if isinstance(value, str) else f"{text[: LONGEST - 3]}..."
    return text


def table(changes: Sequence[Change]) -> str:
    """Return a table of all changes: key | run | now | effect."""
    words = {"free": "free: ", "refused": "refused: ", "locked": "refused: "}
    rows = [("key", "run", "now", "effect")]
    rows += [
        (change.key, shown(change.before), shown(change.now), words.get(change.rule, "") + change.effect)
        for change in sorted(changes, key=lambda change: change.rule == "free")
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        " | ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    )

"""Which classes a file from someone else may name: ours, torch's optimizers, and those of modules that a person trusts.

A config inside a checkpoint and a list of vetting rules name classes by dotted path. Importing a module runs it, so a
name is compared with a list before anything is imported. A person adds modules with ``--trust my_lab``.
"""

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from leam_mm.errors import UserError

PARTS = (
    *("captions", "codec_module", "codecs", "contrastive_module", "denoisers", "diffusion", "diffusion_module"),
    *("encoders", "losses", "marking.image_changes", "marking.mark_extractor", "optim", "techniques"),
)
MODEL_CLASSES = (*(f"leam_mm.{name}" for name in PARTS), "torch.optim")
RULE_CLASSES = ("data_tools.vetting",)
TRUST = "LEAM_MM_TRUST"  # environment variable, so that worker processes and stages of a pipeline inherit it
MAX_NODES = 100_000  # of a config; aliases of YAML count each time, for a few lines of them expand without end


def trust_modules(names: str | Iterable[str]) -> None:
    """Allow files to name classes of further modules, in this process and in those that it starts.

    Args:
        names: Modules, packages or classes, also in one text between commas. Everything below them is allowed, too.

    Raises:
        UserError: A name is not a dotted name.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    for name in wanted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--trust {name!r} is not the name of a module: give a dotted name, such as my_lab")
    if wanted:
        os.environ[TRUST] = ",".join(dict.fromkeys([*trusted_modules(), *wanted]))


def trusted_modules() -> list[str]:
    """Return the modules that a person has named."""
    return [name for name in os.environ.get(TRUST, "").split(",") if name]


def class_names(content: Any) -> Iterator[str]:
    """Yield every ``class_path`` of a config, at any depth.

    Raises:
        UserError: One is not a string, or the config is larger than any honest one.
    """
    waiting, nodes = [content], 0
    while waiting:
        value = waiting.pop()
        nodes += 1
        if nodes > MAX_NODES:
            raise UserError(f"the config has more than {MAX_NODES} entries: it was not written by train.py")
        if isinstance(value, dict):
            if "class_path" in value:
                if not isinstance(value["class_path"], str):
                    raise UserError(f"class_path is {str(value['class_path'])[:80]!r}, not the dotted name of a class")
                yield value["class_path"]
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def check_classes(content: Any, allowed: Iterable[str]) -> None:
    """Check that a config names classes of allowed modules only, before anything of them is imported.

    Args:
        content: The config, of dicts, lists and plain values.
        allowed: `MODEL_CLASSES` or `RULE_CLASSES`; trusted modules are added.

    Raises:
        UserError: A class is not allowed, cannot be imported, or is no class.
    """
    modules = [*allowed, *trusted_modules()]
    for name in class_names(content):
        if "." not in name:
            continue  # jsonargparse looks these up among the classes that are imported already
        if not _within(name, modules):
            raise UserError(
                f"{name[:100]} is not one of the classes that may be imported here: if you trust its code, give "
                f"--trust {name.partition('.')[0][:50]}, or name it in {TRUST}"
            )
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), attribute, None)
        except ImportError as error:
            raise UserError(f"{name} cannot be imported ({error}): install its package") from None
        if not isinstance(found, type) or not _within(f"{found.__module__}.{found.__qualname__}", modules):
            raise UserError(f"{name} is not a class of {module}: correct the name")


def _within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


@contextmanager
def only_classes_of(allowed: Iterable[str]) -> Iterator[None]:
    """Have jsonargparse import nothing but allowed modules, wherever a value names them.

    `check_classes` sees class paths; jsonargparse also takes names in place of functions, types and modules.

    Args:
        allowed: `MODEL_CLASSES` or `RULE_CLASSES`; trusted modules are added.
    """
    from jsonargparse import set_parsing_settings
    from jsonargparse._common import parsing_settings  # the setter has no counterpart that restores

    before = dict(parsing_settings)
    try:
        set_parsing_settings(
            instantiate_subclass_spec_in_any=False,
            import_path_denylist=["*"],
            import_path_allowlist=[*allowed, *trusted_modules()],
        )
        yield
    finally:
        parsing_settings.update(before)


def check_recorded(value: Any, kind: type, allowed: Iterable[str]) -> None:
    """Check that a part of a config describes an object of a class, and names allowed classes only.

    Args:
        value: The part.
        kind: The expected class, or a base of it.
        allowed: `MODEL_CLASSES` or `RULE_CLASSES`; trusted modules are added.

    Raises:
        UserError: A class is not allowed.
        jsonargparse.ArgumentError: The part describes something else.
    """
    _parse(value, kind, allowed)


def build_recorded(value: Any, kind: type, allowed: Iterable[str]) -> Any:
    """Build the object that a part of a config describes; see `check_recorded`."""
    parser, parsed = _parse(value, kind, allowed)
    with only_classes_of(allowed):
        return parser.instantiate(parsed).part


def _parse(value: Any, kind: type, allowed: Iterable[str]) -> tuple[Any, Any]:
    from jsonargparse import ArgumentParser

    check_classes(value, allowed)
    parser = ArgumentParser(exit_on_error=False)
    # Not add_subclass_arguments: it would read a file wherever the path of one stands in place of a class.
    parser.add_argument("--part", type=kind, required=True)
    with only_classes_of(allowed):
        return parser, parser.parse_object({"part": value})

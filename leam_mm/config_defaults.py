"""Defaults of the options of a recipe, by dotted key, from the signatures of the classes that it names."""

import dataclasses
import importlib
import inspect
import types
import typing
from typing import Any

UNKNOWN = object()


def default_of(config: dict[str, Any], key: str, missing: Any = UNKNOWN) -> Any:
    """Return the default of an option.

    Args:
        config: Resolved recipe of a person who trusts its classes.
        key: Dotted key below a ``class_path``.
        missing: Returned if the option has no default, or its class cannot be found.
    """
    names = key.split(".")
    owner: Any = None
    value: Any = config
    for number, name in enumerate(names):
        if isinstance(value, dict) and isinstance(value.get("class_path"), str) and name == "init_args":
            owner = _class(value["class_path"])
        elif owner is not None and number < len(names) - 1:
            owner = _part(owner, name)
        value = value.get(name) if isinstance(value, dict) else None
    if owner is None:
        return missing
    try:
        found = inspect.signature(owner).parameters[names[-1]].default
    except (KeyError, TypeError, ValueError):
        return missing
    found = dataclasses.asdict(found) if dataclasses.is_dataclass(found) and not isinstance(found, type) else found
    return missing if found is inspect.Parameter.empty else list(found) if isinstance(found, tuple) else found


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _part(owner: Any, name: str) -> Any:
    """Return the dataclass that an argument of a class takes, if it takes one."""
    try:
        hint = typing.get_type_hints(owner if dataclasses.is_dataclass(owner) else owner.__init__).get(name)
    except (NameError, TypeError, AttributeError):
        return None
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return next((kind for kind in (typing.get_args(hint) if union else [hint]) if dataclasses.is_dataclass(kind)), None)

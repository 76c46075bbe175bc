"""Recipes as plain values: YAML files merged in their order, as train.py merges several --config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from leam_mm.errors import UserError

# Lightning's names, which train.py takes for trainer.precision
PRECISIONS = (
    *("bf16-mixed", "16-mixed", "bf16-true", "16-true", "32-true", "64-true", "transformer-engine"),
    *("transformer-engine-float16", "bf16", "16", "32", "64"),
)


def read_recipe(files: Sequence[Path]) -> dict[str, Any]:
    """Read a recipe and the overlays on top of it.

    A mapping is merged key by key, and a key that ends with ``+`` appends to a list. A mapping with another
    ``class_path`` replaces the old one.

    Args:
        files: The recipe first, then overlays, or the config.yaml of a run.

    Raises:
        UserError: A file is missing or is no YAML mapping, or the result has no ``model`` or ``data``.
    """
    recipe: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}): give the path of a recipe") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: is no YAML ({str(error).splitlines()[0]}): give the path of a recipe") from None
        if not isinstance(content, dict):
            raise UserError(f"{file}: holds no settings: give the path of a recipe, such as configs/clip_vit_b32.yaml")
        recipe = merge(recipe, content)
    for section in ("model", "data"):
        if not isinstance(recipe.get(section), dict) or "class_path" not in recipe[section]:
            raise UserError(
                f"{', '.join(map(str, files))}: {section}.class_path is missing: give a training recipe first"
            )
    check_types(recipe, ", ".join(map(str, files)))
    return recipe


def check_types(recipe: Mapping[str, Any], where: str) -> None:
    """Check the types of the settings that the planner reads; train.py checks all of them.

    Args:
        recipe: The recipe.
        where: Its files, for the message.

    Raises:
        UserError: A setting has a wrong type or a number out of its range.
    """

    def fault(key: str, value: Any, fix: str) -> UserError:
        return UserError(f"{where}: {key} is {value!r}: give {fix}")

    trainer = recipe.get("trainer")
    groups = {"trainer": trainer, **{f"{name}.init_args": recipe[name].get("init_args") for name in ("model", "data")}}
    for key, value in groups.items():
        if value is not None and not isinstance(value, dict):
            raise fault(key, value, "key: value pairs")
    listed = (trainer or {}).get("callbacks")
    for one in [] if listed is None else listed if isinstance(listed, list) else [listed]:
        if not isinstance(one, dict) or not isinstance(one.get("init_args") or {}, dict):
            raise fault("trainer.callbacks", listed, "a list of {class_path: ..., init_args: {...}}")
    numbers = {"max_samples": recipe.get("max_samples")}
    numbers["data.init_args.batch_size"] = (recipe["data"].get("init_args") or {}).get("batch_size")
    for key, value in numbers.items():
        if value is not None and (type(value) is not int or value < 1):
            raise fault(key, value, "a whole number of at least 1")
    precision = (trainer or {}).get("precision")
    if precision is not None and str(precision) not in PRECISIONS:
        raise fault("trainer.precision", precision, f"one of {', '.join(PRECISIONS)}")


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the settings of ``above`` on top; neither is changed."""
    if below and "class_path" in above and above["class_path"] != below.get("class_path"):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        name = key.removesuffix("+")
        old = merged.get(name)
        if key.endswith("+"):
            merged[name] = [*(old or []), *(value if isinstance(value, list) else [value])]
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged


def callbacks(recipe: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the arguments of the recipe's callbacks of one class, by the class's name."""
    found = (recipe.get("trainer") or {}).get("callbacks") or []
    found = found if isinstance(found, list) else [found]
    return [one.get("init_args") or {} for one in found if str(one.get("class_path", "")).rpartition(".")[2] == name]


def arguments(section: Any) -> dict[str, Any]:
    """Return the settings of a section, which stand below ``init_args`` if it names its class; empty for None."""
    found = section if isinstance(section, dict) else {}
    return dict((found.get("init_args") or {}) if "class_path" in found else found)

"""Paths in records: relative to the working folder, or the name alone; nobody else has the folders of this machine."""

import os
import re
from pathlib import Path
from typing import Any

# An absolute path within a text; a letter or a slash before it makes it the middle of another path or of an address.
ABSOLUTE = re.compile(r"(?<![\w./:~-])/[^\s\"'<>|;,:()\[\]]+")


def recorded_path(path: Path | str) -> str:
    """Return a path for a record: relative ones as they are, others from the working folder on, or their name alone.

    Args:
        path: Of a file or a folder, which need not exist.
    """
    given = Path(path)
    if not given.is_absolute():
        return str(path)
    for root in (Path.cwd(), Path(os.environ.get("PWD", "."))):  # PWD keeps the links of the shell's folder
        if given.is_relative_to(root):
            return str(given.relative_to(root))
    return given.name or str(given)


def without_machine_paths(value: Any) -> Any:
    """Return values of JSON in which each absolute path of this machine is as in ``recorded_path``.

    Args:
        value: Texts, keys included, may be a path or hold some; in a text, only what exists is one.
    """
    if isinstance(value, str):
        if value.startswith("/") and "\n" not in value and os.path.lexists(value):
            return recorded_path(value)
        return ABSOLUTE.sub(_recorded, value) if "/" in value else value
    if isinstance(value, Path):
        return recorded_path(value)
    if isinstance(value, list | tuple):
        return [without_machine_paths(item) for item in value]
    if isinstance(value, dict):
        return {without_machine_paths(key): without_machine_paths(item) for key, item in value.items()}
    return value


def _recorded(found: re.Match[str]) -> str:
    text = found[0].rstrip(".")
    return recorded_path(text) + found[0][len(text) :] if len(text) > 1 and os.path.lexists(text) else found[0]

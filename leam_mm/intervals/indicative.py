"""Numbers that are indicative only: written although their samples, or their judge, do not support a conclusion."""

from collections.abc import Mapping
from typing import Any

INDICATIVE = "indicative only"


def indicative(reason: str) -> str:
    """Return the part of a note that marks its number, and says why."""
    return f"{INDICATIVE}: {reason}"


def is_indicative(row: Mapping[str, Any]) -> bool:
    """Return whether the note of a line of results.jsonl marks its number."""
    return INDICATIVE in str(row.get("note") or "")

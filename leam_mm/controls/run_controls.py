"""Run controls and collect them in one table."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leam_mm.controls.control import Control


def run_controls(controls: Sequence[Control], progress: Callable[[str], None]) -> dict[str, Any]:
    """Run all controls; one that raises is not caught, and its row names the error.

    Args:
        controls: The controls.
        progress: Called with one line for each control that ends.

    Returns:
        {"controls": number, "caught": number on the right side, "rows": [...]}.
    """
    rows = []
    for control in controls:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="control-") as folder:
            try:
                outcome = control.run(Path(folder))
                found, right = outcome.found, outcome.right
            except Exception as error:  # of any kind: one control must not end the others
                found, right = f"{type(error).__name__}: {error}", False
        rows.append({
            "subject": control.subject, "control": control.name, "kind": "positive" if control.positive else "negative",
            "expected": control.expected, "found": found, "caught": right,
            "seconds": round(time.monotonic() - start, 2),
        })  # fmt: skip
        progress(f"{'ok' if right else 'MISSED':6}  {control.subject}: {control.name}: {found}")
    return {"controls": len(rows), "caught": sum(row["caught"] for row in rows), "rows": rows}

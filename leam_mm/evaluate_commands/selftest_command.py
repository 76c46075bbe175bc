"""Run every audit and metric against a positive and a negative control, and write selftest.json.

python evaluate.py selftest --output runs/selftest
"""

import json
from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import parse_settings
from leam_mm.controls.all_controls import all_controls
from leam_mm.controls.run_controls import run_controls
from leam_mm.errors import UserError
from leam_mm.files import write_text

SELFTEST = "selftest.json"


@dataclass(frozen=True)
class SelftestOptions:
    """Settings of the self-test.

    Args:
        output: Folder for selftest.json.
        only: Start of the subjects to run, such as audit/memorization; empty runs all.
    """

    output: Path = Path("runs/selftest")
    only: str = ""


def selftest(options: SelftestOptions) -> None:
    """Run the controls.

    Raises:
        UserError: A control is on the wrong side.
    """
    controls = [control for control in all_controls() if control.subject.startswith(options.only)]
    if not controls:
        raise UserError(f"--only {options.only}: no control has such a subject; run the self-test without it")
    table = run_controls(controls, print)
    write_text(options.output / SELFTEST, json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    print(f"{table['caught']} of {table['controls']} controls on the right side; wrote {options.output / SELFTEST}")
    if missed := [row["control"] for row in table["rows"] if not row["caught"]]:
        raise UserError(
            f"{len(missed)} controls are on the wrong side: {', '.join(missed)}; see {options.output / SELFTEST}"
        )


def main(args: list[str]) -> None:
    """Parse the command line and run the self-test."""
    selftest(parse_settings(SelftestOptions, __doc__, args, program="evaluate.py selftest"))

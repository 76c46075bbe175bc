"""Plan a training run, and check the planner against published runs and against runs of your own.

    python -m leam_mm.planning plan configs/clip_vit_l14.yaml --cluster juwels_booster --nodes 16
    python -m leam_mm.planning check
    python -m leam_mm.planning simulate configs/clip_vit_l14.yaml --cluster jupiter
    python -m leam_mm.planning calibrate RECIPE.yaml --output calibration.json
    python -m leam_mm.planning compare RUN --calibration calibration.json

Each command is a dataclass of options and a function in a file of its own. Nothing is downloaded.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from leam_mm.command_line import parse_commands
from leam_mm.errors import run
from leam_mm.planning.calibrate_command import CalibrateOptions, show_calibration
from leam_mm.planning.check_command import CheckOptions, check
from leam_mm.planning.compare_command import CompareOptions, show_comparison
from leam_mm.planning.plan_command import PlanOptions, show_plan
from leam_mm.planning.simulate_command import SimulateOptions, show_scaling


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        options: Dataclass of its options.
        function: Called with the options; returns the exit code.
        positional: Options that are given without their name.
    """

    options: type[Any]
    function: Callable[[Any], int]
    positional: Sequence[str] = ()


COMMANDS = {
    "check": Command(CheckOptions, check),
    "plan": Command(PlanOptions, show_plan, ("recipe",)),
    "simulate": Command(SimulateOptions, show_scaling, ("recipe",)),
    "calibrate": Command(CalibrateOptions, show_calibration, ("recipe",)),
    "compare": Command(CompareOptions, show_comparison, ("run",)),
}


def main(args: list[str] | None = None) -> None:
    """Run a command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = parse_commands(
        {name: command.options for name, command in COMMANDS.items()},
        __doc__,
        args,
        {name: command.positional for name, command in COMMANDS.items()},
    )
    command = next(one for one in COMMANDS.values() if one.options is type(options))
    if code := command.function(options):
        raise SystemExit(code)


if __name__ == "__main__":
    run(main)

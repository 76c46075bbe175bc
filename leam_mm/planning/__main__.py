"""Plan a training run, and check the planner against published runs and against runs of your own.

    python -m leam_mm.planning plan configs/clip_vit_l14.yaml --cluster juwels_booster --nodes 16
    python -m leam_mm.planning check
    python -m leam_mm.planning simulate configs/clip_vit_l14.yaml --cluster jupiter
    python -m leam_mm.planning calibrate RECIPE.yaml --output calibration.json
    python -m leam_mm.planning compare RUN --calibration calibration.json

Each command is a dataclass of options and a function in a file of its own. Nothing is downloaded.
"""

import logging

from leam_mm.command_line import Command, run_command
from leam_mm.errors import run
from leam_mm.planning.calibrate_command import CalibrateOptions, show_calibration
from leam_mm.planning.check_command import CheckOptions, check
from leam_mm.planning.compare_command import CompareOptions, show_comparison
from leam_mm.planning.plan_command import PlanOptions, show_plan
from leam_mm.planning.simulate_command import SimulateOptions, show_scaling

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
    run_command(COMMANDS, __doc__, args)


if __name__ == "__main__":
    run(main)

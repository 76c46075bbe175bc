"""All controls of the self-test."""

from leam_mm.controls.control import Control
from leam_mm.controls.judge_controls import judge_controls


def all_controls() -> list[Control]:
    """Return the controls of every audit and metric, quick ones first."""
    return [*judge_controls()]

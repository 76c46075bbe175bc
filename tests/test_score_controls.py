"""Every control of retrieval, CLIPScore, intervals and comparisons is on the right side."""

from pathlib import Path

import pytest

from leam_mm.controls.control import Control
from leam_mm.controls.score_controls import score_controls


@pytest.mark.parametrize("control", score_controls(), ids=lambda control: f"{control.subject}: {control.name}")
def test_control(control: Control, tmp_path: Path) -> None:
    outcome = control.run(tmp_path)
    assert outcome.right, outcome.found

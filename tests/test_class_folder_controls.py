"""Every control on class sub-folders is on the right side; a probe that sees test images is not."""

from pathlib import Path

import pytest

from leam_mm.controls.class_folder_controls import class_folder_controls
from leam_mm.controls.control import Control
from leam_mm.evaluators import embedded_images


@pytest.mark.parametrize("control", class_folder_controls(), ids=lambda one: f"{one.subject}: {one.name}")
def test_controls_are_on_the_right_side(control: Control, tmp_path: Path) -> None:
    outcome = control.run(tmp_path)
    assert outcome.right, outcome.found


def test_a_probe_that_sees_test_images_would_be_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the comparison of files, the copied test images give a high number, which the control notices."""
    monkeypatch.setattr(embedded_images, "new_to_test", lambda train, test: list(range(len(train))))
    control = next(one for one in class_folder_controls() if "copied" in one.name)
    outcome = control.run(tmp_path)
    assert not outcome.right and float(outcome.found.split()[0]) > 0.2

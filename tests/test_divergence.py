"""A loss that is no number ends the run in one line, names its samples, and leaves the last good checkpoint alone."""

import json
import textwrap
from pathlib import Path

import pytest
import torch
from toys.command_line import fit_here
from toys.recipes import clip_recipe

from leam_mm.checkpoint import read_checkpoint
from leam_mm.errors import UserError

BROKEN = """
    import torch
    from leam_mm.losses.contrastive import InfoNCE

    class BrokenLoss(InfoNCE):
        '''Not a number from the given call on.'''

        def __init__(self, call: int, value: float):
            super().__init__()
            self.left, self.value = call, value

        def forward(self, image, text, scale, bias):
            loss = super().forward(image, text, scale, bias)
            self.left -= 1
            return loss * self.value if self.left < 0 else loss
"""


@pytest.mark.parametrize(("value", "look"), [("nan", 1), ("inf", 3), ("nan", 100)])
def test_run_ends_and_names_the_samples(
    value: str,
    look: int,
    toy_shards: Path,
    toy_tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken_loss.py").write_text(textwrap.dedent(BROKEN))
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / "run"
    recipe = clip_recipe(run, toy_shards, toy_tokenizer, max_samples=64)
    recipe["checkpoint"] = {"every_n_train_steps": 4}
    recipe["divergence"] = {"every_n_steps": look}
    recipe["model"]["init_args"]["loss"] = {
        "class_path": "broken_loss.BrokenLoss",
        "init_args": {"call": 5, "value": float(value)},
    }
    with pytest.raises(UserError, match=rf"the loss is {value} after step 6; the keys of the batch are in .*diverged"):
        fit_here(recipe, tmp_path)
    note = json.loads((run / "diverged.0.json").read_text())
    assert note["step"] == 6 and note["samples"] == 8 and len(note["keys"]) == 8
    saved = read_checkpoint(run)
    assert saved["global_step"] == 4  # the one of step 8 was never written
    assert all(torch.isfinite(part).all() for part in saved["state_dict"].values() if part.is_floating_point())


def test_quiet_run_leaves_no_note(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    fit_here(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=24), tmp_path)
    assert not list((tmp_path / "run").glob("diverged*"))

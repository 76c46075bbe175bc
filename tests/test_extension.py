"""A loss or an audit of your own is one file and a few lines of YAML, without edits to our files."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from toys.recipes import clip_recipe

from leam_mm.checkpoint import checkpoint_config, load_module, read_checkpoint
from leam_mm.cli import main
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.evaluate_commands.audit_command import main as audit
from leam_mm.evaluators.embedding import read_image_samples
from leam_mm.evaluators.results import RESULTS, read_lines
from leam_mm.losses.contrastive import ContrastiveLoss

LOSS = '''
import torch
from torch import Tensor

from leam_mm.losses.contrastive import ContrastiveLoss


class HingeLoss(ContrastiveLoss):
    """The own pair must be closer than any other, by a margin."""

    def __init__(self, margin: float = 0.2) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        similarity = image @ text.T
        excess = (self.margin + similarity - similarity.diagonal()[:, None]).clamp(min=0)
        return excess.fill_diagonal_(0).mean()
'''
OVERLAY = """# Our own loss on top of any encoder's recipe.
model:
  init_args:
    loss:
      class_path: my_lab.hinge.HingeLoss
      init_args:
        margin: 0.3
"""


def test_own_loss_trains_and_is_rebuilt_from_the_checkpoint(
    toy_shards: Path, toy_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "hinge.py").write_text(LOSS)
    (tmp_path / "hinge.yaml").write_text(OVERLAY)
    assert len(OVERLAY.splitlines()) < 15
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=24)))
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        cli = main(["fit", "--config", str(recipe), "--config", str(tmp_path / "hinge.yaml")])
        loss = checkpoint_config(read_checkpoint(tmp_path / "run"))["model"]["init_args"]["loss"]
        assert loss == {"class_path": "my_lab.hinge.HingeLoss", "init_args": {"margin": 0.3}}
        rebuilt = load_module(tmp_path / "run", ContrastiveModule)
        assert isinstance(rebuilt.loss, ContrastiveLoss) and type(rebuilt.loss).__name__ == "HingeLoss"
        assert rebuilt.loss.margin == 0.3
        assert all(torch.equal(value, rebuilt.state_dict()[name]) for name, value in cli.model.state_dict().items())
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
            del sys.modules[name]


def test_audit_of_the_page_runs_and_decides(
    toy_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "extend.md").read_text(encoding="utf-8")
    (tmp_path / "my_lab").mkdir()
    for kind, name in (("python", "caption_coverage.py"), ("yaml", "audit.yaml")):
        (body,) = re.findall(rf"^```{kind}\n(# my_lab/{name}\n.*?)^```", page, re.MULTILINE | re.DOTALL)
        (tmp_path / "my_lab" / name).write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    inputs = ["--config", str(tmp_path / "my_lab" / "audit.yaml"), "--shards", str(toy_shards)]
    counted = [len(sample.captions("de")) > 0 for sample in read_image_samples(toy_shards)]
    try:
        for language in ("de", "xx"):
            audit([*inputs, "--output", str(tmp_path / language), "--audits.init_args.language", language])
        audit([*inputs, "--output", str(tmp_path / "none"), "--shards", "null"])
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
            del sys.modules[name]
    german, unknown, missing = (read_lines(tmp_path / name / RESULTS)[-1] for name in ("de", "xx", "none"))
    assert german["value"] == sum(counted) / len(counted) and german["samples"] == len(counted) >= 30
    assert unknown["value"] == 0 and unknown["verdict"] == "fail" and missing["verdict"] == "not_run"
    assert german["settings"]["language"] == "de" and "caption_coverage" in capsys.readouterr().out

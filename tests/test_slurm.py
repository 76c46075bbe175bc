"""The Slurm script as a file, and the size of a job; tests/test_slurm_nodes.py runs it."""

import subprocess
from types import SimpleNamespace

import pytest
from toys.recipes import ROOT

from leam_mm.cli import _follow_slurm
from leam_mm.errors import UserError

SCRIPT = ROOT / "configs" / "clusters" / "slurm.sh"


def test_the_script_parses_and_requires_a_recipe() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    empty = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert empty.returncode == 2 and "name a recipe" in empty.stderr


def test_the_size_of_the_job_overrides_the_recipe() -> None:
    trainer = SimpleNamespace(devices=1, num_nodes=1, plugins=None)
    _follow_slurm(trainer, {})
    assert (trainer.num_nodes, trainer.devices) == (1, 1)
    job = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "leam_mm"}
    _follow_slurm(trainer, {**job, "SLURM_JOB_NAME": "interactive"})
    assert (trainer.num_nodes, trainer.devices) == (1, 1)
    _follow_slurm(trainer, job)
    assert (trainer.num_nodes, trainer.devices) == (2, 4)
    _follow_slurm(trainer, {**job, "SLURM_NTASKS_PER_NODE": "4"})
    assert (trainer.num_nodes, trainer.devices) == (2, 4)
    with pytest.raises(UserError, match="start it with srun"):
        _follow_slurm(trainer, {name: value for name, value in job.items() if name != "SLURM_STEP_ID"})
    trainer.plugins = [{"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}]
    with pytest.raises(UserError, match="leave it out"):
        _follow_slurm(trainer, {})

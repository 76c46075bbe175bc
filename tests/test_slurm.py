"""The Slurm script on a private Slurm that is started on this machine, if Slurm is installed."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from toys.recipes import ROOT, clip_recipe
from toys.runs import assert_same_run, last_checkpoint, step_losses
from toys.slurm import Cluster, wait_for

from leam_mm.cli import _follow_slurm
from leam_mm.errors import UserError

SCRIPT = ROOT / "configs" / "clusters" / "slurm.sh"
SLOW = """
    import time
    from lightning.pytorch import Callback

    class Slow(Callback):
        '''Slows training down, so that a signal arrives during it.'''

        def on_train_batch_end(self, *args):
            time.sleep(0.2)
"""


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_preempted_job_requeues_itself_and_the_result_is_bit_equal(
    cluster: Cluster, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "LEAM_PYTHON": sys.executable}

    def recipe(name: str) -> str:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=240)
        made["checkpoint"] = {"every_n_train_steps": 1000}
        made["trainer"]["callbacks"] = [{"class_path": "slow.Slow"}]
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made))
        return str(path)

    size = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=20"]
    log = tmp_path / "job.log"
    submit = ["sbatch", "--parsable", *size, f"--output={log}", str(SCRIPT), recipe("stopped")]
    number = cluster.call(*submit, **environment).strip()
    run = tmp_path / "stopped"
    wait_for("the first steps", lambda: (run / "metrics.csv").is_file() and len(step_losses(run)) > 3, tmp_path)
    cluster.call("scancel", "--signal=USR1", number)
    wait_for("the requeue", lambda: cluster.job(number)["Restarts"] == "1", tmp_path)
    saved = last_checkpoint(run)["global_step"]
    assert 3 < saved < 30
    wait_for("the end of the first run", lambda: cluster.job(number)["JobState"] != "COMPLETING", tmp_path)
    # Slurm delays a requeued job by two minutes. Without any delay the node would still be cleaning up after the kill.
    time.sleep(5)
    cluster.call("scontrol", "update", f"jobid={number}", "StartTime=now")
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_for("the end", lambda: cluster.job(number)["JobState"] in over, tmp_path, seconds=600)
    assert cluster.job(number)["JobState"] == "COMPLETED", log.read_text()[-3000:]
    assert f"requeue job {number}" in log.read_text()

    whole = [sys.executable, "train.py", "fit", "--config", recipe("whole")]
    whole += ["--config", "configs/overlay_two_ranks.yaml"]
    done = subprocess.run(
        whole, cwd=ROOT, env={**os.environ, **environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(step_losses(tmp_path / "whole")) == 30
    assert_same_run(tmp_path / "whole", run)

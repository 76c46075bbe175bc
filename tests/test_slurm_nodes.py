"""Training on two nodes of a private Slurm: a job that ends early continues, and its result is that of a whole run."""

import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from toys.recipes import ROOT, stable_recipe
from toys.runs import assert_close_runs, assert_same_run, last_checkpoint, step_losses
from toys.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
SCRIPT = ROOT / "configs" / "clusters" / "slurm.sh"
SIZE = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
STEPS = 60
PACE = """
    import os
    import time
    from pathlib import Path
    from lightning.pytorch import Callback

    class Pace(Callback):
        '''Records the keys of each step; pauses while the run folder has a file "slow"; rank 1 fails at its step.'''

        def __init__(self, fails_at: int = -1) -> None:
            self.fails_at = fails_at

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == self.fails_at and trainer.global_rank == 1:
                os._exit(7)
            with open(f"{trainer.default_root_dir}/keys.{trainer.global_rank}", "a") as file:
                file.write(f"{trainer.global_step} {' '.join(batch['key'])}\\n")
            if Path(trainer.default_root_dir, "slow").exists():
                time.sleep(1)
"""


class Job:
    """A toy run that is submitted with configs/clusters/slurm.sh."""

    def __init__(self, cluster: Cluster, folder: Path, shards: Path, tokenizer: Path, fails_at: int = -1) -> None:
        self.cluster, self.run, self.log = cluster, folder / "run", folder / "job.log"
        self.run.mkdir(parents=True)
        (folder / "pace.py").write_text(textwrap.dedent(PACE))
        recipe = stable_recipe(self.run, shards, tokenizer, max_samples=8 * STEPS)
        recipe["checkpoint"] = {"every_n_train_steps": 5}
        recipe["trainer"]["callbacks"] = [{"class_path": "pace.Pace", "init_args": {"fails_at": fails_at}}]
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.environment = {"PYTHONPATH": f"{folder}:{ROOT}", "LEAM_PYTHON": sys.executable}

    def submit(self, *options: str, nodes: int = 2, **environment: str) -> str:
        """Submit the job and return its number."""
        words = ["sbatch", "--parsable", f"--nodes={nodes}", *SIZE, f"--output={self.log}", *options]
        words += [str(SCRIPT), str(self.recipe)]
        return self.cluster.call(*words, **self.environment, **environment).strip()

    def slow(self) -> None:
        (self.run / "slow").touch()

    def fast(self) -> None:
        (self.run / "slow").unlink()

    def steps(self) -> int:
        return len(step_losses(self.run)) if (self.run / "metrics.csv").is_file() else 0

    def advance(self) -> None:
        """Wait for a few more steps."""
        goal = self.steps() + 3
        wait_for(f"step {goal}", lambda: self.steps() >= goal, self.log.parent)

    def finish(self, number: str) -> None:
        state = self.cluster.end(number)
        assert state == "COMPLETED", f"{state}\n{self.log.read_text()[-3000:]}"


def samples(run: Path) -> list[str]:
    """Keys of all samples in the order of the steps, for any number of ranks in each; a repeated step counts once."""
    steps: dict[tuple[int, int], list[str]] = {}
    for rank in range(2):
        for line in (run / f"keys.{rank}").read_text().splitlines():
            step, *keys = line.split()
            steps[int(step), rank] = keys
    return [key for place in sorted(steps) for key in steps[place]]


@pytest.fixture(scope="module")
def whole(two_nodes: Cluster, tmp_path_factory: pytest.TempPathFactory, toy_shards: Path, toy_tokenizer: Path) -> Path:
    """A run on two nodes that nothing interrupts."""
    job = Job(two_nodes, tmp_path_factory.mktemp("whole"), toy_shards, toy_tokenizer)
    job.finish(job.submit())
    assert len(step_losses(job.run)) == STEPS
    return job.run


def test_preemption_and_a_node_without_power_leave_the_result_bit_equal(
    cluster: Cluster, whole: Path, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    job = Job(cluster, tmp_path, toy_shards, toy_tokenizer)
    job.slow()
    number = job.submit("--time=20", SLURM_WAIT="3")
    job.advance()
    urgent = ["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    assert cluster.end(cluster.call("sbatch", *urgent).strip()) == "COMPLETED"
    cluster.restarted(number, 1)
    assert last_checkpoint(job.run)["global_step"] == job.steps() >= 3

    job.advance()
    cluster.kill_node("n2")
    wait_for("the script's requeue", lambda: "exit code 76" in job.log.read_text(), tmp_path)
    cluster.start_node("n2")
    cluster.restarted(number, 2)
    job.fast()
    job.finish(number)
    assert "failures since the last planned stop: 1" in job.log.read_text()
    assert samples(whole) == samples(job.run)
    assert_same_run(whole, job.run)


def test_chain_of_jobs_without_requeue_goes_on_after_the_time_limit_on_one_node_instead_of_two(
    cluster: Cluster, whole: Path, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    job = Job(cluster, tmp_path, toy_shards, toy_tokenizer)
    job.slow()
    first = job.submit("--no-requeue", "--time=20", "--signal=USR1@100")
    second = job.submit("--no-requeue", f"--dependency=afterany:{first}", nodes=1)
    job.advance()
    hours, minutes, _ = cluster.job(first)["RunTime"].split(":")
    cluster.call("scontrol", "update", f"jobid={first}", f"TimeLimit={60 * int(hours) + int(minutes) + 2}")
    assert (cluster.end(first), cluster.job(first)["ExitCode"]) == ("FAILED", "75:0")
    saved = last_checkpoint(job.run)["global_step"]
    assert 3 <= saved < STEPS
    job.fast()
    job.finish(second)
    assert [int(step) for step, _ in step_losses(job.run)] == [int(step) for step, _ in step_losses(whole)]
    assert samples(whole) == samples(job.run)
    assert step_losses(whole)[:saved] == step_losses(job.run)[:saved]
    assert_close_runs(whole, job.run)


def test_a_rank_that_always_fails_ends_the_job_as_failed(
    cluster: Cluster, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    job = Job(cluster, tmp_path, toy_shards, toy_tokenizer, fails_at=4)
    number = job.submit("--time=20", LEAM_RETRIES="0", SLURM_WAIT="3")
    assert cluster.end(number) == "FAILED"
    assert cluster.job(number)["ExitCode"] == "76:0"
    assert job.steps() < 5

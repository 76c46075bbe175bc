"""The launcher's command line on the private Slurm cluster of the tests."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import yaml

from toys.recipes import ROOT, clip_recipe
from toys.slurm import Cluster, wait_for

SLOW = """
    import time
    from pathlib import Path
    from lightning.pytorch import Callback

    class Slow(Callback):
        '''Slows training down while the run folder has a file "slow".'''

        def on_train_batch_end(self, trainer, *args):
            if Path(trainer.default_root_dir, "slow").exists():
                time.sleep(1)
"""
PROFILE = """
title: two nodes of this machine
sources:
  here: {text: "the cluster of the tests", date: 2026}
gpu: {per_node: {value: 0, source: here, status: read}}
slurm:
  partition: {value: PARTITION, source: here, status: read}
  tasks_per_node: {value: 1, source: here, status: read}
  cpus_per_task: {value: 1, source: here, status: read}
  gpu_option: {value: none, source: here, status: read}
software:
  command: {value: python, source: here, status: read}
"""


class Launcher:
    """The launcher's command line on a cluster of the tests."""

    def __init__(self, cluster: Cluster, folder: Path, shards: Path, tokenizer: Path, save_every: int = 1000) -> None:
        self.cluster, self.folder, self.run = cluster, folder, folder / "run"
        (folder / "slow.py").write_text(textwrap.dedent(SLOW))
        partition = cluster.call("sinfo", "--noheader", "--format", "%R").split()[0]
        self.profile = folder / "site.yaml"
        self.profile.write_text(PROFILE.replace("PARTITION", partition))
        made = clip_recipe(self.run, shards, tokenizer, max_samples=1600)
        del made["trainer"]["logger"]  # it writes into one folder, which the jobs of a sweep would share
        made["trainer"]["callbacks"] = [{"class_path": "slow.Slow"}]
        made["checkpoint"] = {"every_n_train_steps": save_every}
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(made))

    def call(self, *words: str, code: int = 0) -> str:
        """Run a command of the launcher and return what it prints."""
        environment = {**self.cluster.environment, "PYTHONPATH": f"{self.folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "leam_mm.launch", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def job(self) -> dict[str, str]:
        return self.cluster.job(self.numbers()[-1])

    def numbers(self) -> list[str]:
        return [one["id"] for one in json.loads((self.run / "launch.json").read_text())["jobs"]]

    def wait(self, state: str) -> None:
        wait_for(f"state {state}", lambda: self.job()["JobState"] == state, self.run / "logs", seconds=900)

    def log(self) -> str:
        return self.call("logs", str(self.run), "--lines", "1000")

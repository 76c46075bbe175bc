"""The end of the job's time: a run saves before it, at a step boundary, and exits with code 75."""

import textwrap
import time
from datetime import datetime
from pathlib import Path

import pytest
from toys.recipes import clip_recipe
from toys.runs import assert_same_run, last_checkpoint, run_training, with_callbacks

from leam_mm.callbacks.preemption import EXIT_CODE
from leam_mm.callbacks.time_left import LEAST, TimeLeft, job_end

NOW = 1_800_000_000.0
SLOW = """
    import time
    from lightning.pytorch import Callback

    class Slow(Callback):
        '''Slows training down.'''

        def on_train_batch_start(self, *args):
            time.sleep(1)
"""


def test_the_end_is_read_from_either_variable() -> None:
    local = datetime.fromtimestamp(NOW + 600).isoformat()
    assert job_end({}, NOW) is None
    assert job_end({"SLURM_JOB_END_TIME": str(int(NOW) + 60)}, NOW) == NOW + 60
    assert job_end({"LEAM_JOB_END": local}, NOW) == NOW + 600
    assert job_end({"SLURM_JOB_END_TIME": str(int(NOW) + 60), "LEAM_JOB_END": local}, NOW) == NOW + 60


@pytest.mark.parametrize(
    "bad", ["soon", "12:00", "N/A", str(NOW - 5), "2020-01-01T00:00:00", "1e999", "nan", "-5", str(int(NOW * 1000))]
)
def test_a_bad_value_is_one_warning(bad: str) -> None:
    with pytest.warns(UserWarning, match="it is ignored") as found:
        assert job_end({"SLURM_JOB_END_TIME": bad, "LEAM_JOB_END": str(NOW + 60)}, NOW) == NOW + 60
    assert len(found) == 1 and "SLURM_JOB_END_TIME=" in str(found[0].message)


def test_the_margin_grows_with_saves_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "time", lambda: clock[0])
    left = TimeLeft(2000.0)
    assert not left.is_over() and left.margin == LEAST
    clock[0] += 100
    assert not left.is_over() and left.margin == 200  # two steps
    left.save_begins()
    clock[0] += 50
    left.pause_ends()
    assert left.longest_save == 50 and left.margin == 350
    assert not left.is_over()
    clock[0] += 400
    left.forget_step()  # a validation
    assert not left.is_over() and left.margin == 350
    clock[0] = 1651
    assert left.is_over()
    assert not TimeLeft(None).is_over()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_saves_before_its_time_is_over_and_the_next_one_is_bit_equal(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=400)
    recipe["checkpoint"] = {"every_n_train_steps": 10000}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "slow.py").write_text(textwrap.dedent(SLOW))
    monkeypatch.setenv("LEAM_JOB_END", str(time.time() + LEAST + 20))
    stopped = run_training(with_callbacks(recipe, {"class_path": "slow.Slow"}), tmp_path / "a", timeout=600)
    assert stopped.returncode == EXIT_CODE, stopped.stderr
    assert "the job's time is nearly over: saved" in stopped.stderr
    step = last_checkpoint(tmp_path / "run")["global_step"]
    assert 1 <= step < 50
    monkeypatch.delenv("LEAM_JOB_END")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "soon")
    for name, words in (("run", ["--max_samples=400"]), ("whole", ["--max_samples=400"])):
        recipe["trainer"]["default_root_dir"] = str(tmp_path / name)
        assert run_training(recipe, tmp_path / "a", *words, timeout=600).returncode == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")

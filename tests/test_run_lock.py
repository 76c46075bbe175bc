"""leam_mm.run_lock: the second run refuses in one line that names the first; what a killed run leaves blocks nobody."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from toys.images import coloured_square
from toys.recipes import CODEC_SECTION, ROOT, clip_recipe, save_checkpoint

from leam_mm import cli, run_lock
from leam_mm.errors import UserError
from leam_mm.files import TEMPORARY

HOLDER = """
    import sys, time
    from pathlib import Path
    from leam_mm.run_lock import run_lock
    with run_lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)


def hold(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock."""
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_second_run_names_the_first_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    holder = hold(lock)
    expected = rf"run is in use by another run \(process {holder.pid} on {socket.gethostname()} since 20.*\): wait"
    with pytest.raises(UserError, match=expected), run_lock.run_lock(lock):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock.is_file()
    with run_lock.run_lock(lock):
        pass
    assert list(lock.parent.iterdir()) == []


def test_what_a_killed_run_left_unfinished_beside_its_folder_is_removed(tmp_path: Path) -> None:
    output = tmp_path / "out[1]"
    for name in (f"out[1]{TEMPORARY}9-ab", f"out1{TEMPORARY}9-ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with run_lock.run_lock(run_lock.beside(output), output):
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [f"out1{TEMPORARY}9-ab"]


def test_what_killed_runs_left_in_an_output_is_removed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation, audits and report, whose output is a folder that holds earlier results, too."""
    sys.path.insert(0, str(ROOT))
    import evaluate
    from leam_mm.evaluators.results import RESULTS
    from leam_mm.report import report_page

    output = tmp_path / "out"
    output.mkdir()
    names = (RESULTS, "report.html", "report.de.html")
    audits = [{"class_path": "leam_mm.audits.openness.Openness"}]
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump({"audits": audits, "output": str(output), "device": "cpu"}))

    def left_after(program: Callable[[], object], written: Sequence[str]) -> list[str]:
        for name in written:
            (output / f"{name}{TEMPORARY}9-ab").touch()
        program()
        return [path.name for path in output.rglob("*") if path.name not in names]

    assert not left_after(lambda: evaluate.main(["audit", "--config", str(tmp_path / "audit.yaml")]), names)
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(output)])
    assert not left_after(report_page.main, names[1:])


def test_the_message_names_another_host(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, to give a process another host name")
    lock = tmp_path / "run" / "lock"
    inside = ["unshare", "--uts", "sh", "-c", 'hostname n7 && exec "$@"', "sh"]
    command = [*inside, sys.executable, "-c", textwrap.dedent(HOLDER), str(lock)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"\(process {holder.pid} on n7 since "), run_lock.run_lock(lock):
            pass
    finally:
        holder.kill()
        holder.wait()


class SecondRun(Callback):
    """Tries to start a second run in the folder whenever a checkpoint is saved."""

    said: ClassVar[list[str]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A process of its own, as flock belongs to one."""
        code = "import sys\nfrom pathlib import Path\nfrom leam_mm import errors, run_lock\nrun_lock.PATIENCE = 0.1\n"
        code += "def main():\n    with run_lock.run_lock(Path(sys.argv[1])): print('held')\nerrors.run(main)"
        command = [sys.executable, "-c", code, f"{trainer.default_root_dir}/lock"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        self.said.append(f"{trainer.global_step} {done.returncode} {done.stdout}{done.stderr}")


def test_a_second_run_is_refused_during_the_last_save(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    made = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=16)
    made["checkpoint"] = {"every_n_train_steps": 100}
    made["trainer"]["callbacks"] = [{"class_path": f"{__name__}.SecondRun"}]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    SecondRun.said.clear()
    cli.main(["fit", "--config", str(tmp_path / "recipe.yaml")])
    (said,) = SecondRun.said
    assert said.startswith("2 2 error: ") and f"in use by another run (process {os.getpid()} on " in said
    assert not (tmp_path / "run" / "lock").exists()


def test_forked_children_do_not_keep_the_lock(tmp_path: Path) -> None:
    # A loader worker that outlives its trainer for a moment must not block the next run.
    lock = tmp_path / "lock"
    with run_lock.run_lock(lock):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with run_lock.run_lock(lock):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_only_one_holds_it_when_many_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file is removed at each release: nobody may take a lock on the removed one for the lock of the folder.
    monkeypatch.setattr(run_lock, "PATIENCE", 30.0)
    inside, most = [], []

    def enter() -> None:
        for _ in range(5):
            with run_lock.run_lock(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 20 and max(most) == 1


def refused(main: object, words: list[str], lock: Path) -> None:
    """The program refuses to start while another run holds the lock, and leaves that run's files alone."""
    with run_lock.run_lock(lock):
        before = sorted(lock.parent.rglob("*"))
        with pytest.raises(UserError, match=rf"in use by another run \(process {os.getpid()} on "):
            main(words)  # type: ignore[operator]
        assert sorted(lock.parent.rglob("*")) == before


def test_training(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer)))
    refused(cli.main, ["fit", "--config", str(recipe)], tmp_path / "run" / "lock")


def test_evaluation_and_release(tmp_path: Path, toy_shards: Path) -> None:
    sys.path.insert(0, str(ROOT))
    import evaluate
    from leam_mm.release.__main__ import main

    (tmp_path / "codec" / "checkpoints").mkdir(parents=True)
    save_checkpoint(tmp_path / "codec" / "checkpoints" / "last.ckpt", CODEC_SECTION)
    codec, output = str(tmp_path / "codec"), tmp_path / "evaluation"
    retrieval = {"shards": str(toy_shards), "languages": ["de"]}
    evaluator = {"class_path": "leam_mm.evaluators.retrieval.Retrieval", "init_args": retrieval}
    recipe = {"codec": codec, "output": str(output), "device": "cpu", "evaluators": [evaluator]}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(recipe))
    refused(evaluate.main, ["--config", str(tmp_path / "evaluate.yaml")], output / "lock")
    release = tmp_path / "out" / "release"
    command = ["build", "--clip", codec, "--name", "x", "--output", str(release)]
    refused(main, command, release.with_name("release.lock"))


def test_pipeline(tmp_path: Path) -> None:
    from leam_mm.pipeline import main

    stage = {"name": "make", "command": f"touch {tmp_path}/run/made", "makes": [f"{tmp_path}/run/made"]}
    (tmp_path / "pipeline.yaml").write_text(
        yaml.safe_dump({"run": str(tmp_path / "run"), "title": "t", "stages": [stage]})
    )
    refused(main, [str(tmp_path / "pipeline.yaml")], tmp_path / "run" / "lock")


@pytest.mark.parametrize("program", ["embed_shards", "encode_latents"])
def test_programs_that_run_models(program: str, tmp_path: Path, toy_shards: Path) -> None:
    import importlib

    output = tmp_path / "out" / "shards"
    words = {
        "embed_shards": ["--teacher", str(tmp_path)],
        "encode_latents": ["--codec", str(tmp_path), "--clip", str(tmp_path)],
    }[program]
    main = importlib.import_module(f"data_tools.{program}").main
    words += ["--shards", str(toy_shards), "--output", str(output)]
    refused(main, words, output.with_name("shards.lock"))


@pytest.mark.parametrize(
    "program", ["describe_dataset", "gather_folder", "make_scenes", "split_folder", "train_tokenizer"]
)
def test_programs_of_minutes(program: str, tmp_path: Path, toy_shards: Path) -> None:
    import importlib

    output, pictures = tmp_path / "out" / "result", tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        (pictures / f"{number}.png").write_bytes(coloured_square("red", number))
        (pictures / f"{number}.txt").write_text("a square")
    agreed = ["--rights-holder", "A", "--licence", "CC-BY-4.0", "--purpose", "training", "--until", "2040-01-31"]
    agreed += ["--legal-basis", "licensed", "--evidence", str(pictures / "0.txt")]
    words = {
        "describe_dataset": ["--shards", str(toy_shards)],
        "gather_folder": ["--source", str(pictures), *agreed],
        "make_scenes": ["--train", "2", "--test", "2"],
        "split_folder": ["--folder", str(pictures)],
        "train_tokenizer": ["--shards", str(toy_shards)],
    }[program]
    main = importlib.import_module(f"data_tools.{program}").main
    refused(main, [*words, "--output", str(output)], output.with_name("result.lock"))

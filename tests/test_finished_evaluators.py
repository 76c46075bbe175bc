"""Resumed evaluations: what stands is skipped, what changed runs again, and a kill loses the running evaluator only."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import evaluate
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.finished_evaluators import input_digests, is_finished
from leam_mm.evaluators.image_features import Inception
from leam_mm.evaluators.results import append_results, evidence, read_lines

ROOT = Path(evaluate.__file__).parent


class Noted(Evaluator):
    """Appends a line to a file at each run, then sleeps.

    Args:
        name: Prefix of its metrics.
        runs: File of the runs.
        source: A file that it reads, or None.
        seconds: Time to sleep.
    """

    def __init__(self, name: str, runs: str, source: Path | None = None, seconds: float = 0.0) -> None:
        self.name, self.runs, self.source, self.seconds = name, runs, source, seconds

    def run(self, context: EvaluationContext) -> list[Metric]:
        with open(self.runs, "a") as file:
            file.write(self.name + "\n")
        time.sleep(self.seconds)
        return [Metric(f"{self.name}/{part}", 1.0, None, None, "count", 1) for part in "ab"]


def configure(folder: Path, *settings: dict) -> list[str]:
    """Write a config; return its arguments."""
    path = "tests.test_finished_evaluators.Noted"
    runs = str(folder / "runs.txt")
    evaluators = [{"class_path": path, "init_args": {"runs": runs} | each} for each in settings]
    config = {"evaluators": evaluators, "output": str(folder / "out"), "device": "cpu"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "config.yaml"), "--resume", "true"]


def runs_of(folder: Path) -> list[str]:
    return (folder / "runs.txt").read_text().split()


def test_only_what_changed_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.txt"
    source.write_text("1")
    settings: list[dict] = [{"name": "x", "source": str(source)}, {"name": "y"}]
    evaluate.main(configure(tmp_path, *settings))
    evaluate.main(configure(tmp_path, *settings))
    assert runs_of(tmp_path) == ["x", "y"]
    output = capsys.readouterr().err
    assert "1/2 Noted: skipped" in output and "2/2 Noted: skipped" in output
    source.write_text("2")
    evaluate.main(configure(tmp_path, *settings))
    assert runs_of(tmp_path) == ["x", "y", "x"]
    settings[1]["seconds"] = 0.01
    evaluate.main(configure(tmp_path, *settings))
    settings[1]["seconds"] = 0.0  # measured before, but its results were replaced since
    evaluate.main(configure(tmp_path, *settings))
    assert runs_of(tmp_path) == ["x", "y", "x", "y", "y"]
    evaluate.main(configure(tmp_path, *settings)[:-2])  # without resuming
    assert runs_of(tmp_path)[5:] == ["x", "y"]


def test_a_kill_loses_the_running_evaluator_only(tmp_path: Path) -> None:
    arguments = configure(tmp_path, {"name": "x"}, {"name": "y", "seconds": 60.0}, {"name": "z"})
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import evaluate; evaluate.main({arguments!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs.txt").exists() or runs_of(tmp_path) != ["x", "y"]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["x/a", "x/b"]
    evaluate.main(configure(tmp_path, {"name": "x"}, {"name": "y"}, {"name": "z"}))
    assert runs_of(tmp_path) == ["x", "y", "y", "z"]
    assert [line["name"] for line in read_lines(tmp_path / "out" / "results.jsonl")][::2] == ["x/a", "y/a", "z/a"]


def test_models_count_where_they_were_used(tmp_path: Path) -> None:
    class Loaded:
        checkpoint_evidence = {"sha256": "ab"}  # noqa: RUF012

    measured = Noted("x", str(tmp_path / "runs.txt"))
    context = EvaluationContext(Loaded(), Path("unused.ckpt"), tmp_path)
    context.require_clip()
    models = {"clip": "1", "generator": "2"}
    append_results(tmp_path, measured.run(context), evidence(context, measured, 0.0, models))
    lines = read_lines(tmp_path / "results.jsonl")
    assert is_finished(lines, measured, {}, models)
    assert is_finished(lines, measured, {}, models | {"generator": "3"})  # was not loaded
    assert not is_finished(lines, measured, {}, {"clip": "1"})  # there was a generator then
    assert not is_finished(lines, measured, {}, models | {"clip": "3"})
    assert not is_finished(lines, measured, {"data": "4"}, models)
    assert not is_finished(lines, Noted("y", measured.runs), {}, models)
    other = [line | {"versions": line["versions"] | {"torch": "0"}} for line in lines]
    assert not is_finished(other, measured, {}, models)


class Encoding(Noted):
    """Uses the encoder."""

    def run(self, context: EvaluationContext) -> list[Metric]:
        context.require_clip()
        return super().run(context)


def test_lines_do_not_depend_on_the_evaluators_before(tmp_path: Path, toy_checkpoints: dict[str, Path]) -> None:
    """A line names a model only if its own evaluator used it, so that a resumed evaluation has the same lines."""
    arguments = configure(tmp_path, {"name": "x"}, {"name": "y"})
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"clip": str(toy_checkpoints["clip"])}
    config["evaluators"][0]["class_path"] = "tests.test_finished_evaluators.Encoding"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    evaluate.main(arguments)
    whole = read_lines(tmp_path / "out" / "results.jsonl")
    assert [bool(line["checkpoints"]["clip"]) for line in whole] == [True, True, False, False]
    kept = (tmp_path / "out" / "results.jsonl").read_text().splitlines(keepends=True)[:2]
    (tmp_path / "out" / "results.jsonl").write_text("".join(kept))  # as a kill after the first evaluator leaves it
    evaluate.main(arguments)
    resumed = read_lines(tmp_path / "out" / "results.jsonl")
    assert [line["checkpoints"] for line in resumed] == [line["checkpoints"] for line in whole]
    assert runs_of(tmp_path) == ["x", "y", "y"]


def test_settings_of_nested_objects_and_their_files_count(tmp_path: Path) -> None:
    class Outer(Noted):
        def __init__(self, features: object) -> None:
            super().__init__("x", str(tmp_path / "runs.txt"))
            self.features = features

    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"1")
    one, other = (Outer(Inception(weights, resize)) for resize in ("tf1", "clean"))
    record = evidence(EvaluationContext(None, None, tmp_path), one, 0.0)
    assert record["settings"]["features"] == {
        "class": "leam_mm.evaluators.image_features.Inception", "weights": "weights.pth", "resize": "tf1",
    }  # fmt: skip
    assert record["settings"] != evidence(EvaluationContext(None, None, tmp_path), other, 0.0)["settings"]
    before = input_digests(one)
    weights.write_bytes(b"2")
    assert list(before) == ["weights.pth"] and input_digests(one) != before

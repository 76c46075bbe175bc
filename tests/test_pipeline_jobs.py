"""Stages of a pipeline that run at the same time: order, cost, failures, and what the file must say."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from leam_mm import pipeline_stages
from leam_mm.callbacks.energy_meter import EnergyMeter, EnergyReading
from leam_mm.errors import UserError
from leam_mm.pipeline import wall_seconds
from leam_mm.pipeline_cost import CostMeter
from leam_mm.pipeline_file import needed_stages, read_pipeline
from leam_mm.pipeline_stages import StageRunner
from leam_mm.report.report_run import costs

ROOT = Path(__file__).parent.parent
# Notes when it begins, waits for a file if one is named, and notes when it ends.
PROGRAM = """
import os, sys, time
folder, name, wait, code = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
def note(what):
    with open(os.path.join(folder, 'order.txt'), 'a') as file:
        file.write(f'{what} {name}\\n')
note('begin')
print('output of', name)
for _ in range(600):
    if wait == '-' or f'begin {wait}' in open(os.path.join(folder, 'order.txt')).read().splitlines():
        break
    time.sleep(0.05)
else:
    sys.exit(9)
time.sleep(0.3)
note('end')
open(os.path.join(folder, name + '.txt'), 'a').write('x')
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def stage(folder: Path, name: str, wait: str = "-", code: int = 0, **more: Any) -> dict[str, Any]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "run").mkdir(exist_ok=True)
    command = f"python {folder / 'program.py'} {folder / 'run'} {name} {wait} {code}"
    return {"name": name, "command": command, "makes": [str(folder / "run" / f"{name}.txt")], **more}


def write(folder: Path, *stages: dict[str, Any], **more: Any) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"run": str(folder / "run"), "title": "Jobs", "stages": list(stages), **more}))
    return file


def run_file(file: Path) -> list[dict[str, Any]]:
    return StageRunner(read_pipeline(file)).run()


def order(folder: Path) -> list[str]:
    return (folder / "run" / "order.txt").read_text().splitlines()


def test_independent_stages_run_at_the_same_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Each of the two waits until the other has begun, so that neither ends unless both run.
    stages = [
        stage(tmp_path, "data"),
        stage(tmp_path, "left", wait="right", after=["data"]),
        stage(tmp_path, "right", wait="left", after=["data"]),
        stage(tmp_path, "last"),
    ]
    records = run_file(write(tmp_path, *stages, jobs=2))
    lines = order(tmp_path)
    assert lines[:2] == ["begin data", "end data"] and lines[-2:] == ["begin last", "end last"]
    assert set(lines[2:4]) == {"begin left", "begin right"}
    assert [record["name"] for record in records] == ["data", "left", "right", "last"]
    beside = {record["name"]: record.get("beside") for record in records}
    assert beside == {"data": None, "left": ["right"], "right": ["left"], "last": None}
    output = capsys.readouterr().out
    log = tmp_path / "run/stages/right.log"
    assert f"It runs beside left; its output goes to {log}" in output and "3/4 right done in" in output
    assert log.read_text() == "output of right\n"
    assert run_file(write(tmp_path, *stages, jobs=2)) == records  # all are skipped
    assert order(tmp_path) == lines


def test_one_job_runs_them_one_after_the_other(tmp_path: Path) -> None:
    stages = [stage(tmp_path, "left", after=[]), stage(tmp_path, "right", after=[])]
    records = run_file(write(tmp_path, *stages))
    assert order(tmp_path) == ["begin left", "end left", "begin right", "end right"]
    assert wall_seconds(records) == pytest.approx(sum(record["seconds"] for record in records))


def test_no_more_than_the_given_number_runs(tmp_path: Path) -> None:
    run_file(write(tmp_path, *(stage(tmp_path, f"s{number}", after=[]) for number in range(5)), jobs=2))
    running = most = 0
    for line in order(tmp_path):
        running += 1 if line.startswith("begin") else -1
        most = max(most, running)
    assert most == 2


def test_stages_with_the_same_port_wait_for_each_other(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        served = {"folder": str(tmp_path), "port": listener.getsockname()[1]}
    stages = [stage(tmp_path, name, after=[], serve=served) for name in ("left", "right")]
    run_file(write(tmp_path, *stages, jobs=2))
    assert order(tmp_path) == ["begin left", "end left", "begin right", "end right"]


def test_a_changed_stage_runs_again_with_those_that_need_it_only(tmp_path: Path) -> None:
    def stages(change: str) -> list[dict[str, Any]]:
        left = stage(tmp_path, "left", after=[])
        left["command"] += change
        after_left, after_right = stage(tmp_path, "more", after=["left"]), stage(tmp_path, "other", after=["right"])
        return [left, stage(tmp_path, "right", after=[]), after_left, after_right, stage(tmp_path, "last")]

    run_file(write(tmp_path, *stages(""), jobs=2))
    (tmp_path / "run/order.txt").unlink()
    run_file(write(tmp_path, *stages(" changed"), jobs=2))
    assert order(tmp_path) == [f"{what} {name}" for name in ("left", "more", "last") for what in ("begin", "end")]


def test_keys_after_leave_fingerprints_of_a_chain_unchanged(tmp_path: Path) -> None:
    names = ["first", "second", "third"]
    chain = run_file(write(tmp_path, *(stage(tmp_path, name) for name in names)))
    after = [[], ["first"], ["second"]]
    same = [stage(tmp_path, name, after=needed) for name, needed in zip(names, after, strict=True)]
    assert run_file(write(tmp_path, *same)) == chain


def test_failure_waits_for_the_other_and_starts_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [
        stage(tmp_path, "slow", wait="bad", after=[]),
        stage(tmp_path, "bad", code=3, after=[]),
        stage(tmp_path, "more", after=["slow"]),
    ]
    with pytest.raises(UserError, match="stage bad ended with exit code 3"):
        run_file(write(tmp_path, *stages, jobs=2))
    output = capsys.readouterr().out
    assert "output of bad" in output  # the end of its log
    assert "begin more" not in order(tmp_path)
    notes = {path.name for path in (tmp_path / "run/stages").iterdir()}
    assert notes == {"slow.json", "bad.begun", "bad.log"}
    stages[1] = stage(tmp_path, "bad", after=[])
    (tmp_path / "run/order.txt").unlink()
    run_file(write(tmp_path, *stages, jobs=2))
    assert set(order(tmp_path)) == {f"{what} {name}" for name in ("bad", "more") for what in ("begin", "end")}


def test_a_signal_ends_all_running_stages(tmp_path: Path) -> None:
    stages = [stage(tmp_path, name, wait="never", after=[]) for name in ("left", "right")]
    file = write(tmp_path, *stages, jobs=2)
    code = "import os, leam_mm.pipeline as p, leam_mm.errors as e; os.cpu_count = lambda: 2; e.run(p.main)"
    program = subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if (tmp_path / "run/order.txt").exists() and len(order(tmp_path)) == 2:
            break
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    assert "ended by SIGTERM" in program.communicate(timeout=60)[1]
    assert sorted(order(tmp_path)) == ["begin left", "begin right"]
    for name in ("left", "right"):
        note = json.loads((tmp_path / f"run/stages/{name}.begun").read_text())
        assert note["cost"]["attempts"] == 1 and note["cost"]["seconds"] > 0


class Machine:
    """A machine whose clock, counters and processes are set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.joules, self.processes = 0.0, 0.0, {1: 0.0, 2: 0.0}
        self.readable = True
        monkeypatch.setattr("leam_mm.pipeline_cost.time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("leam_mm.pipeline_cost.time.process_time", lambda: 0.0)
        monkeypatch.setattr("leam_mm.pipeline_cost.process_seconds", lambda number: self.processes[number])
        monkeypatch.setattr(EnergyMeter, "start", lambda meter: meter)
        monkeypatch.setattr(EnergyMeter, "read", lambda meter: self.reading())

    def reading(self) -> EnergyReading:
        return EnergyReading(self.joules if self.readable else None, "a counter", "node", self.seconds, 0.0)

    def pass_time(self, seconds: float, joules: float, first: float, second: float = 0.0) -> None:
        self.seconds += seconds
        self.joules += joules
        self.processes = {1: self.processes[1] + first, 2: self.processes[2] + second}


def test_energy_is_divided_by_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    meter = CostMeter()
    meter.begin("left", 1)
    machine.pass_time(10, joules=100, first=5)
    meter.begin("right", 2)
    machine.pass_time(4, joules=80, first=3, second=1)
    meter.update()
    machine.pass_time(2, joules=30, first=1, second=2)
    left = meter.end("left", machine.processes[1]).total({})
    machine.pass_time(6, joules=60, first=0, second=6)
    right = meter.end("right", machine.processes[2]).total({})
    assert left["energy"]["joules"] == pytest.approx(100 + 60 + 10) and left["cpu_seconds"] == pytest.approx(9)
    assert right["energy"]["joules"] == pytest.approx(20 + 20 + 60) and right["cpu_seconds"] == pytest.approx(9)
    assert left["energy"]["joules"] + right["energy"]["joules"] == pytest.approx(machine.joules)
    assert (left["seconds"], right["seconds"]) == (16, 12)
    assert wall_seconds([left, right]) == pytest.approx(machine.seconds)
    assert left["energy"]["source"] == "a counter" and left["beside"] == ["right"]
    english, german = (str(costs([left, right], language)) for language in ("en", "de"))
    assert "at the same time as right; energy divided by CPU time" in english and "gleichzeitig mit right" in german


def test_a_counter_that_cannot_be_read_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    meter = CostMeter()
    meter.begin("left", 1)
    machine.pass_time(1, joules=10, first=1)
    machine.readable = False
    meter.update()
    machine.pass_time(1, joules=10, first=1)
    machine.readable = True  # a pause within a stage loses nothing, since counters go on
    assert meter.end("left", 2.0).total({})["energy"]["joules"] == pytest.approx(20)
    meter.begin("right", 2)
    machine.readable = False
    assert meter.end("right", 1.0).total({})["energy"] == {"joules": None, "source": "not measured"}


@pytest.mark.parametrize(
    ("second", "more", "reason"),
    [
        ({"after": ["third"]}, {}, r"after of stage second is \['third'\]; give a list of earlier stages, of first"),
        ({"after": "first"}, {}, "after of stage second is 'first'; give a list"),
        ({"after": ["second"]}, {}, r"after of stage second is \['second'\]"),
        ({}, {"jobs": 0}, "jobs is 0; give a whole number from 1"),
        ({}, {"jobs": True}, "jobs is True"),
        ({"name": "first"}, {}, "two stages have the name first"),
    ],
)
def test_mistakes_in_the_order_are_named(
    second: dict[str, Any], more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    stages = [stage(tmp_path, "first"), stage(tmp_path, "second") | second, stage(tmp_path, "third")]
    with pytest.raises(UserError, match=reason):
        read_pipeline(write(tmp_path, *stages, **more))


@pytest.mark.parametrize("where", ["command", "recipe", "server"])
def test_a_stage_that_reads_what_it_does_not_wait_for_is_refused(where: str, tmp_path: Path) -> None:
    made = str(tmp_path / "run" / "first.txt")
    second = stage(tmp_path, "second", after=[])
    if where == "command":
        second["command"] += f" --input={made}"
    elif where == "server":
        second["serve"] = {"folder": made, "port": 1}
    else:
        (tmp_path / "recipe.yaml").write_text(f"data: {made}/part\n")
        second["command"] += f" --config {tmp_path / 'recipe.yaml'}"
    reason = f"stage second names {made}, which stage first makes; add first to its key after"
    with pytest.raises(UserError, match=reason):
        read_pipeline(write(tmp_path, stage(tmp_path, "first"), second))
    # Indirectly is enough, and a longer name is another file.
    between = stage(tmp_path, "between", after=["first"])
    read_pipeline(write(tmp_path, stage(tmp_path, "first"), between, second | {"after": ["between"]}))
    other = stage(tmp_path, "second", after=[])
    other["command"] += f" {made}_copy x{made}"
    read_pipeline(write(tmp_path, stage(tmp_path, "first"), other))


def test_stages_of_the_quickstart_do_not_wait_for_what_they_do_not_need() -> None:
    pipeline = read_pipeline(ROOT / "configs/pipeline_quickstart.yaml")
    needed = needed_stages(pipeline.stages)
    assert pipeline.jobs == 2 and "clip" not in needed["codec"] and "tokenizer" not in needed["codec"]
    assert needed["release"] == {stage.name for stage in pipeline.stages} - {"release"}


def test_a_machine_of_one_core_runs_one_stage_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    file = write(tmp_path, stage(tmp_path, "left", after=[]), stage(tmp_path, "right", after=[]), jobs=2)
    assert pipeline_stages.StageRunner(read_pipeline(file)).jobs == 1

"""Ten minutes on a GPU: parts that fail, hang or come too late are rows with a reason; no benchmark is forgotten."""

import json
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from toys.recipes import ROOT

from leam_mm.errors import UserError

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import gpu_session
import measure
from gpu_session import Part, Row, SessionSettings

FOUND = {
    "hardware": {"device": "a GPU", "gpu_memory_gib": 80.0, "processor": "a CPU", "cores": 8},
    **{"driver": "NVIDIA 1.2", "torch": "2.11.0", "torch_build": "CUDA 13", "python": "3.11", "measured_at": "now"},
}
RESULT = {
    "name": "step", "ours": {"per_second": 2000.0, "unit": "pair"}, "peer": {"per_second": 1000.0, "unit": "pair"},
    "ratio": 2.0, "ratio_interval": {"low": 1.9, "high": 2.1, "confidence": 0.94}, "mfu": {"ours": 0.4, "peer": None},
}  # fmt: skip


def program(folder: Path, name: str, code: str) -> list[str]:
    text = f"import json, os, sys, time\nfrom pathlib import Path\nout = Path({str(folder / 'out' / name)!r})\n{code}\n"
    (folder / f"{name}.py").write_text(text)
    return [str(folder / f"{name}.py")]


def test_failures_and_hangs_are_rows_and_the_rest_goes_on(tmp_path: Path) -> None:
    write = f"out.mkdir()\n(out / 'step.json').write_text({json.dumps(RESULT)!r})"
    child = "import subprocess, tempfile\nchild = subprocess.Popen(['sleep', '60'])\n"
    child += f"Path('{tmp_path}/left').write_text(f'{{child.pid}} {{tempfile.mkdtemp()}}')\n"
    made = [
        Part("fails", program(tmp_path, "fails", "print('first')\nsys.exit('error: no kernel | here')"), 60),
        Part("hangs", program(tmp_path, "hangs", f"{write}\n{child}time.sleep(60)"), 6),
        Part("silent", program(tmp_path, "silent", "print('nothing to measure')"), 60),
        Part("works", program(tmp_path, "works", write), 60),
        Part("tests", program(tmp_path, "tests", "print('5 passed, 1 skipped')"), 60, results=False),
    ]  # fmt: skip
    settings = SessionSettings("cpu", 300.0, tmp_path / "out")
    settings.output.mkdir()
    rows = gpu_session.session(made, settings, Console(file=StringIO()))
    assert [row.status for row in rows] == ["failed", "stopped", "failed", "ok", "ok"]
    assert rows[0].reason == "error: no kernel | here" and rows[1].reason == "took more than 6 s"
    assert rows[1].results == [RESULT]  # what was written before it was stopped
    assert rows[2].reason == "wrote no result: nothing to measure" and rows[4].reason == "5 passed, 1 skipped"
    pid, scratch = (tmp_path / "left").read_text().split()
    deadline = time.monotonic() + 10
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid)) and not Path(scratch).exists()  # nothing of it is left
    page = gpu_session.table(rows, FOUND, "make gpu", 100.0)
    assert "failed: error: no kernel \\| here" in page and "stopped: took more than 6 s" in page
    assert "| `step` | 2,000 pair/s | 1,000 pair/s | 2.00 (1.90 to 2.10, 94%) | mfu: ours 0.4, peer not known |" in page
    assert "5 passed, 1 skipped" in page and "a GPU, 80.0 GiB; driver NVIDIA 1.2; torch 2.11.0 (CUDA 13)" in page
    assert "`loader`" in page and "not a GPU benchmark" in page
    rows_of_table = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows_of_table} == {8}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_spent_budget_leaves_the_rest_as_not_run(tmp_path: Path) -> None:
    made = [Part(name, program(tmp_path, name, "time.sleep(30)"), 60) for name in ("first", "second")]
    settings = SessionSettings("cpu", 6.0, tmp_path / "out")
    settings.output.mkdir()
    began = time.monotonic()
    rows = gpu_session.session(made, settings, Console(file=StringIO()))
    assert time.monotonic() - began < 20
    assert [row.status for row in rows] == ["stopped", "not run"]
    assert rows[1].reason == "the budget of 6 s was spent" and rows[1].command.endswith("second.py")


def test_every_gpu_benchmark_and_test_has_a_part() -> None:
    names = {name for name, *_ in gpu_session.SHORT}
    assert names == gpu_session.gpu_benchmarks()
    for device in ("cpu", "cuda"):
        made = gpu_session.parts(device, Path("x"))
        assert made[0].name == "tests marked gpu" and {part.name for part in made[1:]} == names
        slower = gpu_session.SLOWER if device == "cpu" else 1
        assert sum(part.limit for part in made) <= 900 * slower  # limits, not usual times; the budget ends the session
    assert {"tests/test_attention.py", "tests/test_float8.py"} <= set(gpu_session.gpu_tests())


@pytest.mark.slow
def test_tests_marked_gpu_are_collected() -> None:
    words = gpu_session.parts("cpu", Path("x"))[0].words
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for file in gpu_session.gpu_tests():
        assert f"{file}::" in done.stdout


def test_benchmark_for_cpus_refuses_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    @measure.benchmark(repeats=1)
    def main(settings: measure.Settings) -> list[Path]:
        return []

    assert main([]) == []
    monkeypatch.setattr(measure.torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="is not a GPU benchmark"):
        main(["--device", "cuda"])


def test_session_without_the_device_is_refused(tmp_path: Path) -> None:
    if measure.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="torch sees no GPU here"):
        gpu_session.main(["--output", str(tmp_path)])
    with pytest.raises(UserError, match="no such part"):
        gpu_session.main(["--device", "cpu", "--only", "nothing", "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_row_without_energy_is_not_measured() -> None:
    page = gpu_session.table([Row("x", "ok", joules=3600.0, coverage="gpu"), Row("y", "ok")], FOUND, "c", 1.0)
    assert "1 Wh (gpu)" in page and "not measured" in page
    page = gpu_session.table([Row("z", "ok", results=[RESULT | {"mfu": "not measured, no GPU"}])], FOUND, "c", 1.0)
    assert "mfu: not measured, no GPU" in page

"""Ctrl-C while the libraries of a program are imported ends it in one line; it printed the traceback of an import."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Stands in for a library that takes long to import, and turns whatever happens meanwhile into an error of its own.
SLOW = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("not interrupted")
except BaseException as error:
    raise ImportError("broken") from error
"""


@pytest.mark.parametrize("program", [["evaluate.py", "selftest"], ["-m", "leam_mm.release", "verify", "release"]])
def test_interrupt_during_imports(program: list[str], tmp_path: Path) -> None:
    for name in ("torch", "yaml", "numpy"):
        (tmp_path / f"{name}.py").write_text(SLOW)
    if program[0] != "-m":
        program = [str(ROOT / program[0]), *program[1:]]
    done = subprocess.run(
        [sys.executable, *program],
        cwd=ROOT,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130
    assert done.stderr == "error: interrupted by the keyboard; start the same command again to continue\n"

"""The short form of tests/benchmarks/faults.py: five breaks of programs, without a fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys.recipes import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_breaks(tmp_path: Path) -> None:
    words = ["--breaks", "5", "--kinds", "kill", "full disk", "second writer", "dead loader worker", "read-only folder"]
    command = [sys.executable, "-m", "tests.benchmarks.faults", *words, "--output", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert sum(found["breaks"].values()) == 5 and not found["faults"]

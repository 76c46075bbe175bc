"""A process that is killed while it saves leaves a complete checkpoint: the last one that was complete, or a newer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from toys.recipes import ROOT


def kill(folder: Path, kills: int, kind: str) -> dict:
    command = [sys.executable, str(ROOT / "tests" / "toys" / "killed_saver.py"), str(folder), str(kills), kind]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == kills and found["steps"] > 0 and found["in_the_middle"] > 0
    assert len(found["files"]) <= 4  # two generations, last.ckpt, and one more if the kill came before its removal
    print(found)
    return found


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous", "parts"])
def test_after_6_kills_there_is_always_a_checkpoint(kind: str, tmp_path: Path) -> None:
    kill(tmp_path, 6, kind)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["synchronous", "asynchronous", "parts"])
def test_after_200_kills_there_is_always_a_checkpoint(kind: str, tmp_path: Path) -> None:
    kill(tmp_path, 200, kind)

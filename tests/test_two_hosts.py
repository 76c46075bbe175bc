"""Training over two hosts, as network namespaces with a cable: as on one host, and what happens if they do not meet."""

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml
from toys.namespaces import ADDRESSES, Hosts
from toys.recipes import ROOT, clip_recipe
from toys.runs import assert_same_run, last_checkpoint, run_training

from leam_mm.callbacks.emergency_exit import EXIT_CODE
from leam_mm.cli import main
from leam_mm.errors import UserError

LIMIT, JOIN = 8.0, 60.0
PORT = "29741"
PULL = """
    import time
    from lightning.pytorch import Callback

    class Signal(Callback):
        '''Says that a step has begun, and gives the test time to pull the cable in the next ones.'''

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 2:
                with open(f"{trainer.default_root_dir}/ready.{trainer.global_rank}", "w"):
                    pass
            if trainer.global_step >= 2:
                time.sleep(0.5)
"""


def recipe(folder: Path, shards: Path, tokenizer: Path, join: float = 300, slow: bool = False) -> Path:
    """A toy run of two ranks; the file of its recipe."""
    made = clip_recipe(folder / "run", shards, tokenizer)
    made["trainer"] |= {"strategy": "ddp", "devices": 1, "num_nodes": 2}
    made["watchdog"] = {"limit": LIMIT, "pause": 120, "join": join}
    if slow:
        made["trainer"]["callbacks"] = [{"class_path": "signal_test.Signal"}]
        made["max_samples"] = 8000
    (folder / "signal_test.py").write_text(textwrap.dedent(PULL))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def start(hosts: Hosts, path: Path, number: int, **more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(path)]
    place = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT, "NODE_RANK": str(number)}
    return hosts.start(number, command, PYTHONPATH=f"{path.parent}:{ROOT}", **{**place, **more})


def finish(processes: "list[subprocess.Popen[str]]") -> list[tuple[int, str]]:
    """Exit codes, and what was said."""
    found = []
    for process in processes:
        _, errors = process.communicate(timeout=600)
        print(errors)
        found.append((process.returncode, errors))
    return found


def error_lines(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hosts_train_as_one_does(hosts: Hosts, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    path = recipe(tmp_path, toy_shards, toy_tokenizer)
    assert [code for code, _ in finish([start(hosts, path, number) for number in range(2)])] == [0, 0]
    assert last_checkpoint(tmp_path / "run")["global_step"] == 8
    alone = yaml.safe_load(path.read_text())
    alone["trainer"] |= {"devices": 2, "num_nodes": 1, "default_root_dir": str(tmp_path / "alone")}
    assert run_training(alone, tmp_path / "a", timeout=600).returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"MASTER_ADDR": "127.0.0.1"}, "127.0.0.1 is this machine only: start all ranks, and set MASTER_ADDR to"),
        ({"GLOO_SOCKET_IFNAME": "lo"}, "set GLOO_SOCKET_IFNAME"),
        ({"GLOO_SOCKET_IFNAME": "eth77"}, "GLOO_SOCKET_IFNAME=eth77 is no interface with an address: set"),
    ],
)
def test_hosts_that_do_not_meet_say_what_to_set(
    wrong: dict[str, str], expected: str, hosts: Hosts, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    path = recipe(tmp_path, toy_shards, toy_tokenizer, JOIN)
    began = time.monotonic()
    found = finish([start(hosts, path, number, **wrong) for number in range(2)])
    assert time.monotonic() - began < JOIN + 150  # with the time in which torch is imported
    for number, (code, errors) in enumerate(found):
        assert code == 2, errors
        (line,) = error_lines(errors)
        assert expected in line and f"rank {number} of 2 on host n{number}" in line


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pulled_cable_ends_both_sides(hosts: Hosts, tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    path = recipe(tmp_path, toy_shards, toy_tokenizer, slow=True)
    processes = [start(hosts, path, number) for number in range(2)]
    limit = time.monotonic() + 400
    while not all((tmp_path / "run" / f"ready.{number}").exists() for number in range(2)):
        assert time.monotonic() < limit
        time.sleep(0.1)
    hosts.pull_the_cable()
    began = time.monotonic()
    found = finish(processes)
    assert time.monotonic() - began < LIMIT + 15
    for number, (code, errors) in enumerate(found):
        assert code == EXIT_CODE, errors
        (line,) = error_lines(errors)
        assert f"error: rank {1 - number} on host n{1 - number} gave no sign of life for" in line
        assert "Traceback" not in errors


def test_nodes_without_a_meeting_place_are_refused(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    path = recipe(tmp_path, toy_shards, toy_tokenizer)
    with pytest.raises(UserError, match="num_nodes is 2, but MASTER_ADDR, MASTER_PORT, NODE_RANK is not set"):
        main(["fit", "--config", str(path)])

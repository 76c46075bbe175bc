import csv
from pathlib import Path

import pytest
import yaml
from toys.recipes import clip_recipe
from toys.runs import assert_same_run

from leam_mm.callbacks.metrics_log import MetricsLog
from leam_mm.checkpoint import AtomicCheckpointIO
from leam_mm.cli import main


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def logged(folder: Path, steps: range, name: str = "loss") -> None:
    log = MetricsLog(str(folder))
    for step in steps:
        log.log_metrics({name: step / 3, "epoch": 0}, step)


def test_numbers_come_back_bit_by_bit(tmp_path: Path) -> None:
    logged(tmp_path / "run", range(3))
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == ["0", "1", "2"]
    assert [float(row["loss"]) for row in found] == [0.0, 1 / 3, 2 / 3]
    assert "epoch" not in found[0]


def test_resumed_run_keeps_what_was_before_and_writes_the_rest_again(tmp_path: Path) -> None:
    logged(tmp_path, range(10))
    logged(tmp_path, range(6, 12))
    assert [row["step"] for row in rows(tmp_path)] == [str(step) for step in range(12)]


def test_another_logger_of_the_same_step_does_not_delete(tmp_path: Path) -> None:
    # Validation and training metrics of one step are separate rows; a resumed run may begin with either.
    logged(tmp_path, range(4))
    log = MetricsLog(str(tmp_path))
    log.log_metrics({"val/loss": 1.0}, 3)
    assert [(row["step"], row["loss"] != "", row["val/loss"]) for row in rows(tmp_path)][-2:] == [
        ("3", True, ""),
        ("3", False, "1.0"),
    ]


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    for step in range(4):
        log.log_metrics({"loss": 1.0, "rate": 0.5}, step)
    path = tmp_path / "metrics.csv"
    for torn in ("4", "4,1.0", ",", '"4,1', "\x00\x00"):
        whole = path.read_text()
        path.write_text(whole + torn)
        MetricsLog(str(tmp_path)).log_metrics({"loss": 2.0, "rate": 0.5}, 4)
        found = rows(tmp_path)
        assert [row["step"] for row in found] == ["0", "1", "2", "3", "4"], torn
        assert found[-1]["loss"] == "2.0" and found[3]["loss"] == "1.0"
        path.write_text(whole)


def test_new_columns_join_the_old_ones(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    log.log_metrics({"loss": 1.0}, 0)
    log.log_metrics({"val/loss": 2.0}, 0)
    log.log_metrics({"loss": 3.0, "rate": 4.0}, 1)
    found = rows(tmp_path)
    assert list(found[0]) == ["step", "loss", "val/loss", "rate"]
    assert found[0]["loss"] == "1.0" and found[0]["val/loss"] == "" and found[2]["rate"] == "4.0"
    assert not list(tmp_path.glob("*.tmp*"))


def test_lies_in_the_run_folder(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    assert log.log_dir == log.save_dir == str(tmp_path) and log.name == log.version == ""
    log.log_hyperparams({"loss": 1})
    assert not (tmp_path / "metrics.csv").exists()


def test_the_same_row_is_written_once(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    for value in (1.0, 1.0, 2.0):
        log.log_metrics({"loss": value}, 3)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [("3", "1.0"), ("3", "2.0")]


class Killed(BaseException):
    """Nobody catches it."""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_end_between_checkpoint_and_row_loses_no_row(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str) -> None:
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=56)
        made["trainer"]["accumulate_grad_batches"] = accumulate
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(made))
        main(["fit", "--config", str(tmp_path / f"{name}.yaml")])

    def save_and_die(self: AtomicCheckpointIO, checkpoint: dict, path: str, storage_options: None = None) -> None:
        save(self, checkpoint, path, storage_options)
        if checkpoint["global_step"] == 4:
            raise Killed

    save = AtomicCheckpointIO.save_checkpoint
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_and_die)
        start("broken")
    assert [row["step"] for row in rows(tmp_path / "broken")] == ["0", "1", "2", "3"]
    start("whole")
    start("broken")
    assert [row["step"] for row in rows(tmp_path / "broken")] == [str(step) for step in range(7)]
    assert_same_run(tmp_path / "whole", tmp_path / "broken")

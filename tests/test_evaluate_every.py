"""Evaluators while training: measured on the interval and at the end, logged beside the losses, never twice."""

import csv
import random
from pathlib import Path

import numpy
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn
from toys.recipes import clip_recipe
from toys.runs import assert_same_run

from leam_mm.callbacks import evaluate_every, throughput
from leam_mm.callbacks.evaluate_every import EvaluateEvery, untouched
from leam_mm.cli import main
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric


class CountCalls(Evaluator):
    """Answers how often it was asked, and that the module was in evaluation mode."""

    def __init__(self) -> None:
        self.calls = 0

    def run(self, context: EvaluationContext) -> list[Metric]:
        assert not context.require_clip().training
        self.calls += 1
        return [
            Metric("probe/calls", float(self.calls), None, None, "count", 1),
            Metric("probe/absent", None, None, None, "count", 0, note="not measured"),
        ]


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_metrics_are_logged_on_the_interval_and_at_the_end(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path
) -> None:
    def recipe(samples: int) -> str:
        made = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=samples)
        made["trainer"]["callbacks"] = [
            {
                "class_path": "leam_mm.callbacks.evaluate_every.EvaluateEvery",
                "init_args": {"every_n_steps": 2, "evaluators": [{"class_path": f"{__name__}.CountCalls"}]},
            }
        ]
        path = tmp_path / f"recipe_{samples}.yaml"
        path.write_text(yaml.safe_dump(made))
        return str(path)

    main(["fit", "--config", recipe(40)])
    logged = [(row["step"], row["probe/calls"]) for row in rows(tmp_path / "run") if row["probe/calls"]]
    assert logged == [("1", "1.0"), ("3", "2.0"), ("4", "3.0")]  # steps 2, 4 and the end at 5, counted from 0
    assert "probe/absent" not in rows(tmp_path / "run")[0]
    assert all(float(row["evaluate/seconds"]) >= 0 for row in rows(tmp_path / "run") if row["probe/calls"])
    assert sum(1 for row in rows(tmp_path / "run") if row["train/loss"]) == 5


class Meddler(Evaluator):
    """Does what an evaluation may do: draws random numbers of all kinds, and sends pictures through both copies."""

    def run(self, context: EvaluationContext) -> list[Metric]:
        drawn = torch.rand(3).sum() + numpy.random.rand() + random.random()  # noqa: NPY002
        module = context.require_clip()
        picture = torch.rand(4, 3, 32, 32)
        answers = [network.encode_image(picture) for network in (module.encoder, module.ema_encoder())]
        assert not any(layer.training for layer in module.modules())
        return [Metric("probe/drawn", float(drawn + answers[0].sum() + answers[1].sum()), None, None, "none", 1)]


class Dropped(Callback):
    """Adds what a training draws from the global random states to its loss."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):  # type: ignore[no-untyped-def]
        pl_module.log("drawn", torch.rand(1).item() + numpy.random.rand() + random.random())  # noqa: NPY002


def test_training_does_not_notice_it(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path) -> None:
    for name in ("with", "without"):
        made = clip_recipe(tmp_path / name, toy_shards, toy_tokenizer, max_samples=48)
        # Batch norms have statistics that an evaluation in training mode would move.
        made["model"]["init_args"]["encoder"]["vision"] = {"image_size": 32, "timm_model_name": "test_resnet"}
        made["model"]["init_args"]["encoder"]["vision"] |= {"timm_pool": ""}
        made["data"]["init_args"]["image"] = {"image_size": 32, "crop_scale": [0.7, 1.0]}
        callbacks = [{"class_path": f"{__name__}.Dropped"}]
        if name == "with":
            callbacks.append(
                {
                    "class_path": "leam_mm.callbacks.evaluate_every.EvaluateEvery",
                    "init_args": {"every_n_steps": 2, "evaluators": [{"class_path": f"{__name__}.Meddler"}]},
                }
            )
        made["trainer"]["callbacks"] = callbacks
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made))
        main(["fit", "--config", str(path)])
    assert len([row for row in rows(tmp_path / "with") if row["probe/drawn"]]) == 3
    assert_same_run(tmp_path / "with", tmp_path / "without")
    drawn = [[row["drawn"] for row in rows(tmp_path / name) if row["drawn"]] for name in ("with", "without")]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 6


def test_modes_of_layers_come_back_one_by_one() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))).train()
    net[1][1].eval()
    with untouched(net, torch.device("cpu")):
        assert not any(layer.training for layer in net.modules())
        torch.rand(5)
    assert [layer.training for layer in net.modules()] == [True, True, True, True, False]


class Costly(Evaluator):
    """Takes the clock an hour."""

    def run(self, context: EvaluationContext) -> list[Metric]:
        Ticking.now += 3600.0
        return [Metric("probe/one", 1.0, None, None, "count", 1)]


class Ticking(Callback):
    """A clock that only moves when somebody works: a second for each batch."""

    now = 0.0

    def on_before_backward(self, trainer, pl_module, loss):  # type: ignore[no-untyped-def]
        Ticking.now += 1.0


def test_its_time_is_kept_apart(tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: Ticking.now)
    monkeypatch.setattr(evaluate_every.time, "monotonic", lambda: Ticking.now)
    made = clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=96)
    made["checkpoint"] = {"every_n_train_steps": 1000}
    made["trainer"]["callbacks"] = [
        {"class_path": f"{__name__}.Ticking"},
        {
            "class_path": "leam_mm.callbacks.evaluate_every.EvaluateEvery",
            "init_args": {"every_n_steps": 5, "evaluators": [{"class_path": f"{__name__}.Costly"}]},
        },
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(made))
    main(["fit", "--config", str(path)])
    logged = rows(tmp_path / "run")
    rates = [row["throughput/samples_per_second"] for row in logged if row["throughput/samples_per_second"]]
    assert set(rates) == {"8.0"} and len(rates) == 11  # a batch of 8 a second, whatever the evaluation took
    assert {row["throughput/data_wait"] for row in logged if row["throughput/data_wait"]} == {"0.0"}
    times = [(row["evaluate/seconds"], row["time/evaluation"]) for row in logged if row["evaluate/seconds"]]
    assert times == [("3600.0", "3600.0"), ("3600.0", "7200.0"), ("3600.0", "10800.0")]


def test_its_time_goes_on_after_a_restart() -> None:
    first = EvaluateEvery([], 3)
    first._measured, first._seconds = 6, 12.5
    second = EvaluateEvery([], 3)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"measured": 6, "seconds": 12.5}

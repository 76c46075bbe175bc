"""Evaluators while training: measured on the interval and at the end, logged beside the losses, never twice."""

import csv
from pathlib import Path

import yaml
from conftest import clip_recipe

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
                "class_path": "leam_mm.training.evaluate_every.EvaluateEvery",
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

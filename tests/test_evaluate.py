"""The program: results and report are written, mistakes are one line, nothing is measured before paths are checked."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import evaluate
from leam_mm import errors
from leam_mm.audits.audit import Audit
from leam_mm.errors import UserError
from leam_mm.evaluate_commands.audit_command import audit
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.files import TEMPORARY


class Counting(Evaluator):
    """Returns its setting.

    Args:
        value: The number.
    """

    def __init__(self, value: float) -> None:
        self.value = value

    def run(self, context: EvaluationContext) -> list[Metric]:
        return [Metric("counting/value", self.value, None, None, "count", 1, note="<b>note</b>")]


def configure(folder: Path, **changes: object) -> list[str]:
    evaluators = [{"class_path": "tests.test_evaluate.Counting", "init_args": {"value": 3.0}}]
    config = {"evaluators": evaluators, "output": str(folder / "out"), "device": "cpu"} | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--config", str(folder / "config.yaml")]


def one_line(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        evaluate.main(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_results_and_report_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(configure(tmp_path))
    (tmp_path / "out" / f"report.html{TEMPORARY}9-ab").touch()  # as a killed run leaves it
    evaluate.main(configure(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [3.0, 3.0]
    assert lines[0]["settings"] == {"value": 3.0}
    assert lines[0]["versions"]["torch"]
    assert "<b>note" not in (tmp_path / "out" / "report.html").read_text()
    assert "results.jsonl" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.de.html",
        "report.html",
        "results.jsonl",
    ]


def test_unknown_keys_are_one_line(tmp_path: Path) -> None:
    evaluators = [{"class_path": "tests.test_evaluate.Counting", "init_args": {"valeu": 3.0}}]
    assert "valeu" in one_line(configure(tmp_path, evaluators=evaluators))
    assert "colour" in one_line(configure(tmp_path, colour=1))
    assert "--evaluatrs" in one_line(["--output", str(tmp_path), "--evaluatrs", "x"])
    assert "no evaluator" in one_line(configure(tmp_path, evaluators=[]))
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint_is_found_before_anything_is_measured(tmp_path: Path) -> None:
    assert "there is no model at" in one_line([*configure(tmp_path), "--clip", str(tmp_path / "nothing")])
    assert not (tmp_path / "out").exists()


def test_program_exits_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        errors.run(lambda: evaluate.main(["--config", str(tmp_path / "none.yaml")]))
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("command", "files", "part", "kind"),
    [(evaluate.evaluate, "evaluate_*.yaml", "evaluators", Evaluator), (audit, "audit_*.yaml", "audits", Audit)],
)
def test_recipes_parse_and_name_what_exists(command: Callable, files: str, part: str, kind: type) -> None:
    root = Path(evaluate.__file__).parent
    found = sorted((root / "configs").glob(files))
    assert found
    for path in found:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_function_arguments(command, as_group=False)
        parsed = parser.parse_args(["--config", str(path)])
        built = parser.instantiate_classes(parsed)
        assert all(isinstance(entry, kind) for entry in built[part])


def test_help_and_an_empty_command_line_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    shown, refused = capsys.readouterr().out, one_line([])
    assert len(evaluate.COMMANDS) > 6 and "--evaluators" in shown
    for name, module in evaluate.COMMANDS.items():
        assert f"  {name} " in shown and (module.__doc__ or "").splitlines()[0] in shown and name in refused

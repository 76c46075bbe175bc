from pathlib import Path

import pytest

from leam_mm.config_error import config_files, explain, find_key, innermost

NESTED = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'lightning.pytorch.core.module.LightningModule'>, <class 'NoneType'>]
  Errors:
    - Parser key "warmup_steps":
        Expected a <class 'int'>. Got value: many
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'init_args': {'warmup_steps': 'many'}}"""


@pytest.fixture
def args(tmp_path: Path) -> list[str]:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {init_args: {warmup_steps: 3, inner: [{deep: 1}]}}\n")
    second.write_text("model: {init_args: {warmup_steps: many}}\n")
    return ["fit", "--config", str(first), f"--config={second}", "--data.init_args.seed", "x"]


def test_files_come_in_the_order_of_the_command_line(args: list[str], tmp_path: Path) -> None:
    assert config_files([*args, "-c", "third.yaml"]) == [
        str(tmp_path / "first.yaml"),
        str(tmp_path / "second.yaml"),
        "third.yaml",
    ]
    assert config_files(["fit", "--config"]) == []


def test_last_file_with_a_key_wins(args: list[str], tmp_path: Path) -> None:
    second = str(tmp_path / "second.yaml")
    assert find_key("warmup_steps", args) == (second, "model.init_args.warmup_steps")
    assert find_key("init_args.warmup_steps", args) == (second, "model.init_args.warmup_steps")
    assert find_key("deep", args) == (str(tmp_path / "first.yaml"), "model.init_args.inner.deep")
    assert find_key("seed", args) == ("the command line", "data.init_args.seed")
    assert find_key("nowhere", args) == (f"{tmp_path / 'first.yaml'}, {second}", "nowhere")


def test_wrong_type_names_file_key_and_value(args: list[str], tmp_path: Path) -> None:
    assert innermost(NESTED) == "warmup_steps: Expected a int. Got value: many"
    line = explain(NESTED, args)
    assert line == f"{tmp_path / 'second.yaml'}: model.init_args.warmup_steps: Expected a int. Got value: many"


@pytest.mark.parametrize(
    "message",
    [
        "Option 'deep' is not accepted",
        "Subcommand 'fit' does not accept option 'inner.deep'",
        "Group 'x' does not accept option 'deep'",
    ],
)
def test_unknown_key_names_file_and_fix(message: str, args: list[str], tmp_path: Path) -> None:
    line = explain(f'Parser key "model":\n  Errors:\n    - {message}\n', args)
    assert line.startswith(f"{tmp_path / 'first.yaml'}: unknown key 'model.init_args.inner.deep': remove it")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--model.init_args.warmup_step", "4"], "model.init_args.warmup_steps"),
        (["--modle", "x.yaml"], "model"),
        (["--legal-bassis", "unknown"], "legal-basis"),
        (["--model.init_args.colour", "4"], None),  # nothing like it
        (["--data.init_args.warmup_step", "4"], None),  # known elsewhere only
    ],
)
def test_misspelt_key_is_given_the_one_it_resembles(typed: list[str], meant: str | None, args: list[str]) -> None:
    line = explain(f"unrecognized arguments: {' '.join(typed)}", [*args, *typed], ["--legal-basis", "output"])
    assert (f"did you mean {meant!r}? " in line) if meant else ("did you mean" not in line)
    assert line.endswith("--print_config shows the valid ones")


def test_message_about_a_class_has_no_inner_objects_of_the_parser() -> None:
    kind = "typing.Callable[[collections.abc.Iterable], torch.optim.Optimizer]"
    around = f"Type {kind} expects a function or a callable class: "
    fault = "model.optimizer.init_args.lr: Expected a <class 'float'>. Got value: 1x"
    got = ". Got value: Namespace(class_path='torch.optim.SGD', init_args=Namespace(lr='1x'))"
    assert innermost(f'Parser key "optimizer":\n  {around}{fault}{got}') == (
        "model.optimizer.init_args.lr: Expected a float. Got value: 1x"
    )
    wrong = "Problem with given class_path 'a.B': module 'a' has no attribute 'B'"
    message = f"Parser key \"loss\":\n  {wrong}\n  Given value: NestedArg(key='loss', val='a.B')"
    assert innermost(message) == f"loss: {wrong}"
    other = "Subclasses are disabled for Text, thus 'a.Tower' is not accepted"
    assert innermost(f"Parser key \"layers\":\n  Expected a <class 'int'>. Got value: x\n  - {other}") == (
        "layers: Expected a int. Got value: x"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [("", "holds no keys"), ("words", "holds no keys"), ("a: [1", "is no YAML"), (None, "cannot be read")],
)
def test_file_that_is_no_recipe_is_named(tmp_path: Path, content: str | None, fault: str) -> None:
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    line = explain("Problems parsing config:\n  somewhere", ["fit", "--config", str(file)])
    assert line.startswith(f"{file}: {fault}") and "\n" not in line


def test_other_messages_stay_in_one_line() -> None:
    assert explain("the following\narguments are required: model", []) == (
        "the command line: the following; arguments are required: model"
    )

import dataclasses
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from toys.recipes import ROOT

from leam_mm import command_line
from leam_mm.command_line import NonNegativeFloat, PositiveInt, Share, parse_commands, parse_settings
from leam_mm.errors import UserError


@dataclass
class Settings:
    """Settings of a toy program.

    Args:
        folder: Input, at 100 % of its size.
        size: Side in pixels.
        languages: Codes to keep.
    """

    folder: Path
    shards: list[Path] = field(default_factory=list)
    size: PositiveInt = 32
    max_errors: Share = 0.1
    delay: NonNegativeFloat | None = None
    format: Literal["png", "jpg"] = "png"
    languages: list[str] = field(default_factory=lambda: ["en", "de"])
    overwrite: bool = False
    verify: int = field(default=0, metadata={"const": 64})
    texts: list[str] = field(default_factory=list, metadata={"aliases": {"clip": "clip=", "text-encoder": "hf="}})


def read(*words: str) -> Settings:
    return parse_settings(Settings, __doc__, words, positional=("folder",))


def test_missing_and_misspelt_options_are_named_as_they_are_written() -> None:
    @dataclass
    class Required:
        """Settings.

        Args:
            folder: Input.
            legal_basis: Why.
        """

        folder: Path
        legal_basis: str

    with pytest.raises(UserError, match=r"the command line: folder, --legal-basis must be given, see --help"):
        parse_settings(Required, __doc__, [], positional=("folder",))
    with pytest.raises(UserError, match=r"did you mean 'legal-basis'\?"):
        parse_settings(Required, __doc__, ["here", "--legal-basis", "a", "--legal-bassis", "b"], positional=("folder",))


def test_defaults_are_those_of_the_dataclass() -> None:
    assert read("here") == Settings(Path("here"))
    assert read("here").shards is not read("here").shards


def test_options_of_every_kind() -> None:
    words = "here --shards a b --size 8 --shards c --max-errors 0.5 --delay 0 --format jpg --languages ga --overwrite"
    expected = Settings(Path("here"), [Path("a"), Path("b"), Path("c")], 8, 0.5, 0.0, "jpg", ["ga"], True)
    assert read(*words.split()) == expected
    assert read(*words.replace("max-errors", "max_errors").split()) == expected


def test_an_option_without_its_value_and_aliases_in_order() -> None:
    assert (read("here", "--verify").verify, read("here", "--verify", "3").verify) == (64, 3)
    assert read("here", "--clip", "a", "--text-encoder=b", "--clip", "c").texts == ["clip=a", "hf=b", "clip=c"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["here", "--size", "0"], "size"),
        (["here", "--size", "two"], "size"),
        (["here", "--max-errors", "1.5"], "max-errors|max_errors"),
        (["here", "--delay", "-1"], "delay"),
        (["here", "--format", "gif"], "gif"),
        (["here", "--sise", "2"], "sise"),
        ([], "folder"),
    ],
)  # fmt: skip
def test_faults_are_one_line_with_the_option(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(*words)
    assert "\n" not in str(caught.value)


def test_config_file_and_print_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("here", "--size", "9", "--overwrite", "--print_config")
    printed = tmp_path / "settings.yaml"
    printed.write_text(capsys.readouterr().out)
    assert "max_errors: 0.1" in printed.read_text()
    assert read("--config", str(printed)) == read("here", "--size", "9", "--overwrite")
    assert read("--config", str(printed), "--size", "7").size == 7
    printed.write_text("folder: here\nsise: 2\n")
    with pytest.raises(UserError, match="sise"):
        read("--config", str(printed))


def test_options_replace_the_lists_of_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("here", "--shards", "a", "b", "--print_config")
    printed = tmp_path / "settings.yaml"
    printed.write_text(capsys.readouterr().out)
    assert read("--config", str(printed)).shards == [Path("a"), Path("b")]
    assert read("--config", str(printed), "--shards", "c", "--shards", "d").shards == [Path("c"), Path("d")]


def test_an_alias_takes_no_option_as_its_value() -> None:
    for words in (["--clip", "--overwrite"], ["--clip"]):
        with pytest.raises(UserError, match="--clip has no value"):
            read("here", *words)


def test_help_has_the_texts_of_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Side in pixels." in text and "--max-errors" in text and "100 % of its size" in text


@dataclass
class Build:
    """Build an index."""

    shards: Path


@dataclass
class Ask:
    """Ask an index."""

    limit: PositiveInt = 3


@pytest.mark.parametrize(
    ("started", "named"),
    [("x/leam_mm/release/__main__.py", "python -m leam_mm.release a"), ("x/program.py", "program.py a")],
)
def test_the_usage_line_names_the_program(
    started: str, named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True)
    class Empty:
        """Nothing."""

        number: int = 1

    monkeypatch.setattr("sys.argv", [started])
    with pytest.raises(SystemExit):
        parse_commands({"a": Empty}, "", ["a", "--help"])
    assert f"usage: {named} " in capsys.readouterr().out


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {"build": Build, "ask": Ask}
    assert parse_commands(kinds, "Text.", ["build", "here"], {"build": ("shards",)}) == Build(Path("here"))
    assert parse_commands(kinds, "Text.", ["ask", "--limit", "5"]) == Ask(5)
    for wrong in ([], ["drop"]):
        with pytest.raises(UserError, match="build, ask"):
            parse_commands(kinds, "Text.", wrong)
    with pytest.raises(SystemExit):
        parse_commands(kinds, "Text.", ["--help"])
    assert "build,ask" in capsys.readouterr().out


COMMANDS = {"sample_search": ("build", "ask"), "signed_statement": ("make-key", "sign", "verify")}
PROGRAMS = sorted(f"data_tools.{path.stem}" for path in (ROOT / "data_tools").glob("*.py") if path.stem != "__init__")
PROGRAMS += ["leam_mm.draw"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_explains_all_its_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds: list[type[Any]] = []

    def parse(kind: type[Any], *args: Any, **kwargs: Any) -> Any:
        kinds.append(kind)
        return parse_settings(kind, *args, **kwargs)

    program, commands = importlib.import_module(name), COMMANDS.get(name.rpartition(".")[2])
    late = not hasattr(program, "parse_settings")  # imported in its main function
    monkeypatch.setattr(command_line if commands or late else program, "parse_settings", parse)
    for command in commands or ("",):
        with pytest.raises(SystemExit) as ended:
            program.main([*([command] if command else []), "--help"])
        assert ended.value.code == 0 and "usage:" in capsys.readouterr().out
    assert kinds
    for kind in kinds:
        helps = command_line._help_texts(kind)
        assert not [each.name for each in dataclasses.fields(kind) if each.init and not helps.get(each.name)]

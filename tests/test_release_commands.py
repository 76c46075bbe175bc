"""The command line of a release: commands, their options, and refused values."""

from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.release.__main__ import COMMANDS, main
from leam_mm.release.build_command import BuildOptions


def test_the_help_names_every_command_and_every_option_has_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert all(f"release {name} " in page for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        for line in (line for line in text.splitlines() if line.startswith("  --") and "--print_config" not in line):
            assert len(line.split()) > 1 or text[text.index(line) + len(line) :].startswith("\n   "), line


def test_a_word_that_is_no_command_is_refused_with_the_list() -> None:
    for words in ([], ["publsh"], ["--clip", "run", "--name", "x", "--output", "y"]):
        with pytest.raises(UserError, match=r"the first word must be one of init, build, "):
            main(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--licence", ""], "is no licence: give an SPDX identifier"),
        (["--licence", "MIT\nevil: true"], "is no licence"),
        (["--name", ""], "--name is ''"),
        (["--codec", "runs/codec"], "--codec belongs to a generator: give --generator too"),
        (["--licens", "MIT"], "licens"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    output = tmp_path / "release"
    with pytest.raises(UserError, match=message) as caught:
        main(["build", "--clip", "runs/clip", "--name", "toy", "--output", str(output), *words])
    assert "\n" not in str(caught.value) and not output.exists()


def test_lists_may_be_empty_and_repeated(tmp_path: Path) -> None:
    from leam_mm.command_line import parse_settings

    words = ["--name", "toy", "--output", str(tmp_path), "--results", "--shards", "a", "--shards", "b"]
    options = parse_settings(BuildOptions, None, words)
    assert (options.results, options.shards, options.licence) == ([], [Path("a"), Path("b")], "Apache-2.0")

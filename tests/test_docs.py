"""What README, docs/ and CONTRIBUTING say is true: links, paths, class names, commands and code blocks."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import yaml
from PIL import Image
from toys.command_line import fit_here
from toys.recipes import clip_recipe

import evaluate
from evaluate import COMMANDS
from leam_mm.checkpoint import EVIDENCE, read_checkpoint
from leam_mm.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAMS = {"train.py", "tensorboard", "sbatch"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, kind: str) -> list[str]:
    """Fenced blocks of one kind; commands in README are indented by four spaces instead."""
    text = page.read_text(encoding="utf-8")
    found = [body for info, body in FENCE.findall(text) if info.split() and info.split()[0] == kind]
    indented = re.findall(r"(?:^    (?:make|python|sbatch) .*\n?)+", text, re.MULTILINE) if kind == "sh" else []
    return found + indented


def commands(page: Path) -> list[list[str]]:
    """Words of each command, without comments."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def help_text(program: tuple[str, ...]) -> str:
    """``--help`` of one of our programs."""
    if program[0] == "evaluate.py":  # its imports take seconds
        with redirect_stdout(StringIO()) as said_here, suppress(SystemExit):
            evaluate.main([*program[1:], "--help"])
        return said_here.getvalue()
    said = subprocess.run([sys.executable, *program, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.returncode == 0, said.stderr
    return said.stdout


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each_page
def test_paths_and_names_in_backticks_exist(page: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        for word in code.split():
            if re.fullmatch(r"(leam_mm|data_tools|configs|tests|docs)/[\w./]*\w", word):
                assert (ROOT / word).exists(), word
            if re.fullmatch(r"((leam_mm|data_tools)\.)?(\w+\.)*[a-z_]+\.[A-Z]\w+", word) and "my_lab" not in word:
                package = next((p for p in ("leam_mm", "data_tools") if word.startswith(p)), None)
                module, _, name = (word if package else f"leam_mm.{word}").rpartition(".")
                known = (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
                candidates = [module] if package or known else [f"leam_mm.evaluators.{module.split('.', 1)[1]}"]
                if package or known or (ROOT / candidates[0].replace(".", "/")).with_suffix(".py").is_file():
                    assert hasattr(importlib.import_module(candidates[0]), name), word


@each_page
def test_commands_name_programs_options_and_files_that_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(page):
        words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
        if words[0] == "make":
            assert all(f"\n{target}:" in makefile for target in words[1:]), words
            continue
        if words[0] != "python":
            continue
        program = tuple(words[1:3]) if words[1] == "-m" else (words[1],)
        if words[1] == "-m" and words[2].partition(".")[0] not in ("leam_mm", "data_tools"):
            continue  # the program of another library
        for word in words[2:]:
            if re.fullmatch(r"configs/[\w/]+\.yaml", word):
                assert (ROOT / word).is_file(), word
        if words[1] in PROGRAMS or (words[1] == "-m" and words[2] == "leam_mm.pipeline"):
            assert words[1] == "-m" or (ROOT / words[1]).is_file()
            continue
        if program[0].endswith(("sample_search.py", "signed_statement.py")):
            program = (*program, words[2])
        if program == ("evaluate.py",) and words[2] in COMMANDS:
            program = (*program, words[2])
        if program[-1] in (
            "leam_mm.launch",
            "leam_mm.marking",
            "leam_mm.planning",
            "leam_mm.release",
        ):  # each of its commands has options of its own
            program = (*program, words[3])
        words = words[: words.index("--")] if "--" in words else words  # the rest is for another program
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert all(option in help_text(program) for option in options), words


@each_page
def test_code_blocks_are_valid(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_lab").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    for body in blocks(page, "python"):
        if match := re.match(r"# (my_lab/\w+)\.py\n", body):
            (tmp_path / f"{match[1]}.py").write_text(body, encoding="utf-8")
            importlib.import_module(match[1].replace("/", "."))
    for body in blocks(page, "yaml"):
        for class_path in re.findall(r"class_path: ([\w.]+)", body):
            module, _, name = class_path.rpartition(".")
            assert hasattr(importlib.import_module(module), name)
        yaml.safe_load(body)
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


RUN = [page for page in PAGES if "```sh run\n" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_marked_as_run_succeed(page: Path, tmp_path: Path) -> None:
    for name in ("train.py", "evaluate.py", "configs", "data_tools", "leam_mm"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "images").mkdir()
    for number in range(12):
        image = Image.effect_noise((96, 80 + number), 40 + 10 * number).convert("RGB")
        image.save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(f"A grey sample of noise, number {number}, seen from above")
    (tmp_path / "agreement.txt").write_text("The museum agrees.")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for body in (body for info, body in FENCE.findall(page.read_text(encoding="utf-8")) if info == "sh run"):
        for line in body.splitlines():
            words = [sys.executable, *shlex.split(line)[1:]]
            said = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
            assert said.returncode == 0, f"{line}\n{said.stderr[-2000:]}"
    shutil.rmtree(tmp_path)


def test_changes_of_a_run_work_as_documented(
    tmp_path: Path, toy_shards: Path, toy_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")
    (body,) = [body for info, body in FENCE.findall(page) if info == "sh changes"]
    monkeypatch.chdir(tmp_path)
    fit_here(clip_recipe(tmp_path / "run", toy_shards, toy_tokenizer, max_samples=64), tmp_path)
    ends = []
    for line in body.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "train.py"]
        main(words[2:])
        ends.append(read_checkpoint(tmp_path / "run")[EVIDENCE]["samples_seen"])
    assert ends == [96, 128, 136, 144]
    keys = [change["key"] for change in read_checkpoint(tmp_path / "run")[EVIDENCE]["changes"]]
    assert keys.count("max_samples") == 4 and "model.init_args.optimizer.init_args.lr" in keys

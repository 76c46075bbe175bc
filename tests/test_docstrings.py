"""Every YAML snippet in a docstring parses, and the classes that it names exist."""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = [*(file for folder in ("leam_mm", "data_tools") for file in sorted((ROOT / folder).rglob("*.py")))]
ELSEWHERE = "my_lab."  # packages of a reader, as examples name them
FIRST_LINE = re.compile(r"(- )?[\w.+]+:(\s|$)|- \w")


def docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """Name and docstring of a module and of everything in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{file.relative_to(ROOT)}:{getattr(node, 'name', '')}", ast.get_docstring(node) or ""


def snippets(text: str) -> Iterator[str]:
    """Paragraphs that are YAML: those that name a class, and indented ones that begin like a mapping or a list."""
    for paragraph in re.split(r"\n\s*\n", text):
        inner = textwrap.dedent(paragraph).strip("\n")
        indented = paragraph.strip("\n").startswith(" ") and FIRST_LINE.match(inner)
        if re.search(r"^\W*(\w+: *\{?)?class_path:", inner, re.MULTILINE) or indented:
            yield inner


def classes(content: Any) -> Iterator[tuple[str, set[str]]]:
    """Each `class_path` in a parsed snippet with the names of its arguments."""
    if isinstance(content, dict):
        if "class_path" in content:
            yield str(content["class_path"]), set(content.get("init_args") or {}) - {"..."}
        content = list(content.values())
    for part in content if isinstance(content, list) else []:
        yield from classes(part)


FOUND = [(name, snippet) for file in FILES for name, text in docstrings(file) for snippet in snippets(text)]


def test_snippets_are_found() -> None:
    assert len(FOUND) >= 10
    assert [*snippets("Words: more.\n\n    a:\n    - b\n\nArgs:\n    x: A number.")] == ["a:\n- b"]


@pytest.mark.parametrize(("name", "snippet"), FOUND, ids=[name for name, _ in FOUND])
def test_snippet_parses_and_its_classes_exist(name: str, snippet: str) -> None:
    content = yaml.safe_load(snippet)
    assert isinstance(content, dict | list), f"{name} is not a mapping or a list"
    found = list(classes(content))
    assert snippet.count("class_path:") == len(found), f"{name}: a class_path is inside a text"
    for path, arguments in found:
        if not path.startswith(ELSEWHERE):
            module, _, attribute = path.rpartition(".")
            known = inspect.signature(getattr(importlib.import_module(module), attribute).__init__).parameters
            assert arguments <= known.keys(), f"{name}: {path} does not take {arguments - known.keys()}"

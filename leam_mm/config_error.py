"""Errors of a recipe in one line: jsonargparse prints a dozen and does not name the file."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

# Lines that say how jsonargparse parsed a value, not what is wrong with it.
NOISE = re.compile(
    r"does not validate against any of the union subtypes|subtypes:|errors:|given value( type)?:"
    r"|expected a <class 'NoneType'>|expected a path but|expected a dot import path|usage:|subclasses are disabled for",
    re.IGNORECASE,
)
UNKNOWN = re.compile(
    r"(?:[Oo]ption '([^']+)' is not accepted|not accept option '([^']+)'|unrecognized arguments: (.+))"
)
# Options of evaluators, audits and SampleGrid that are fields of an object now.
MOVED = {"steps": "sampling: {steps: ...}", "guidance": "sampling: {guidance: ...}"}
SAMPLING = re.compile(r"class_path '?leam_mm\.(?:evaluators|audits|callbacks\.sample_grid)\.")
KEY = re.compile(r'Parser key "([^"]+)":')
# What jsonargparse says around the fault of a class that a callable builds, such as an optimizer.
CALLABLE = re.compile(r"Type typing\.Callable.*? expects a function or a callable class: |\.? Got value: Namespace\(.*")
SPELLING = "remove it or correct its spelling; --print_config shows the valid ones"
OUTER_KEY = re.compile(r"^[\w.]+: (?=\w+\.[\w.]+: Expected)")


def moved_option(message: str) -> str:
    """Return where an option of an older recipe is now, from jsonargparse's message; empty if it is none of these."""
    match = UNKNOWN.search(message)
    name = next((part for part in match.groups() if part), "") if match and SAMPLING.search(message) else ""
    return f"write {MOVED[name]} in its place" if name in MOVED else ""


def config_files(args: Sequence[str]) -> list[str]:
    """Return the YAML files of a command line, in order."""
    files, following = [], False
    for word in args:
        if following:
            files.append(word)
        following = word in ("--config", "-c")
        if word.startswith("--config="):
            files.append(word.removeprefix("--config="))
    return files


def _paths(content: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(content, dict):
        for name, value in content.items():
            yield (*before, str(name))
            yield from _paths(value, (*before, str(name)))
    elif isinstance(content, list):
        for value in content:
            yield from _paths(value, before)


def find_key(key: str, args: Sequence[str]) -> tuple[str, str]:
    """Return the file (or "the command line") and the full dotted path of a key; the last one wins, as in merging.

    Args:
        key: Name, or end of the dotted path.
        args: The command line.
    """
    wanted = tuple(key.split("."))
    for word in reversed(args):
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and tuple(name.split("."))[-len(wanted) :] == wanted:
            return "the command line", name
    for file in reversed(config_files(args)):
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        for path in _paths(content):
            if path[-len(wanted) :] == wanted:
                return file, ".".join(path)
    return ", ".join(config_files(args)) or "the command line", key


def innermost(message: str) -> str:
    """Return the part of jsonargparse's message that says what is wrong, without the report of how it was found."""
    lines = [line.strip(" -") for line in message.splitlines()]
    starts = [number for number, line in enumerate(lines) if KEY.match(line)]
    value = next((line for line in lines[starts[-1] :] if line.startswith("Given value: ")), "") if starts else ""
    kept = [line for line in lines[starts[-1] if starts else 0 :] if line and not NOISE.match(line)]
    named = any("Got value" in line or "given class_path" in line for line in kept)
    if value and len(value) < 80 and not named:
        kept.append(value.replace("Given", "given", 1))
    text = "; ".join(kept) or " ".join(lines)
    text = CALLABLE.sub("", text)
    text = re.sub(r"Expected a typing\.Literal\[([^]]*)\]", r"Expected one of \1", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", KEY.sub(r"\1:", text).replace(":;", ":"))
    return OUTER_KEY.sub("", text)[:400]


def nearest_key(path: str, args: Sequence[str], options: Iterable[str] = ()) -> str:
    """Return the key that a misspelt one resembles; empty if there is none.

    Args:
        path: The unknown key, dotted.
        args: The command line; the keys beside the unknown one in its YAML files are candidates.
        options: Names of a program's options, further candidates.
    """
    *before, last = path.split(".")
    names = {name.lstrip("-") for name in options} if not before else set()
    for file in config_files(args):
        if file_fault(file) is None:
            keys = _paths(yaml.safe_load(Path(file).read_text(encoding="utf-8")))
            names |= {key[-1] for key in keys if list(key[:-1]) == before}
    close = get_close_matches(last, sorted(names - {last}), 1, 0.75)
    return ".".join([*before, *close]) if close else ""


def file_fault(file: str) -> str | None:
    """Return why a file is no YAML mapping; None if it is one."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        return f"cannot be read ({error.strerror}); --config takes the path of a recipe, see configs/"
    except (ValueError, yaml.YAMLError) as error:
        return f"is no YAML ({' '.join(str(error).split())})"
    return None if isinstance(content, dict) else "holds no keys; a recipe is a YAML mapping, see configs/"


def explain(message: str, args: Sequence[str], options: Iterable[str] = ()) -> str:
    """Return one line with the file, the key and the fix.

    Args:
        message: Message of jsonargparse.
        args: The command line, to find the file with the key.
        options: Names of the program's options, to suggest one.
    """
    if match := UNKNOWN.search(message):
        file, path = find_key(next(part for part in match.groups() if part).split()[0].lstrip("-"), args)
        near = nearest_key(path, args, options)
        cure = moved_option(message) or (f"did you mean {near!r}? " if near else "") + SPELLING
        return f"{file}: unknown key {path!r}: {cure}"
    keys = KEY.findall(message)
    if keys and keys[-1] != "config":
        file, path = find_key(keys[-1], args)
        return f"{file}: {innermost(message).replace(keys[-1] + ':', path + ':', 1)}"
    for file in config_files(args):
        if fault := file_fault(file):
            return f"{file}: {fault}"
    return f"{', '.join(config_files(args)) or 'the command line'}: {innermost(message)}"

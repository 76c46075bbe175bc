"""Command lines of the programs, made by jsonargparse from the dataclasses that hold their settings.

A field ``max_errors: Share = 0.1`` becomes ``--max-errors`` (``--max_errors`` works, too) with the text of the class's
``Args:`` as its help. A ``bool`` field is a flag, a list field takes several values and may be repeated. ``--config
FILE`` reads settings from YAML, and ``--print_config`` prints all of them in that form.
"""

import argparse
import dataclasses
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from leam_mm.config_error import explain
from leam_mm.errors import UserError, user_error

FUNCTION_TYPE = re.compile(r"type: <function .*? at 0x[0-9a-f]+>, ")  # in the help of an option with choices
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Args:
        least: Smallest value.
        most: Largest value.
        above: The value must be larger than this.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def fault(self, number: float) -> str | None:
        """Return what to give instead of a number outside the bounds, else None; NaN is always outside."""
        inside = (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
        )
        limits = {"at least": self.least, "at most": self.most, "more than": self.above}
        return None if inside else "a number of " + " and ".join(
            f"{word} {limit:g}" for word, limit in limits.items() if limit is not None
        )  # fmt: skip


PositiveInt = Annotated[int, Range(least=1)]
NonNegativeInt = Annotated[int, Range(least=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(least=0)]
Share = Annotated[float, Range(least=0, most=1)]


def parse_settings(
    kind: type[Settings],
    description: str | None,
    args: Sequence[str] | None = None,
    positional: Sequence[str] = (),
    program: str | None = None,
) -> Settings:
    """Read a command line into a dataclass.

    Metadata of a field, all optional: ``nargs`` in place of argparse's ``"+"`` for a list; ``const``, the value of an
    option that is given without one; ``aliases``, a mapping such as ``{"clip": "clip="}`` of further options whose
    values, with that prefix, are appended to the same list field in the order in which they are given.

    Args:
        kind: The dataclass. Fields without a default are required.
        description: Text of ``--help``, usually the module's docstring.
        args: The command line; None takes that of the process.
        positional: Fields that are given without an option's name.
        program: Name in the usage line.

    Raises:
        UserError: One line that names the option, its value and the fix.
    """
    from jsonargparse import ArgumentParser, DefaultHelpFormatter  # only here: worker processes need not load it

    class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
        """Keeps the line breaks of the description, and leaves out functions that jsonargparse shows as types."""

        def _expand_help(self, action: argparse.Action) -> str:
            return FUNCTION_TYPE.sub("", super()._expand_help(action))

    hints = typing.get_type_hints(kind, include_extras=True)
    helps = _help_texts(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    parser = ArgumentParser(program, description=description, formatter_class=Formatter, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with settings; later options override it")
    for field in fields:
        name = field.name if field.name in positional else f"--{field.name.replace('_', '-')}"
        options = _options(field, hints[field.name], bool(name.startswith("--")))
        parser.add_argument(name, help=helps.get(field.name), **options)
    words = _with_aliases([_dashed(word) for word in (sys.argv[1:] if args is None else args)], fields)
    try:
        found = parser.parse_args(words)
        for field in fields:
            _check_range(f"--{field.name.replace('_', '-')}", getattr(found, field.name), hints[field.name])
        return kind(**{field.name: _paths(getattr(found, field.name), hints[field.name]) for field in fields})
    except argparse.ArgumentError as error:
        names = [field.name.replace("_", "-") for field in fields]
        message = _missing(str(error), positional) or explain(str(error), words, names)
        raise user_error(error) or UserError(message) from None


def _missing(message: str, positional: Sequence[str]) -> str:
    """Return which required options were not given, as they are written; empty if the message says something else."""
    match = re.search(r"following arguments are required: ([\w, ]+)", message)
    names = match[1].split(", ") if match else []
    options = [name if name in positional else f"--{name.replace('_', '-')}" for name in names]
    return f"the command line: {', '.join(options)} must be given, see --help" if names else ""


def parse_commands(
    kinds: Mapping[str, type[Any]],
    description: str | None,
    args: Sequence[str] | None = None,
    positional: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Read a command line whose first word names a command with settings of its own.

    Args:
        kinds: Dataclass of each command.
        description: Text of ``--help``.
        args: The command line; None takes that of the process.
        positional: Positional fields of each command, see ``parse_settings``.

    Returns:
        The settings; their class says which command was given.
    """
    words = list(sys.argv[1:] if args is None else args)
    started = Path(sys.argv[0])
    module = started.name == "__main__.py"  # then the folder is a package of ours
    program = f"python -m leam_mm.{started.parent.name}" if module else started.name
    if words[:1] in (["-h"], ["--help"]):
        print(f"usage: {program} {{{','.join(kinds)}}} ...; each has its own --help\n\n{(description or '').strip()}")
        raise SystemExit(0)
    command = words[0] if words else ""
    if command not in kinds:
        raise UserError(f"unknown command {command!r}: the first word must be one of {', '.join(kinds)}")
    about, free = kinds[command].__doc__, (positional or {}).get(command, ())
    return parse_settings(kinds[command], about, words[1:], free, f"{program} {command}")


@dataclass(frozen=True)
class Command:
    """One command of a program.

    Args:
        options: Dataclass of its options.
        function: Called with the options; returns the exit code.
        positional: Options that are given without their name.
    """

    options: type[Any]
    function: Callable[[Any], int]
    positional: Sequence[str] = ()


def run_command(commands: Mapping[str, Command], description: str | None, args: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; ends the program if its exit code is not 0. See ``parse_commands``."""
    kinds = {name: command.options for name, command in commands.items()}
    options = parse_commands(kinds, description, args, {name: one.positional for name, one in commands.items()})
    command = next(one for one in commands.values() if one.options is type(options))
    if code := command.function(options):
        raise SystemExit(code)


class _Extend(argparse.Action):
    """Appends values to those that stand before on the command line, and replaces those of a config file."""

    given = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the values."""
        before = getattr(namespace, self.dest) if self.given else None
        self.given = True
        setattr(namespace, self.dest, [*(before or []), *values])


def _options(field: "dataclasses.Field[Any]", kind: Any, named: bool) -> dict[str, Any]:
    """Arguments of ``add_argument`` for one field."""
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    default = None
    if not required:
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if kind is bool:
        return {"action": "store_true"} if not default else {"type": bool, "default": default}
    options: dict[str, Any] = {} if required else {"default": default}
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    lists = [part for part in parts if typing.get_origin(part) is list]
    if lists:
        kind = typing.get_args(lists[0])[0]
        kind = str if kind is Path else kind  # jsonargparse cannot print a list of paths; `_paths` makes them
        if typing.get_origin(kind) is typing.Literal:  # jsonargparse reads a list of them as one value
            options["choices"], kind = typing.get_args(kind), str
        options["nargs"] = field.metadata.get("nargs", "+")
        if named and not default:  # values of a default would stay in front of the given ones
            options["action"] = _Extend
    elif "const" in field.metadata:
        options |= {"nargs": "?", "const": field.metadata["const"]}
    if named:
        options["required"] = required
    return options | {"type": _plain_type(kind)}


def _plain_type(kind: Any) -> Any:
    """Return a type without its ranges, which `_check_range` checks with a message that names bound and fix."""
    if typing.get_origin(kind) is Annotated:
        return typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.Union[tuple(_plain_type(part) for part in typing.get_args(kind))]  # noqa: UP007
    return kind


def _paths(value: Any, kind: Any) -> Any:
    """Return a value with the paths that a field for a list of paths asks for."""
    paths = list[Path] in (kind, *typing.get_args(kind))
    return [Path(item) for item in value] if paths and value is not None else value


def _ranges(kind: Any) -> Iterator[Range]:
    if typing.get_origin(kind) is Annotated:
        yield from (note for note in typing.get_args(kind) if isinstance(note, Range))
    for part in typing.get_args(kind):
        yield from _ranges(part)


def _check_range(option: str, value: Any, kind: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        for bounds in _ranges(kind) if number is not None else ():
            if fault := bounds.fault(number):
                raise UserError(f"{option} is {number}: give {fault}")


def _help_texts(kind: type[Any]) -> dict[str, str]:
    from docstring_parser import parse

    texts: dict[str, str] = {}
    for parent in reversed(kind.__mro__):
        for entry in parse(inspect.cleandoc(parent.__dict__.get("__doc__") or "")).params:
            texts[entry.arg_name] = " ".join((entry.description or "").split())
    return texts


def _dashed(word: str) -> str:
    """``--max_errors=1`` as ``--max-errors=1``."""
    name, equals, value = word.partition("=")
    special = name in ("--print_config",) or not name.startswith("--")
    return word if special else name.replace("_", "-") + equals + value


def _with_aliases(words: list[str], fields: Sequence[Any]) -> list[str]:
    """Replace ``--clip PATH`` by ``--texts clip=PATH`` where a field has the alias."""
    aliases = {
        f"--{alias}": (f"--{field.name.replace('_', '-')}", prefix)
        for field in fields
        for alias, prefix in field.metadata.get("aliases", {}).items()
    }
    replaced, waiting = [], ""
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        name, equals, value = word.partition("=")
        if name in aliases:
            if not equals and following.startswith("--"):
                raise UserError(f"{name} has no value: give one after it")
            option, prefix = aliases[name]
            replaced += [option, prefix + value] if equals else [option]
            waiting = "" if equals else prefix
        else:
            replaced.append(waiting + word)
            waiting = ""
    return replaced

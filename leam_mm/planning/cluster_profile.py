"""Cluster profiles: what is known about a machine, read from configs/clusters/NAME.yaml.

A profile lists its sources once, and each value names one:

    sources:
      guide: {text: "User guide, hardware page", date: 2026-08}
    gpu:
      per_node: {value: 4, source: guide, status: read}
      watts: {value: 400, source: guide, status: assumed}

A value that is left out, or null, is not known. ``profile.gpu.per_node`` is a ``Fact``.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml

from leam_mm.command_line import Range
from leam_mm.errors import UserError
from leam_mm.planning.cluster_sections import Band, Gpu, Mfu, Network, Node, Queue, Site, Slurm, Software, Storage
from leam_mm.planning.fact import STATUSES, Fact, not_found

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "clusters"
DATE = re.compile(r"\d{4}(-\d{2}){0,2}")
TYPES = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}


@dataclass(frozen=True)
class ClusterProfile:
    """What is known about a machine.

    Args:
        name: Name of the profile's file.
        title: Name of the machine and its site.
        gpu: One device.
        node: One node.
        site: Energy, carbon and prices.
        storage: File systems.
        slurm: Options and limits of jobs.
        network: The network between the nodes.
        software: How Python is started.
        mfu: Model FLOPs utilization.
    """

    name: str
    title: str
    gpu: Gpu = field(default_factory=Gpu)
    node: Node = field(default_factory=Node)
    site: Site = field(default_factory=Site)
    storage: Storage = field(default_factory=Storage)
    slurm: Slurm = field(default_factory=Slurm)
    network: Network = field(default_factory=Network)
    software: Software = field(default_factory=Software)
    mfu: Mfu = field(default_factory=Mfu)

    def facts(self) -> Iterator[tuple[str, Fact]]:
        """Yield the dotted name and the fact of every value, unknown ones included."""
        for section in dataclasses.fields(self)[2:]:
            part = getattr(self, section.name)
            for one in dataclasses.fields(part):
                yield f"{section.name}.{one.name}", getattr(part, one.name)


def profile_names() -> list[str]:
    """Return the names of the profiles in configs/clusters."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_profile(name_or_path: str | Path) -> ClusterProfile:
    """Read and check a profile.

    Args:
        name_or_path: Name of a file in configs/clusters, such as ``lumi_g``, or path of a YAML file.

    Raises:
        UserError: The profile does not exist or holds a fault; one line names file, key, value and the fix.
    """
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) or "/" in text else FOLDER / f"{text}.yaml"
    try:
        content = _UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except FileNotFoundError:
        known = ", ".join(profile_names()) or "none"
        raise UserError(f"{path} does not exist: profiles are {known}, or give the path of your own YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a readable YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({error}): correct it") from None
    return _Reader(path).profile(content)


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Reader:
    """Turns the content of one file into a profile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sources: dict[str, tuple[str, str]] = {}

    def fault(self, key: str, value: Any, fix: str) -> UserError:
        """Return an error that names file, key, value and fix."""
        return UserError(f"{self.path}: {key} is {value!r}: {fix}")

    def profile(self, content: Any) -> ClusterProfile:
        """Return the profile."""
        sections = {one.name: one.type for one in dataclasses.fields(ClusterProfile)[2:]}
        content = self.mapping("the file", content, {"title", "sources", *sections}, needed=("title", "sources"))
        if not isinstance(content["title"], str):
            raise self.fault("title", content["title"], "give the name of the machine and its site")
        for name, entry in self.mapping("sources", content["sources"]).items():
            key = f"sources.{name}"
            entry = self.mapping(key, entry, {"text", "date"}, needed=("text", "date"))
            if not isinstance(entry["text"], str) or not DATE.fullmatch(str(entry["date"])):
                raise self.fault(key, entry, "give text in quotes and a date: 2026, 2026-08 or 2026-08-07")
            self.sources[str(name)] = entry["text"], str(entry["date"])
        parts: dict[str, Any] = {
            name: self.section(name, kind, content.get(name)) for name, kind in sections.items()
        }  # fmt: skip
        return ClusterProfile(self.path.stem, content["title"], **parts)

    def section(self, name: str, kind: Any, content: Any) -> Any:
        """Return a section; what it leaves out is not known."""
        hints = typing.get_type_hints(kind, include_extras=True)
        entries = self.mapping(name, {} if content is None else content, set(hints))
        facts = {key: self.fact(f"{name}.{key}", typing.get_args(hints[key])[0], entries[key]) for key in entries}
        return kind(**facts)

    def fact(self, key: str, kind: Any, entry: Any) -> Fact:
        """Return a value with its source."""
        entry = self.mapping(key, entry, {"value", "source", "status"}, needed=("value", "source", "status"))
        if entry["status"] not in STATUSES:
            raise self.fault(f"{key}.status", entry["status"], f"give one of {', '.join(STATUSES)}")
        if entry["value"] is None and entry["source"] == not_found().source:
            return not_found()
        if str(entry["source"]) not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise self.fault(f"{key}.source", entry["source"], f"list it under sources: (there: {known})")
        source, date = self.sources[str(entry["source"])]
        value = None if entry["value"] is None else self.typed(f"{key}.value", kind, entry["value"])
        return Fact(value, source, date, entry["status"])

    def mapping(
        self, key: str, value: Any, allowed: set[str] | None = None, needed: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Return a mapping whose keys were checked."""
        if not isinstance(value, dict):
            form = "{" + ", ".join(f"{name}: ..." for name in sorted(needed)) + "}" if needed else "key: value pairs"
            raise self.fault(key, value, f"give {form}")
        for name in value:
            if allowed is not None and name not in allowed:
                raise UserError(
                    f"{self.path}: {key} holds the unknown key {name!r}: it may hold {', '.join(sorted(allowed))}"
                )
        for name in needed:
            if name not in value:
                raise UserError(f"{self.path}: {key} has no {name}: add it")
        return value

    def typed(self, key: str, kind: Any, value: Any) -> Any:
        """Return a value of a type, its ranges checked."""
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin is Annotated:
            value = self.typed(key, parts[0], value)
            for bounds in parts[1:]:
                if isinstance(bounds, Range) and (fault := bounds.fault(value)):
                    raise self.fault(key, value, f"give {fault}")
            return value
        if origin is typing.Literal:
            if value not in parts:
                raise self.fault(key, value, f"give one of {', '.join(parts)}")
            return value
        if origin in (typing.Union, types.UnionType):
            return None if value is None else self.typed(key, parts[0], value)
        if kind == tuple[Queue, ...]:
            entries = self.mapping(key, value).items()
            return tuple(
                self.plain(f"{key}.{name}", Queue, {"name": name, **self.mapping(key, one)}) for name, one in entries
            )
        if origin is tuple:
            if not isinstance(value, list):
                raise self.fault(key, value, "give a list, such as [a, b]")
            return tuple(self.typed(key, parts[0], one) for one in value)
        if origin is Mapping or kind is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
            return {str(name): self.typed(f"{key}.{name}", str, one) for name, one in self.mapping(key, value).items()}
        if kind is Band:
            return self.band(key, value)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self.fault(key, value, f"give {TYPES[kind]}")
        return value

    def plain(self, key: str, kind: Any, value: Any) -> Any:
        """Return a dataclass of plain values."""
        hints = typing.get_type_hints(kind, include_extras=True)
        needed = tuple(one.name for one in dataclasses.fields(kind) if one.default is dataclasses.MISSING)
        content = self.mapping(key, value, set(hints), needed)
        return kind(**{name: self.typed(f"{key}.{name}", hints[name], one) for name, one in content.items()})

    def band(self, key: str, value: Any) -> Band:
        """Return low, middle and high."""
        band = self.plain(key, Band, value)
        if not band.low <= band.mid <= band.high:
            raise self.fault(key, value, "give low, mid and high in rising order")
        return band

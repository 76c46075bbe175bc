"""release.yaml: the publisher's fields as a file that people fill in."""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import date, datetime
from pathlib import Path
from typing import Any

import yaml

from leam_mm.documents.publisher import DOCUMENT_LANGUAGES, PublisherFields, Text
from leam_mm.errors import UserError
from leam_mm.files import write_text
from leam_mm.languages import LANGUAGE_NAMES

MAX_FILE, MAX_TEXT, MAX_ENTRIES, MAX_DEPTH = 1 << 18, 4000, 200, 4
EMAIL = re.compile(r"[^@\s<>]+@[^@\s<>]+\.[^@\s<>]+")
WEB = re.compile(r"https?://[^\s<>\"']+")
MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
SPDX = re.compile(r"[A-Za-z0-9][\w.:+ -]*")
AUDIT = re.compile(r"audit/[\w./-]+")
EMAILS = ("contact_email", "policy_contact")
ADDRESSES = ("homepage", "licence_link", "citation_url", "thumbnail", "acceptable_use_policy", "copyright_policy")
TRAINING_TYPES = ("pre-training", "fine-tuning")  # the Hub's
HEADER = """\
# What only the publisher of a release knows. Every field may stay empty: the documents then show it as open.
# Texts may be given in several languages: {en: ..., de: ...}. Everything else comes from the training runs.
# Sources: Regulation (EU) 2024/1689 (AI Act); template of the public summary of training content, C(2025) 8311;
# Model Documentation Form of the General-Purpose AI Code of Practice, 10 July 2025.
"""


def read_publisher(path: Path | None) -> PublisherFields:
    """Read release.yaml.

    Args:
        path: The file; None leaves all fields open.

    Raises:
        UserError: The file cannot be read or is too large, or a field is unknown or of a wrong form.
    """
    if path is None:
        return PublisherFields()
    try:
        size = path.stat().st_size
        if size > MAX_FILE:
            raise UserError(f"{path} has {size:,} bytes, more than {MAX_FILE:,}: give the fields of a release only")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not in UTF-8"
        raise UserError(f"{path} cannot be read ({reason}): give the file of 'release init'") from None
    return parse_publisher(text, str(path))


def parse_publisher(text: str, where: str) -> PublisherFields:
    """Return the fields of a YAML text.

    Args:
        text: The content of release.yaml.
        where: Its name, for messages.

    Raises:
        UserError: A field is unknown or of a wrong form.
    """
    try:
        _check_form(text, where)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{where} is no YAML ({line}): write lines such as 'version: \"1.0\"'") from None
    if content is None:
        return PublisherFields()
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no fields: write lines such as 'version: \"1.0\"'")
    kinds = typing.get_type_hints(PublisherFields)
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1, 0.5)
            fix = f"did you mean {near[0]}?" if near else "'release init' writes a file with all fields"
            raise UserError(f"{where}: {str(name)[:60]!r} is no field of a release: {fix}")
        if value is not None:
            found[name] = _value(value, kinds[name], f"{where}: {name}")
    for name, value in found.items():
        if fault := _fault(name, value):
            raise UserError(f"{where}: {name} is {_short(value)}: {fault}")
    return PublisherFields(**found)


def write_publisher(path: Path) -> None:
    """Write a release.yaml with every field open, its purpose and an example beside it.

    Raises:
        UserError: The file is there already.
    """
    if path.exists():
        raise UserError(f"{path} is there already: fill it in, or give --output another name")
    write_text(path, blank_publisher())


def blank_publisher() -> str:
    """Return the text of a release.yaml whose fields are all open."""
    help_texts, section, lines = _help_texts(), "", [HEADER]
    for entry in fields(PublisherFields):
        if entry.metadata["section"] != section:
            section = entry.metadata["section"]
            lines.append(f"\n# ---- {section} ----\n")
        lines.append(f"\n# {help_texts[entry.name]}\n# For: {entry.metadata['why']}.\n")
        lines.append(f"# Example: {entry.name}: {entry.metadata['example']}\n{entry.name}:\n")
    return "".join(lines)


def dump_publisher(publisher: PublisherFields) -> str:
    """Return the YAML of the fields that are given, which ``parse_publisher`` reads again."""
    content: dict[str, Any] = {}
    for entry in fields(publisher):
        value = getattr(publisher, entry.name)
        if isinstance(value, Text):
            texts = {code: list(entries) for code, entries in value.paragraphs.items()}
            value = texts.get("", texts)
        if value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            content[entry.name] = dict(plain) if isinstance(plain, Mapping) else plain
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=120) if content else "{}\n"


def _help_texts() -> dict[str, str]:
    """Return the text of each field from the docstring of the class."""
    found = re.findall(r"^ {8}(\w+): (.*)$", PublisherFields.__doc__ or "", re.MULTILINE)
    return dict(found)


def _check_form(text: str, where: str) -> None:
    """Refuse aliases, which repeat content, deep nesting, and a field that is given twice."""
    depth, keys, is_key = 0, set(), True
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise UserError(f"{where} uses anchors (& or *): write the text out")
        if depth == 1 and is_key and isinstance(event, yaml.ScalarEvent):
            if event.value in keys:
                raise UserError(f"{where}: {event.value[:60]!r} is given twice: keep one")
            keys.add(event.value)
        opening = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        closing = isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
        if depth == 1 and (opening or isinstance(event, yaml.ScalarEvent)):
            is_key = not is_key
        depth += opening - closing
        if depth > MAX_DEPTH:
            raise UserError(f"{where} is nested more than {MAX_DEPTH} deep: a field holds a text or a list of texts")


def _value(value: Any, kind: Any, where: str) -> Any:
    """Return a value in the type of its field."""
    inner = next(part for part in typing.get_args(kind) if part is not types.NoneType)
    origin = typing.get_origin(inner) or inner
    if inner is bool:
        if not isinstance(value, bool):
            raise UserError(f"{where} is {_short(value)}: give true or false")
        return value
    if inner is float:
        if isinstance(value, str):  # YAML 1.1 takes 1e20 for a text
            try:
                value = float(value)
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise UserError(f"{where}: give a number of at least 0, such as 1.2e+20")
        return float(value)
    if inner is date:
        return _day(value, where)
    if inner is str:
        return _text(value, where)
    if origin is tuple:
        return tuple(_entries(value, where))
    if origin is Text:
        if isinstance(value, dict):
            if other := [code for code in value if code not in DOCUMENT_LANGUAGES]:
                raise UserError(
                    f"{where}: {_short(other[0])} is no language of the documents: use {', '.join(DOCUMENT_LANGUAGES)}"
                )
            return Text({code: tuple(_entries(text, f"{where}.{code}")) for code, text in value.items()})
        return Text({"": tuple(_entries(value, where))})
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise UserError(f"{where}: give 'name: text' lines, {MAX_ENTRIES} at most")
    return {_text(key, where): _text(text, f"{where}.{_short(key)}") for key, text in value.items()}


def _entries(value: Any, where: str) -> Iterator[str]:
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_ENTRIES:
        raise UserError(f"{where} has {len(values)} entries: give {MAX_ENTRIES} at most")
    for one in values:
        yield _text(one, where)


def _text(value: Any, where: str) -> str:
    """Return a text on one line."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | date):
        raise UserError(f"{where} is {_short(value)}: give a text")
    text = " ".join(str(value).split())
    if not text:
        raise UserError(f"{where} is an empty text: give one, or leave the field without a value")
    if len(text) > MAX_TEXT:
        raise UserError(f"{where} has {len(text):,} characters: give {MAX_TEXT:,} at most")
    if not text.isprintable():
        raise UserError(f"{where} holds control characters: remove them")
    return text


def _day(value: Any, where: str) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise UserError(f"{where} is {_short(value)}: give a day such as 2026-12-01") from None


def _fault(name: str, value: Any) -> str | None:
    """Return what to give instead of a value whose form is wrong."""
    if name in EMAILS and not EMAIL.fullmatch(value):
        return "give an e-mail address such as models@example.org"
    if name in ADDRESSES and not WEB.fullmatch(value):
        return "give a web address that begins with https://"
    if name == "complaint_address" and not (EMAIL.fullmatch(value) or WEB.fullmatch(value)):
        return "give an e-mail address or a web address"
    if name == "latest_data_acquisition" and not MONTH.fullmatch(value):
        return "give a month such as '2026-10'"
    if name == "training_type" and value not in TRAINING_TYPES:
        return f"give {' or '.join(TRAINING_TYPES)}"
    if name == "licence" and not SPDX.fullmatch(value):
        return "give an SPDX identifier such as Apache-2.0, or LicenseRef- and a name"
    if name == "languages" and (other := [code for code in value if code not in LANGUAGE_NAMES]):
        return f"{other[0][:20]!r} is no official EU language: give codes such as de"
    if name == "audit_exceptions" and (other := [key for key in value if not AUDIT.fullmatch(key)]):
        return f"{other[0][:60]!r} names no audit: names begin with audit/"
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

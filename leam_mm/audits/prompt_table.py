"""Tables of prompts: the same things named in several languages, each in the word form that its templates need."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from leam_mm.errors import UserError

PEOPLE = Path(__file__).with_name("people_prompts.yaml")
SCENES = Path(__file__).with_name("scene_prompts.yaml")
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Prompts:
    """The prompts of one section in one language.

    Args:
        names: Names of the things, the same in every language.
        texts: For each thing, one text for each template.
    """

    names: list[str]
    texts: list[list[str]]


def read_prompts(path: Path, section: str, languages: list[str]) -> dict[str, Prompts]:
    """Return the prompts of a section by language.

    Args:
        path: YAML: languages -> code -> `templates` (texts with {}) and sections (name: word form).
        section: The section, for example `neutral`.
        languages: Codes to read.

    Raises:
        UserError: The file is not such a table, lacks a language, or its languages name different things.
    """
    found = {code: _prompts(path, section, code, table) for code, table in _languages(path, languages).items()}
    first = found[languages[0]].names
    for code, prompts in found.items():
        if prompts.names != first:
            other = sorted(set(first) ^ set(prompts.names)) or ["their order"]
            raise UserError(
                f"{path}: {code}.{section} differs from {languages[0]} in {', '.join(map(str, other[:3]))}: name the "
                "same things in every language"
            )
    return found


def read_reference(path: Path) -> dict[str, float]:
    """Return the weights of a YAML mapping from value to a number that is not negative, at least one of them positive.

    Raises:
        UserError: It is something else.
    """
    table = _load(path)
    if not table or not all(
        isinstance(key, str) and type(value) in (int, float) and 0 <= value < float("inf")
        for key, value in table.items()
    ):
        raise UserError(f"{path}: a reference maps each value to its weight, such as `woman: 51`; correct the file")
    if not sum(table.values()):
        raise UserError(f"{path}: all weights are 0; give at least one above")
    return {key: float(value) for key, value in table.items()}


def _load(path: Path) -> dict[str, Any]:
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES} bytes: give a smaller table")
        table = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no YAML ({str(error).splitlines()[0]:.200}); correct the file") from None
    if not isinstance(table, dict):
        raise UserError(f"{path} holds no mapping; see {PEOPLE.name} for the form")
    return table


def _languages(path: Path, wanted: list[str]) -> dict[str, Any]:
    if not wanted:
        raise UserError(f"{path}: no language was given; set `languages`")
    table = _load(path).get("languages")
    if not isinstance(table, dict):
        raise UserError(f"{path} has no `languages`; see {PEOPLE.name} for the form")
    missing = [code for code in wanted if not isinstance(table.get(code), dict)]
    if missing:
        raise UserError(f"{path}: has no language {', '.join(missing)}; it has {', '.join(map(str, table))}")
    return {code: table[code] for code in wanted}


def _prompts(path: Path, section: str, code: str, table: dict[str, Any]) -> Prompts:
    templates, words = table.get("templates", ["{}"]), table.get(section)
    if not isinstance(templates, list) or not all(isinstance(text, str) and "{}" in text for text in templates):
        raise UserError(f"{path}: {code}.templates is no list of texts with {{}}; correct it")
    if not isinstance(words, dict) or not words or not all(isinstance(w, str) for pair in words.items() for w in pair):
        raise UserError(f"{path}: {code}.{section} is no mapping of names to word forms; add it")
    texts = [[template.replace("{}", word) for template in templates] for word in words.values()]
    return Prompts(list(words), texts)

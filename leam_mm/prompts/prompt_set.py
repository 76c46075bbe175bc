"""Parallel prompts: concepts, each written in all languages of the set, with the atoms by which an image is scored.

{"name": "...", "languages": ["de", "en"], "concepts": [
  {"id": "red_cup", "kind": "colours", "texts": {"de": "eine rote Tasse", "en": "a red cup"},
   "atoms": [{"question": "Is there a red cup?", "answer": true,
              "statement": "a photo of a red cup", "foils": ["a photo of a blue cup"]}]}]}

A concept of coloured shapes may have `scene` (objects with colour and shape, and a relation) in place of `atoms`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256
from leam_mm.json_text import parse_object
from leam_mm.prompts.atoms import Atom, parse_atom
from leam_mm.prompts.scene_atoms import SceneWords, scene_words

PROMPTS_24 = Path(__file__).with_name("prompts_24_languages.json")
ENGLISH = "en"
MAX_BYTES = 50_000_000
MAX_TEXT = 1000  # characters of a prompt


@dataclass(frozen=True)
class Concept:
    """One concept.

    Args:
        id: Its name, also that of its folder of images: lower-case letters, digits, - and _.
        kind: Such as `counts`.
        texts: The prompt in each language.
        atoms: At least one.
    """

    id: str
    kind: str
    texts: dict[str, str]
    atoms: tuple[Atom, ...]


@dataclass(frozen=True)
class PromptSet:
    """Parallel prompts.

    Args:
        name: Name of the set.
        languages: Codes, in the order of all tables.
        concepts: Each has a text in every language.
        sha256: Digest of the file.
    """

    name: str
    languages: tuple[str, ...]
    concepts: tuple[Concept, ...]
    sha256: str

    def kinds(self) -> list[str]:
        """Return the kinds in order of first appearance."""
        return list(dict.fromkeys(concept.kind for concept in self.concepts))

    def first_of_each_kind(self, most: int | None) -> "PromptSet":
        """Return the set with the first ``most`` concepts of each kind; None keeps all."""
        if most is None:
            return self
        kept = [c for kind in self.kinds() for c in [c for c in self.concepts if c.kind == kind][:most]]
        return PromptSet(self.name, self.languages, tuple(kept), self.sha256)


def read_prompt_set(path: Path) -> PromptSet:
    """Read a file of parallel prompts.

    Raises:
        UserError: The file cannot be read, a text or an answer is missing, or an id is given twice.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        raw = path.read_bytes()
        content = parse_object(raw)
        languages, concepts = _languages(content), content.get("concepts")
        if not isinstance(concepts, list) or not concepts or not all(isinstance(item, dict) for item in concepts):
            raise ValueError("`concepts` is not a list of at least one concept")
        scenes = [item["scene"] for item in concepts if isinstance(item.get("scene"), dict)]
        try:
            words = scene_words(scenes)
        except (KeyError, TypeError):
            raise ValueError("a `scene` has no list of objects with colour and shape") from None
        found = [_concept(item, number, languages, words) for number, item in enumerate(concepts)]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of parallel prompts") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; see docs/evaluate.md for the form of the file") from None
    ids = [concept.id for concept in found]
    if twice := sorted({name for name in ids if ids.count(name) > 1}):
        raise UserError(f"{path}: the id {twice[0]} is given to {ids.count(twice[0])} concepts; rename one of them")
    return PromptSet(str(content.get("name", path.stem)), languages, tuple(found), bytes_sha256(raw))


def _languages(content: dict[str, Any]) -> tuple[str, ...]:
    found = content.get("languages")
    if not isinstance(found, list) or not found or not all(isinstance(code, str) for code in found):
        raise ValueError("`languages` is not a list of language codes")
    if wrong := [code for code in found if not re.fullmatch("[a-z]{2,3}", code)]:
        raise ValueError(f"{wrong[0]!r:.40} is not a language code, such as en")
    if len(set(found)) < len(found):
        raise ValueError("`languages` names a language twice")
    return tuple(found)


def _concept(entry: dict[str, Any], number: int, languages: tuple[str, ...], words: SceneWords) -> Concept:
    name, kind, texts = entry.get("id"), entry.get("kind"), entry.get("texts")
    if not isinstance(name, str) or not re.fullmatch("[a-z0-9][a-z0-9_-]{0,79}", name):
        raise ValueError(f"concept {number}: the id is {name!r:.60}; use lower-case letters, digits, - and _")
    if not isinstance(kind, str) or not re.fullmatch("[a-z][a-z0-9 _-]{0,39}", kind):
        raise ValueError(f"concept {name}: the kind is {kind!r:.60}; give a word such as counts")
    if not isinstance(texts, dict):
        raise ValueError(f"concept {name} has no `texts` by language")
    for code in languages:
        text = texts.get(code)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"concept {name} has no text in the language {code}")
        if len(text) > MAX_TEXT:
            raise ValueError(f"concept {name}: the text in {code} is longer than {MAX_TEXT} characters")
    try:
        if "scene" in entry and "atoms" not in entry:
            atoms = words.atoms(entry["scene"])
        else:
            listed = entry.get("atoms")
            if not isinstance(listed, list) or not listed:
                raise ValueError("it has no `atoms`")
            atoms = tuple(parse_atom(item) for item in listed)
    except ValueError as error:
        raise ValueError(f"concept {name}: {error}") from None
    return Concept(name, kind, {code: texts[code].strip() for code in languages}, atoms)

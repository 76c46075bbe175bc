"""Atoms: questions about an image with their expected answer, the parts of a prompt that are scored one by one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from leam_mm.prompts.scene_facts import SceneFact


@dataclass(frozen=True)
class Atom:
    """One question about an image.

    Args:
        question: The question, answered by yes or no, in English.
        answer: Whether "yes" is the right answer.
        statement: Description of an image for which the answer is "yes", for contrastive encoders; "" if there is none.
        foils: Descriptions of images for which the answer is "no".
        translations: The same in other languages, by code: question, statement and foils.
        fact: The question in a form that a scene reader can answer; None for questions about other images.
    """

    question: str
    answer: bool = True
    statement: str = ""
    foils: tuple[str, ...] = ()
    translations: Mapping[str, "Atom"] = field(default_factory=dict)
    fact: SceneFact | None = None

    def in_language(self, code: str) -> "Atom":
        """Return the question in a language; in English if it is not translated."""
        return self.translations.get(code, self)

    def with_answer(self, answer: bool) -> "Atom":
        """Return the same question with another expected answer."""
        return replace(self, answer=answer)


def parse_atom(entry: Any) -> Atom:
    """Return the atom of an entry of a prompt file.

    Args:
        entry: {"question", "answer", "statement", "foils", "translations": {code: {"question", ...}}}; all but the
            first two may be missing.

    Raises:
        ValueError: A key is missing or has a wrong type.
    """
    if not isinstance(entry, dict):
        raise ValueError("an atom is not an object")
    question = _text(entry, "question")
    if not question:
        raise ValueError("an atom has no question")
    if not isinstance(entry.get("answer"), bool):
        raise ValueError(f"the atom {question!r:.80} has no answer: give true or false")
    statement, foils = _text(entry, "statement"), entry.get("foils", [])
    if not isinstance(foils, list) or not all(isinstance(foil, str) and foil.strip() for foil in foils):
        raise ValueError(f"the foils of the atom {question!r:.80} are not a list of texts")
    if bool(statement) != bool(foils) or statement in foils:
        raise ValueError(f"the atom {question!r:.80} needs a statement and foils that differ from it, or neither")
    translations = entry.get("translations", {})
    if not isinstance(translations, dict) or not all(
        re.fullmatch("[a-z]{2,3}", code) and isinstance(other, dict) and "translations" not in other
        for code, other in translations.items()
    ):
        raise ValueError(f"the translations of the atom {question!r:.80} are not atoms by language code")
    others = {code: parse_atom({**other, "answer": entry["answer"]}) for code, other in translations.items()}
    return Atom(question, entry["answer"], statement, tuple(foils), others)


def _text(entry: Mapping[str, Any], key: str) -> str:
    text = entry.get(key, "")
    if not isinstance(text, str):
        raise ValueError(f"{key} of an atom is not a text")
    return text.strip()

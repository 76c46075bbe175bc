"""Parallel prompts about well-known emoji, in the form that leam_mm/prompts/prompt_set.py reads."""

from collections.abc import Iterable, Mapping
from typing import Any

from data_tools.corpora.emoji_names import PROMPT_EMOJI, Names
from leam_mm.languages import LANGUAGES

# Number of emoji of each kind, in the order of PROMPT_EMOJI.
KINDS = {"food": 8, "plants": 4, "animals": 9, "things": 12, "signs": 7}
FOILS = 3


def emoji_prompt_set(classes: Iterable[str], names: Mapping[str, Names]) -> dict[str, Any]:
    """Return the well-known emoji as concepts, whose ids are the classes; one atom asks for the thing itself.

    The foils are other emoji of the kind. An emoji without a name in one of the languages is left out.

    Args:
        classes: Codes of the classes of the corpus.
        names: Language to its names; languages that are not official ones of the Union are left out.
    """
    present = set(classes)
    languages = [code for code in LANGUAGES if code in names]
    concepts, start = [], 0
    for kind, count in KINDS.items():
        listed = PROMPT_EMOJI[start : start + count]
        start += count
        known = [code for code in listed if code in present and all(code in names[own].name for own in languages)]
        for place, code in enumerate(known):
            others = [*known[place + 1 :], *known[:place]][:FOILS]
            if others:
                texts = {language: names[language].name[code] for language in languages}
                concepts.append(_concept(code, kind, texts, [names["en"].name[other] for other in others]))
    return {
        "name": "prompts about emoji", "licence": "Unicode-3.0", "languages": languages, "concepts": concepts,
    }  # fmt: skip


def _concept(code: str, kind: str, texts: dict[str, str], foils: list[str]) -> dict[str, Any]:
    question = f"Does it show: {texts['en']}?"
    atom = {"question": question, "answer": True, "statement": texts["en"], "foils": foils}
    return {"id": code, "kind": kind, "texts": texts, "atoms": [atom]}

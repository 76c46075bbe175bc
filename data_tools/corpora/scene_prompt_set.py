"""Parallel prompts about scenes in all 24 languages, in the form that leam_mm/prompts/prompt_set.py reads."""

from typing import Any

from data_tools.corpora.scene_language import COLOURS, RELATIONS, SHAPES, scene_languages
from data_tools.corpora.scene_prompts import Thing
from leam_mm.languages import LANGUAGES

COUNTS = (1, 2, 3, 4)


def prompt_set(seen: tuple[Thing, ...]) -> dict[str, Any]:
    """Return eight single things, eight groups of one to four, and eight pairs, of things that training images show.

    Each colour, shape, number and relation occurs equally often in its kind, as far as the seen things allow.

    Args:
        seen: Combinations of colour and shape that the training images show.
    """
    languages = scene_languages()
    concepts = []
    for k, colour in enumerate(COLOURS):
        shape = _seen_shape(colour, k, seen)
        texts = {code: language.thing(colour, shape) for code, language in languages.items()}
        concepts.append(_concept(f"{colour}_{shape}", "single", texts, [(colour, shape)], None))
    for k, colour in enumerate(COLOURS):
        shape, number = _seen_shape(colour, k + 3, seen), COUNTS[k % 4]
        texts = {code: language.count(colour, shape, number) for code, language in languages.items()}
        concepts.append(_concept(f"{number}_{colour}_{shape}", "count", texts, [(colour, shape)] * number, None))
    for k, colour in enumerate(COLOURS):
        other, relation = COLOURS[(k + 3) % len(COLOURS)], RELATIONS[k % 4]
        things = [(colour, _seen_shape(colour, k + 5, seen)), (other, _seen_shape(other, k + 6, seen))]
        texts = {code: language.pair(things[0], things[1], relation) for code, language in languages.items()}
        concepts.append(_concept("_".join((*things[0], relation, *things[1])), "pair", texts, things, relation))
    return {
        "name": "prompts about scenes",
        "licence": "CC0-1.0",
        "languages": list(LANGUAGES),
        "concepts": concepts,
    }


def _seen_shape(colour: str, start: int, seen: tuple[Thing, ...]) -> str:
    """Return the first shape, from a place on, that training images show in a colour."""
    ordered = [SHAPES[(start + k) % len(SHAPES)] for k in range(len(SHAPES))]
    return next(shape for shape in ordered if (colour, shape) in seen)


def _concept(name: str, kind: str, texts: dict[str, str], things: list[Thing], relation: str | None) -> dict[str, Any]:
    objects = [{"colour": colour, "shape": shape} for colour, shape in things]
    return {"id": name, "kind": kind, "scene": {"objects": objects, "relation": relation}, "texts": texts}

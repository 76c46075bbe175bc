"""Texts about scenes: captions for training, class names for zero-shot classification, prompts for generation."""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data_tools.corpora.scene_drawing import SceneObject
from data_tools.corpora.scene_language import COLOURS, RELATIONS, SHAPES, SceneLanguage, scene_languages
from leam_mm.languages import LANGUAGES

Thing = tuple[str, str]
# Languages of prompts that are not written in all 24; every language family of the 24 is present.
PROMPT_LANGUAGES = ("en", "de", "fr", "pl", "fi", "el", "es", "hu", "it", "sl", "lv", "ga")
PAIR_PROMPTS = 60
COUNT_PROMPTS = 32


@dataclass(frozen=True)
class Scene:
    """One scene before it is drawn.

    Args:
        kind: "single", "pair" (two things in a relation) or "count" (1 to 4 equal things).
        objects: The things.
        relation: For a pair, the relation of the first thing to the second; one of RELATIONS.
    """

    kind: str
    objects: list[SceneObject]
    relation: str | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the metadata for the link table; only single things have a class."""
        first = self.objects[0]
        return {
            "kind": self.kind,
            **({"class_id": class_id(first.colour, first.shape)} if self.kind == "single" else {}),
            "objects": [
                {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(thing).items()}
                for thing in self.objects
            ],
            "relation": self.relation,
            "count": len(self.objects),
        }


def class_id(colour: str, shape: str) -> str:
    """Return the name of the zero-shot class of one combination."""
    return f"{colour}_{shape}"


def describe(scene: Scene, language: SceneLanguage, name_colour: bool = True) -> str:
    """Return the phrase for a scene in one language; a pair always names both colours."""
    first = scene.objects[0]
    if scene.kind == "pair":
        second = scene.objects[1]
        return language.pair((first.colour, first.shape), (second.colour, second.shape), str(scene.relation))
    colour = first.colour if name_colour else ""
    if scene.kind == "count":
        return language.count(colour, first.shape, len(scene.objects))
    texture = "" if first.texture == "plain" else first.texture
    return language.thing(colour, first.shape, first.size, texture)


def captions(scene: Scene, generator: np.random.Generator, colourless: float = 0.0) -> dict[str, str]:
    """Return one caption in each language: the phrase alone half of the time, else inside a sentence.

    Args:
        scene: The scene.
        generator: Draws the sentences and the colours that are not named.
        colourless: Probability that a caption of a single thing, or of several equal ones, names no colour, in [0, 1].
    """
    number = len(scene.objects) if scene.kind == "count" else 1
    framed = generator.integers(0, 6, len(LANGUAGES))
    named = generator.random(len(LANGUAGES)) >= colourless
    texts = {}
    for (code, language), choice, name_colour in zip(scene_languages().items(), framed, named, strict=True):
        frames = language.frames(number)
        phrase = describe(scene, language, bool(name_colour))
        texts[code] = frames[choice if choice < len(frames) else 0].format(phrase)
    return texts


def classes_table() -> dict[str, Any]:
    """Return the content of classes.json: all combinations named in all languages, with sentences for the names."""
    things = list(itertools.product(COLOURS, SHAPES))
    return {
        "classes": [class_id(*thing) for thing in things],
        "languages": {
            code: {
                "templates": language.frames(),
                "names": {class_id(*thing): [language.thing(*thing)] for thing in things},
            }
            for code, language in scene_languages().items()
        },
    }


def _prompt(
    language: str, text: str, kind: str, things: list[Thing], seen: bool, relation: str | None = None
) -> dict[str, Any]:
    sides = {"left_of": "left", "right_of": "right", "above": "top", "below": "bottom"}
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    positions: list[str | None] = [None] * len(things)
    if relation:
        positions = [sides[relation], opposite[sides[relation]]]
    return {
        "language": language,
        "text": text,
        "kind": kind,
        "objects": [
            {"colour": colour, "shape": shape, "size": None, "position": position}
            for (colour, shape), position in zip(things, positions, strict=True)
        ],
        "relation": relation,
        "count": len(things),
        "seen": seen,
        **({"class_id": class_id(*things[0])} if kind == "single" else {}),
    }


def prompts(seen: tuple[Thing, ...], unseen: tuple[Thing, ...], seed: int) -> list[dict[str, Any]]:
    """Return prompts for generation with the answer that the checker expects.

    Every combination alone in English and in one of the other 23 languages in turn; pairs and counts in twelve
    languages in turn, two of three from seen combinations only.

    Args:
        seen: Combinations that the training images show.
        unseen: Combinations held out of them.
        seed: Seed of the choice of pairs and counts.
    """
    generator = np.random.default_rng([seed, 3])
    languages = scene_languages()
    others = itertools.cycle(code for code in LANGUAGES if code != "en")
    found = []
    for thing in itertools.product(COLOURS, SHAPES):
        for code in ("en", next(others)):
            found.append(_prompt(code, languages[code].thing(*thing), "single", [thing], thing in seen))
    for k in range(PAIR_PROMPTS):
        code, relation = PROMPT_LANGUAGES[k % len(PROMPT_LANGUAGES)], RELATIONS[(k + k // 12) % 4]
        first = _choose(generator, unseen if (k + k // 12) % 3 == 2 else seen)
        second = first
        while second == first:
            second = _choose(generator, seen)
        text = languages[code].pair(first, second, relation)
        found.append(_prompt(code, text, "pair", [first, second], first in seen, relation))
    for k in range(COUNT_PROMPTS):
        code, number = PROMPT_LANGUAGES[k % len(PROMPT_LANGUAGES)], 1 + (k + k // 12) % 4
        thing = _choose(generator, unseen if (k + k // 12) % 3 == 2 else seen)
        found.append(_prompt(code, languages[code].count(*thing, number), "count", [thing] * number, thing in seen))
    return found


def _choose(generator: np.random.Generator, things: tuple[Thing, ...]) -> Thing:
    return things[int(generator.integers(len(things)))]

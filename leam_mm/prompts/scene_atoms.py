"""Atoms of a scene of coloured shapes, in English: its colour, shape and number, or both objects and their relation.

An atom comes from a family of questions of which one is right, such as those for all colours: the statements of the
others are its foils, and a wrong one is a question whose answer is "no". A statement describes the whole scene, so that
it differs from its foils in one thing only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.scene_facts import SceneFact

NUMBERS = ("one", "two", "three", "four")
RELATIONS = {"left_of": "to the left of", "right_of": "to the right of", "above": "above", "below": "below"}
PLURALS = {"cross": "crosses"}


@dataclass(frozen=True)
class Choice:
    """One question of a family, with its statement and its fact."""

    question: str
    statement: str
    fact: SceneFact


@dataclass(frozen=True)
class SceneWords:
    """Colours and shapes that scenes may have; English words, in the order in which foils are listed."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    def families(self, scene: dict[str, Any]) -> dict[str, list[Choice]]:
        """Return the families of questions about a scene, the right question first in each.

        Args:
            scene: `objects` with colour and shape each, and `relation` for a pair of objects.

        Raises:
            ValueError: It is not a scene.
        """
        try:
            things = [(str(item["colour"]), str(item["shape"])) for item in scene["objects"]]
            relation = scene.get("relation")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a scene ({type(error).__name__}: {error})") from None
        (colour, shape), number = things[0] if things else ("", ""), len(things)
        if relation is not None:
            if number != 2 or not isinstance(relation, str) or relation not in RELATIONS:
                raise ValueError(f"a scene with relation {relation!r:.40} and {number} objects; give two objects")
            placed = [relation, *(name for name in RELATIONS if name != relation)]
            return {
                "first object": [_object(t, _pair(t, things[1], relation)) for t in self._things(*things[0])],
                "second object": [_object(t, _pair(things[0], t, relation)) for t in self._things(*things[1])],
                "relation": [_related(things[0], things[1], name) for name in placed],
            }
        if not 1 <= number <= len(NUMBERS) or len(set(things)) != 1:
            raise ValueError(f"a scene of {number} objects without relation; give 1 to {len(NUMBERS)} equal ones")
        shapes, colours = _first(shape, self.shapes), _first(colour, self.colours)
        return {
            "colour": [
                Choice(f"Is there {article(c)} {c} shape?", _phrase(c, shape, number), SceneFact(c)) for c in colours
            ],
            "shape": [
                Choice(f"Is there {article(s)} {s}?", _phrase(colour, s, number), SceneFact("", s)) for s in shapes
            ],
            "number": [
                _number(colour, shape, n) for n in (number, *(n for n in range(1, len(NUMBERS) + 1) if n != number))
            ],
        }  # fmt: skip

    def atoms(self, scene: dict[str, Any]) -> tuple[Atom, ...]:
        """Return the atoms of a scene; the right answer of each is "yes".

        Raises:
            ValueError: It is not a scene.
        """
        return tuple(atom_of(choices, 0) for choices in self.families(scene).values())

    def _things(self, colour: str, shape: str) -> list[tuple[str, str]]:
        """Return a thing, and those that differ from it in colour or shape."""
        others = [(c, shape) for c in self.colours if c != colour] + [(colour, s) for s in self.shapes if s != shape]
        return [(colour, shape), *others]


def atom_of(choices: Sequence[Choice], chosen: int) -> Atom:
    """Return the atom that asks one question of a family, with the others as foils; its expected answer is "yes"."""
    own = choices[chosen]
    foils = tuple(choice.statement for choice in choices if choice.statement != own.statement)
    return Atom(own.question, True, own.statement, foils, fact=own.fact)


def scene_words(scenes: Sequence[dict[str, Any]]) -> SceneWords:
    """Return the colours and shapes of scenes, sorted."""
    things = [item for scene in scenes for item in scene["objects"]]
    return SceneWords(*(tuple(sorted({str(item[key]) for item in things})) for key in ("colour", "shape")))


def article(word: str) -> str:
    """Return the indefinite article before an English word."""
    return "an" if word[:1] in tuple("aeiou") else "a"


def _phrase(colour: str, shape: str, number: int) -> str:
    if number == 1:
        return f"{article(colour)} {colour} {shape}"
    return f"{NUMBERS[number - 1]} {colour} {PLURALS.get(shape, f'{shape}s')}"


def _number(colour: str, shape: str, number: int) -> Choice:
    asked = "Is there exactly one shape?" if number == 1 else f"Are there exactly {NUMBERS[number - 1]} shapes?"
    return Choice(asked, _phrase(colour, shape, number), SceneFact(count=number))


def _object(thing: tuple[str, str], statement: str) -> Choice:
    return Choice(f"Is there {_phrase(*thing, 1)}?", statement, SceneFact(*thing))


def _related(first: tuple[str, str], second: tuple[str, str], relation: str) -> Choice:
    question = f"Is the {' '.join(first)} {RELATIONS[relation]} the {' '.join(second)}?"
    return Choice(question, _pair(first, second, relation), SceneFact(*first, relation=relation, other=second))


def _pair(first: tuple[str, str], second: tuple[str, str], relation: str) -> str:
    return f"{_phrase(*first, 1)} {RELATIONS[relation]} {_phrase(*second, 1)}"


def _first(own: str, words: tuple[str, ...]) -> list[str]:
    return [own, *(word for word in words if word != own)]

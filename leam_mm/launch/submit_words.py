"""The command line of submit: own options, the recipe, and everything else for train.py."""

import typing
from collections.abc import Sequence

from leam_mm.errors import UserError


def split_words(kind: type, words: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Sort a command line.

    Args:
        kind: Dataclass of the own options.
        words: The command line.

    Returns:
        Words of own options; the first other word that is no option, the recipe; and all remaining words. After ``--``
        everything remains.
    """
    hints = {f"--{name.replace('_', '-')}": hint for name, hint in typing.get_type_hints(kind).items()}
    own: list[str] = []
    rest: list[str] = []
    recipe: str | None = None
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if word == "--":
            rest += words[place:]
            break
        name, equals, _ = word.partition("=")
        name = name.replace("_", "-")
        if word in ("-h", "--help"):
            own.append(word)
        elif name in hints or (name == "--config" and recipe is None):
            own.append(word)
            if hints.get(name) is not bool and not equals:
                if place == len(words):
                    raise UserError(f"{name} has no value: give one after it")
                own.append(words[place])
                place += 1
        elif recipe is None and not word.startswith("-"):
            recipe = word
        else:
            if recipe is None:
                known = ", ".join(hints)
                raise UserError(f"{word} is none of {known}: write the recipe, or with --program --, before it")
            rest.append(word)
    return own, recipe, rest

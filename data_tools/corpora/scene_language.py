"""Captions of drawn scenes in the 24 official EU languages, composed of whole word forms from scene_words.yaml.

The code knows no grammar: the table says which form is used (gender, case, number, word order), so that a native
speaker can correct a language without reading Python.
"""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES

WORDS = Path(__file__).with_name("scene_words.yaml")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black")
RELATIONS = ("left_of", "right_of", "above", "below")
NUMERAL_COLUMNS = {1: "one", 2: "two", 3: "three", 4: "four"}


class SceneLanguage:
    """The phrases of one language.

    Args:
        code: Two-letter language code, for messages.
        table: Its section of scene_words.yaml; the head of that file explains the keys.
    """

    def __init__(self, code: str, table: dict[str, Any]) -> None:
        """See the class for the arguments."""
        self.code = code
        try:
            self.columns, self.genders = table["columns"].split(), table["genders"].split()
            self.phrase, self.frame, self.frame_many = table["phrase"], table["frame"], table["frame_many"]
            # By default the counted phrase is the plain one with the numeral in place of the article.
            plain = "{number} " + self.phrase.replace("{article}", "")
            self.counted = table.get("counted", plain)
            self.counted_one = table.get("counted_one", plain)
            self.before: dict[str, str] = table.get("before", {})
            self.nouns: dict[str, tuple[str, dict[str, str]]] = {}
            for shape in SHAPES:
                gender, *forms = table["noun"][shape].split()
                self.nouns[shape] = (gender, dict(zip(self.columns, _words(forms), strict=True)))
            self.colours = {colour: self._adjective(table["colour"][colour], self.columns) for colour in COLOURS}
            self.sizes = {size: self._adjective(row, ["one"]) for size, row in table["size"].items()}
            self.textures = {texture: self._adjective(row, ["one"]) for texture, row in table["texture"].items()}
            self.articles = {column: self._genders(row) for column, row in table.get("article", {}).items()}
            self.numerals = {number: self._genders(row) for number, row in table["count"].items()}
            self.relations = {name: table["relation"][name].split(": ", 1) for name in RELATIONS}
        except (KeyError, ValueError, AttributeError) as error:
            raise UserError(
                f"{WORDS.name}: section {code!r} is broken near {error}; compare it with another language"
            ) from None

    def _genders(self, row: str) -> dict[str, str]:
        """Return one form for each gender; a single form serves all genders."""
        forms = _words(row.split())
        return dict(zip(self.genders, forms * len(self.genders) if len(forms) == 1 else forms, strict=True))

    def _adjective(self, row: str, columns: list[str]) -> dict[tuple[str, str], str]:
        parts = row.split("/")
        parts = parts * len(columns) if len(parts) == 1 and len(parts[0].split()) == 1 else parts
        return {
            (column, gender): form
            for column, part in zip(columns, parts, strict=True)
            for gender, form in self._genders(part).items()
        }

    def _fill(self, pattern: str, **words: str) -> str:
        text = " ".join(pattern.format(**words).split())
        for plain, instead in self.before.items():
            text = text.replace(plain, instead)
        return text

    def thing(self, colour: str, shape: str, size: str = "", texture: str = "", column: str = "one") -> str:
        """Name one thing, with its article where the language has one ("a small red circle", "a small circle").

        Args:
            colour: One of COLOURS, or "" for unmentioned.
            shape: One of SHAPES.
            size: "small", "large" or "" for unmentioned; only with column "one".
            texture: "striped", "dotted" or "" for unmentioned; only with column "one".
            column: Form of the phrase: "one" is the nominative singular.
        """
        gender, forms = self.nouns[shape]
        return self._fill(
            self.phrase,
            article=self.articles.get(column, {}).get(gender, ""),
            size=self.sizes[size][column, gender] if size else "",
            texture=self.textures[texture][column, gender] if texture else "",
            colour=self.colours[colour][column, gender] if colour else "",
            noun=forms[column],
        )

    def count(self, colour: str, shape: str, number: int) -> str:
        """Name 1 to 4 equal things with the numeral ("three red circles"); "" leaves the colour unmentioned."""
        gender, forms = self.nouns[shape]
        column = NUMERAL_COLUMNS[number] if NUMERAL_COLUMNS[number] in self.columns else "few"
        return self._fill(
            self.counted_one if number == 1 else self.counted,
            number=self.numerals[number][gender],
            size="",
            texture="",
            colour=self.colours[colour][column, gender] if colour else "",
            noun=forms[column],
        )

    def pair(self, first: tuple[str, str], second: tuple[str, str], relation: str) -> str:
        """Name the relation of the first (colour, shape) to the second ("a red circle above a blue square")."""
        column, sentence = self.relations[relation]
        return sentence.format(a=self.thing(*first), b=self.thing(*second, column=column))

    def frames(self, number: int = 1) -> list[str]:
        """Return sentences with {} for a phrase about ``number`` things; the phrase alone comes first."""
        return ["{}", *(self.frame if number == 1 else self.frame_many)]


def _words(forms: list[str]) -> list[str]:
    return [form.replace("_", " ") for form in forms]


@cache
def scene_languages() -> dict[str, SceneLanguage]:
    """Return all languages by code, read once from scene_words.yaml."""
    table = yaml.safe_load(WORDS.read_text(encoding="utf-8"))
    missing = set(LANGUAGES) ^ set(table)
    if missing:
        raise UserError(
            f"{WORDS.name}: expected one section for each of the 24 languages, differs in {sorted(missing)}"
        )
    return {code: SceneLanguage(code, table[code]) for code in LANGUAGES}

"""Prompts in 24 languages: the file as it is shipped, and files with faults."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_tools.corpora.scene_corpus import SEEN
from data_tools.corpora.scene_language import COLOURS, RELATIONS, SHAPES, scene_languages
from data_tools.corpora.scene_prompt_set import prompt_set
from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES
from leam_mm.prompts.prompt_set import PROMPTS_24, read_prompt_set

LATIN = "abcdefghijklmnopqrstuvwxyz"
# Letters of each language beside those of the Latin alphabet (bg and el have alphabets of their own).
LETTERS = {
    "bg": "абвгдежзийклмнопрстуфхцчшщъьюя", "cs": "áčďéěíňóřšťúůýž", "da": "æøåé", "de": "äöüß",
    "el": "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ", "en": "", "es": "áéíóúüñ", "et": "äöõüšž", "fi": "äöå",
    "fr": "àâçéèêëîïôùûüœ", "ga": "áéíóú", "hr": "čćđšž", "hu": "áéíóöőúüű", "it": "àèéìòù", "lt": "ąčęėįšųūž",
    "lv": "āčēģīķļņšūž", "mt": "ċġħżàèìòù", "nl": "ëïéèö", "pl": "ąćęłńóśźż", "pt": "áàâãçéêíóôõú", "ro": "ăâîșț",
    "sk": "áäčďéíĺľňóôŕšťúýž", "sl": "čšž", "sv": "åäö",
}  # fmt: skip
# Concepts and the words whose forms scene_words.yaml lists.
COLOURED = {
    "red_cup_blue_plate": ("red", "blue"), "yellow_car_green_bus": ("yellow", "green"),
    "white_horse_black_cow": ("black",), "purple_flower_white_vase": ("purple",),
}  # fmt: skip
COUNTED = {"two_dogs_beach": 2, "three_apples_plate": 3, "four_candles_table": 4}
# Words that scene_words.yaml does not have, or has for one gender only.
WHITE = {
    "bg": "бял", "cs": "bíl", "da": "hvid", "de": "weiß", "el": "άσπρο", "en": "white", "es": "blanco", "et": "valge",
    "fi": "valkoi", "fr": "blanc", "ga": "bán", "hr": "bijel", "hu": "fehér", "it": "bianco", "lt": "balt",
    "lv": "balt", "mt": "abjad", "nl": "wit", "pl": "biał", "pt": "branc", "ro": "alb", "sk": "biel",
    "sl": "bel", "sv": "vit",
}  # fmt: skip
FIVE = {
    "bg": "пет", "cs": "pět", "da": "fem", "de": "fünf", "el": "πέντε", "en": "five", "es": "cinco", "et": "viis",
    "fi": "viisi", "fr": "cinq", "ga": "cúig", "hr": "pet", "hu": "öt", "it": "cinque", "lt": "penki", "lv": "pieci",
    "mt": "ħames", "nl": "vijf", "pl": "pięć", "pt": "cinco", "ro": "cinci", "sk": "päť", "sl": "pet", "sv": "fem",
}  # fmt: skip
# Forms of numerals and colours for genders and nouns that the scenes do not need.
FURTHER = {
    ("lt", 4): {"keturios"}, ("lv", 4): {"četras"}, ("mt", 2): {"żewġt"}, ("ro", 2): {"doi"}, ("pt", 2): {"dois"},
    ("nl", "red"): {"rood"}, ("nl", "blue"): {"blauw"}, ("cs", 2): {"dva"}, ("hu", "red"): {"piros"},
}  # fmt: skip
# Two neighbours that write the dual alike: "two dogs on a beach".
REALLY_EQUAL = {"dva psa na plaži": {"hr", "sl"}}


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, str]]:
    return {concept.id: concept.texts for concept in read_prompt_set(PROMPTS_24).concepts}


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.casefold()))


def test_the_file_holds_480_balanced_prompts() -> None:
    found = read_prompt_set(PROMPTS_24)
    assert found.languages == LANGUAGES and len(found.concepts) * len(found.languages) == 480
    kinds = [concept.kind for concept in found.concepts]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ("objects", "counts", "colours", "relations", "scenes"), 4
    )
    assert all(2 <= len(concept.atoms) <= 4 and all(atom.foils for atom in concept.atoms) for concept in found.concepts)
    answers = [atom.answer for concept in found.concepts for atom in concept.atoms]
    assert 0.05 < answers.count(False) / len(answers) < 0.3
    content = json.loads(PROMPTS_24.read_text(encoding="utf-8"))
    assert content["licence"] == "CC0-1.0" and "No native speaker has reviewed" in content["review"]


def test_letters_belong_to_the_language(texts: dict[str, dict[str, str]]) -> None:
    assert set(LETTERS) == set(LANGUAGES)
    wrong = []
    for concept in texts.values():
        for code, text in concept.items():
            letters = LETTERS[code] if code in ("bg", "el") else LATIN + LETTERS[code]
            wrong += [f"{code}: {text}: {c}" for c in text.casefold() if c not in letters + " '-" and c != "ß"]
    assert not wrong


def test_every_language_uses_letters_of_its_own(texts: dict[str, dict[str, str]]) -> None:
    for code in set(LANGUAGES) - {"en", "nl", "it"}:
        found = set("".join(concept[code] for concept in texts.values()).casefold())
        assert found & set(LETTERS[code]), code


def test_colours_are_those_of_the_scenes(texts: dict[str, dict[str, str]]) -> None:
    for concept, colours in COLOURED.items():
        for code, language in scene_languages().items():
            for colour in colours:
                forms = {form.casefold() for form in language.colours[colour].values()}
                assert words(texts[concept][code]) & (forms | FURTHER.get((code, colour), set())), (code, concept)


def test_numerals_are_those_of_the_scenes(texts: dict[str, dict[str, str]]) -> None:
    for concept, number in COUNTED.items():
        for code, language in scene_languages().items():
            forms = set(language.numerals[number].values()) | FURTHER.get((code, number), set())
            assert words(texts[concept][code]) & {form.casefold().rstrip("'") for form in forms}, (code, concept)


def test_white_and_five(texts: dict[str, dict[str, str]]) -> None:
    for code in LANGUAGES:
        white = {texts[concept][code] for concept in ("white_horse_black_cow", "purple_flower_white_vase")}
        stem = WHITE[code][:3]
        assert all(any(word.startswith(stem) for word in words(text)) for text in white), (code, white)
        assert FIVE[code] in words(texts["five_balloons_sky"][code]), code


def test_only_really_equal_prompts_are_equal(texts: dict[str, dict[str, str]]) -> None:
    codes: dict[str, set[str]] = {}
    for concept in texts.values():
        for code, text in concept.items():
            codes.setdefault(text, set()).add(code)
    assert {text: found for text, found in codes.items() if len(found) > 1} == REALLY_EQUAL


def test_no_concept_is_written_twice_alike_within_a_language(texts: dict[str, dict[str, str]]) -> None:
    for code in LANGUAGES:
        assert len({concept[code] for concept in texts.values()}) == len(texts), code


def test_lengths_are_near_the_english_ones(texts: dict[str, dict[str, str]]) -> None:
    for concept in texts.values():
        for code, text in concept.items():
            assert 0.4 < len(text) / len(concept["en"]) < 2.2, (code, text)
            assert text == text.strip() and "  " not in text and not text.endswith(".")


def test_prompts_about_scenes_are_parallel_and_balanced(tmp_path: Path) -> None:
    content = prompt_set(SEEN)
    (tmp_path / "prompts.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_prompt_set(tmp_path / "prompts.json")
    assert found.languages == LANGUAGES and [c.kind for c in found.concepts].count("pair") == 8
    assert all(len(concept.atoms) == 3 and all(atom.fact for atom in concept.atoms) for concept in found.concepts)
    things = [(item["colour"], item["shape"]) for c in content["concepts"] for item in c["scene"]["objects"]]
    assert set(things) <= set(SEEN)
    assert {colour for colour, _ in things} == set(COLOURS) and {shape for _, shape in things} == set(SHAPES)
    assert {c["scene"]["relation"] for c in content["concepts"]} == {None, *RELATIONS}
    english = {concept.id: concept.texts["en"] for concept in found.concepts}
    assert english["red_circle"] == "a red circle" and english["3_brown_square"] == "three brown squares"


ATOM = {"question": "Is there a cup?", "answer": True, "statement": "a cup", "foils": ["a plate"]}
GOOD: dict[str, Any] = {
    "languages": ["de", "en"],
    "concepts": [{"id": "cup", "kind": "objects", "texts": {"de": "eine Tasse", "en": "a cup"}, "atoms": [ATOM]}],
}


def changed(*path: Any, value: Any) -> dict[str, Any]:
    content: Any = copy.deepcopy(GOOD)
    entry = content
    for key in path[:-1]:
        entry = entry[key]
    if value is None:
        del entry[path[-1]]
    else:
        entry[path[-1]] = value
    return content


FAULTS = [
    (changed("concepts", 0, "texts", "de", value=None), "concept cup has no text in the language de"),
    (changed("concepts", 0, "texts", "en", value=" "), "no text in the language en"),
    (changed("concepts", value=GOOD["concepts"] * 2), "the id cup is given to 2 concepts"),
    (changed("concepts", 0, "atoms", 0, "answer", value=None), "'Is there a cup\\?' has no answer"),
    (changed("concepts", 0, "atoms", 0, "answer", value="yes"), "has no answer"),
    (changed("concepts", 0, "atoms", value=[]), "concept cup: it has no `atoms`"),
    (changed("concepts", 0, "atoms", 0, "foils", value=None), "a statement and foils"),
    (changed("concepts", 0, "atoms", 0, "foils", value=["a cup"]), "foils that differ"),
    (changed("concepts", 0, "atoms", 0, "translations", value={"de": "x"}), "not atoms by language code"),
    (changed("concepts", 0, "atoms", 0, "translations", value={"de": {**ATOM, "translations": {}}}), "not atoms"),
    (changed("concepts", 0, "id", value="../cup"), "the id is '../cup'"),
    (changed("concepts", 0, "kind", value=7), "the kind is 7"),
    (changed("languages", value=["de", "de"]), "names a language twice"),
    (changed("languages", value=["../x"]), "not a language code"),
    (changed("languages", value=None), "`languages` is not a list"),
    (changed("concepts", value={}), "`concepts` is not a list"),
    (changed("concepts", 0, "scene", value={"objects": [{"colour": "red"}]}), "no list of objects"),
    ([1], "not an object"),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_a_fault_of_a_file_is_named_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_prompt_set(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_good_file_is_read_and_a_missing_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    found = read_prompt_set(path)
    assert found.name == "prompts" and found.concepts[0].atoms[0].foils == ("a plate",)
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_set(tmp_path / "missing.json")


def test_a_scene_that_is_none_is_refused(tmp_path: Path) -> None:
    path, thing = tmp_path / "prompts.json", {"colour": "red", "shape": "circle"}
    for scene in (
        {"objects": [thing], "relation": "above"},
        {"objects": [thing, thing], "relation": "beside"},
        {"objects": [thing, {"colour": "blue", "shape": "circle"}]},
        {"objects": []},
        7,
    ):
        content = changed("concepts", 0, "scene", value=scene)
        del content["concepts"][0]["atoms"]
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UserError, match="concept cup"):
            read_prompt_set(path)


def test_first_of_each_kind(tmp_path: Path) -> None:
    found = read_prompt_set(PROMPTS_24)
    fewer = found.first_of_each_kind(2)
    assert len(fewer.concepts) == 10 and fewer.kinds() == found.kinds() and found.first_of_each_kind(None) is found

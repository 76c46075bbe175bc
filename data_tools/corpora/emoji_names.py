"""Codes, variants and names of emoji, from the Unicode CLDR annotation files.

``code_of`` writes a code point sequence, ``base_of`` and ``group_of`` say which emoji show the same thing (sequences as
in Unicode Technical Standard 51), and ``read_names`` reads what each is called.
"""

import json
import logging
import random
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from leam_mm.errors import UserError

log = logging.getLogger(__name__)

NEIGHBOUR_LANGUAGES = ("ca", "cy", "eu", "gl", "is", "lb", "nb", "uk")
# CLDR stores Norwegian Bokmål under the macrolanguage.
LOCALE_FOLDERS = {"nb": "no"}
KEYWORDS_PER_CAPTION = 5
HEXADECIMAL = frozenset("0123456789abcdef")

JOINER = "200d"
SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
# Joined to an emoji, these make a variant of it: female, male, four kinds of hair, facing right.
VARIANT_PARTS = frozenset({"2640", "2642", "1f9b0", "1f9b1", "1f9b2", "1f9b3", "27a1"})
MAN, WOMAN, PERSON = "1f468", "1f469", "1f9d1"
CHILDREN = frozenset({"1f466", "1f467", "1f9d2"})
HEART, KISS_MARK, HANDSHAKE = "2764", "1f48b", "1f91d"
FAMILY, KISS, COUPLE_WITH_HEART = "1f46a", "1f48f", "1f491"
# Emoji with a code point for each gender, older than the neutral ones. They are separate classes, but their drawings
# differ in hair and dress only, so they share a group.
SAME_GROUP = {
    MAN: PERSON,
    WOMAN: PERSON,
    "1f466": "1f9d2",
    "1f467": "1f9d2",
    "1f474": "1f9d3",
    "1f475": "1f9d3",
    "1f934": "1fac5",
    "1f478": "1fac5",
    "1f385": "1f9d1-200d-1f384",
    "1f936": "1f9d1-200d-1f384",
    "1f57a": "1f483",
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
}

PROMPT_LANGUAGES = ("de", "en", "fr", "pl", "el", "fi")
# Simple shapes in one or two colours; never held out, so that a generator has seen them.
# fmt: off
PROMPT_EMOJI = (
    "1f34e", "1f34c", "1f353", "1f955", "1f355", "1f354", "1f382", "2615", "1f339", "1f33b",
    "1f333", "1f335", "1f436", "1f431", "1f981", "1f418", "1f427", "1f422", "1f98b", "1f41d",
    "1f41f", "1f3e0", "1f697", "1f6b2", "1f680", "1f682", "26f5", "1f3b8", "26bd", "1f4d6",
    "1f511", "1f451", "1f3a9", "2764", "2b50", "1f319", "1f308", "2744", "1f525", "1f600",
)
# fmt: on


@dataclass
class Names:
    """Names of the emoji in one language.

    Attributes:
        name: Code to the name (`tts` in CLDR).
        keywords: Code to the keywords (`default` in CLDR), without the name itself.
    """

    name: dict[str, str] = field(default_factory=dict)
    keywords: dict[str, list[str]] = field(default_factory=dict)


def code_of(emoji: str) -> str:
    """Write the characters of an emoji as one canonical code such as `1f468-200d-1f373`."""
    return _without_selectors(f"{ord(character):x}" for character in emoji)


def code_of_file(stem: str) -> str | None:
    """Return the code in an image's file name (`1F44B-1F3FB`, `0023-fe0f-20e3`), or None."""
    parts = stem.lower().split("-")
    if not all(1 <= len(part) <= 6 and set(part) <= HEXADECIMAL and int(part, 16) <= sys.maxunicode for part in parts):
        return None
    return _without_selectors(part.lstrip("0") for part in parts)


def _without_selectors(parts: Iterable[str]) -> str:
    # Packages place the variation selector FE0F differently, so codes with it would not match.
    return "-".join(part for part in parts if part != "fe0f")


def emoji_of(code: str) -> str:
    """Return the characters of a code (without variation selectors)."""
    return "".join(chr(int(part, 16)) for part in code.split("-"))


def base_of(code: str) -> str:
    """Return the code of the base emoji of a variant; a base emoji returns itself.

    Skin tone, gender, hair and direction are removed, a man's or woman's profession becomes a person's, and every
    joined family, kiss and couple becomes the single emoji for it.
    """
    joined = [
        "-".join(part for part in element.split("-") if part not in SKIN_TONES) or element
        for element in code.split(f"-{JOINER}-")
    ]
    if joined == ["1faf1", "1faf2"]:  # two hands of different skin tone are written as two emoji
        return HANDSHAKE
    joined = [joined[0], *(element for element in joined[1:] if element not in VARIANT_PARTS)]
    if len(joined) == 1:
        return joined[0]
    people = {MAN, WOMAN, PERSON}
    if joined[0] in people | CHILDREN and set(joined) <= people | CHILDREN:
        return FAMILY
    if KISS_MARK in joined:
        return KISS
    if joined[0] in people and HEART in joined:
        return COUPLE_WITH_HEART
    return f"-{JOINER}-".join(PERSON if element in people else element for element in joined)


def group_of(code: str) -> str:
    """Return the code that names the variant group; all drawings of a group are in the same split."""
    base = base_of(code)
    return SAME_GROUP.get(base, base)


def read_names(files: Mapping[str, bytes], languages: Iterable[str]) -> dict[str, Names]:
    """Read the names of every emoji in every language.

    Args:
        files: Path inside its package to content, for `annotations.json` of the plain and the derived annotations.
        languages: Two-letter codes.

    Raises:
        UserError: A language has no file, or a file is not in CLDR's format.
    """
    result = {}
    for language in languages:
        locale = LOCALE_FOLDERS.get(language, language)
        names = Names()
        for kind in ("annotationsDerived", "annotations"):  # names of the plain file win
            path = f"{kind}/{locale}/annotations.json"
            if path in files:
                _read_file(path, files[path], kind, names)
        if not names.name:
            choice = " ".join(sorted({path.split("/")[1] for path in files})) or "none found"
            raise UserError(f"--languages: CLDR has no emoji names for {language!r}; choose among: {choice}")
        if locale != language:
            log.info("names in %s are taken from the CLDR locale %s", language, locale)
        result[language] = names
    return result


def _read_file(path: str, content: bytes, kind: str, names: Names) -> None:
    try:
        entries = json.loads(content)[kind]["annotations"]
        for character, entry in entries.items():
            code = code_of(character)
            texts = _clean(entry.get("tts", []))
            if not texts:
                continue
            names.name[code] = texts[0]
            names.keywords[code] = [word for word in _clean(entry.get("default", [])) if word != texts[0]]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: not a CLDR annotation file ({type(error).__name__}: {error}); fetch the package again"
        ) from error


def _clean(words: list[str]) -> list[str]:
    """Drop CLDR's marks for "as in the parent locale", extra blanks and repetitions; keep the order."""
    cleaned = (" ".join(unicodedata.normalize("NFC", word).split()) for word in words)
    return list(dict.fromkeys(word for word in cleaned if word and "↑" not in word))


def captions_of(code: str, style: str, names: Mapping[str, Names], seed: int) -> list[dict[str, object]]:
    """Return the captions of one image in all languages: its name, and up to five of its keywords.

    The keywords and their order are drawn from (seed, code, style, language), so that the drawings of one emoji
    together show more of its keywords.
    """
    captions: list[dict[str, object]] = []
    for language, in_language in names.items():
        if code not in in_language.name:
            continue
        texts = [(in_language.name[code], "cldr-tts")]
        keywords = in_language.keywords[code]
        if keywords:
            draw = random.Random(f"{seed}/{code}/{style}/{language}")
            chosen = draw.sample(keywords, min(KEYWORDS_PER_CAPTION, len(keywords)))
            texts.append((", ".join(chosen), "cldr-keywords"))
        captions += [
            {"text": text, "language": language, "source": source, "machine_translated": False}
            for text, source in texts
        ]
    return captions


def make_classes(classes: list[str], names: Mapping[str, Names]) -> dict[str, object]:
    """Return the table of zero-shot classes: names per language, and which classes share a name.

    Names are compared without case, since the tokenizer uses lower case. A class without a name in a language is
    omitted there; ``ambiguous`` lists classes with the same name.
    """
    languages: dict[str, object] = {}
    for language, in_language in names.items():
        same: dict[str, list[str]] = defaultdict(list)
        for code in classes:
            if code in in_language.name:
                same[in_language.name[code].casefold()].append(code)
        languages[language] = {
            "templates": ["{}"],
            "names": {code: [in_language.name[code]] for code in classes if code in in_language.name},
            "ambiguous": [codes for codes in same.values() if len(codes) > 1],
        }
    return {"classes": classes, "languages": languages}


def make_prompts(classes: Iterable[str], names: Mapping[str, Names], size: int) -> dict[str, object]:
    """Return prompts for a generator: well-known emoji by name, the same ones in every language."""
    present = set(classes)
    languages = [language for language in PROMPT_LANGUAGES if language in names]
    codes = [code for code in PROMPT_EMOJI if code in present and all(code in names[lang].name for lang in languages)]
    prompts = [
        {"language": language, "text": names[language].name[code], "class_id": code, "kind": "single"}
        for code in codes
        for language in languages
    ]
    return {"size": size, "prompts": prompts}

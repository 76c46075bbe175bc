"""Photographs and drawings with descriptions in many languages, as two Debian packages contain them.

`tuxpaint-stamps-default` holds stamps of a paint program, each with a description whose translations lie beside it;
`pysiogame` holds drawings of words and lists of these words. Only languages of the European Union are read.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES

STAMP_FOLDER = "usr/share/tuxpaint/stamps/"
WORD_FOLDER = "usr/share/games/pysiogame/"
# Glyphs, not pictures of anything.
GLYPHS = ("symbols/alphabets/", "symbols/math/", "symbols/money/00_symbols/")
KINDS = {".png": "png", ".svg": "svg", ".jpg": "jpg"}
WORD_FILES = {"en_GB": "en"} | {language: language for language in LANGUAGES if language != "en"}


@dataclass(frozen=True)
class PictureSource:
    """A package with pictures, and the statements that its licence requires.

    Attributes:
        package: Name for apt's client.
        wanted: Pattern of the files that are read.
        licence: SPDX identifier of the pictures.
        caption_licence: SPDX identifier of the descriptions.
        attribution: Authors.
        page_url: Home page.
        licence_note: Where the package states it.
    """

    package: str
    wanted: str
    licence: str
    caption_licence: str
    attribution: str
    page_url: str
    licence_note: str


SOURCES = {
    "stamps": PictureSource(
        "tuxpaint-stamps-default",
        re.escape(STAMP_FOLDER) + r".*\.(?:png|svg|txt)",
        "GPL-2.0-or-later",
        "GPL-2.0-or-later",
        "Tux Paint stamps, copyright 2002-2022 Bill Kendrick and contributors, GPL version 2 or later",
        "https://tuxpaint.org/stamps/",
        "one licence for all files, in usr/share/doc/tuxpaint-stamps-default/copyright",
    ),
    "words": PictureSource(
        "pysiogame",
        re.escape(WORD_FOLDER) + r"(?:res/images/art4apps/.*\.jpg|i18n/custom/a4a_(?:words|py/[A-Za-z_]+)\.py)",
        "LicenseRef-CC-BY-SA",
        "GPL-3.0-or-later",
        "Art4Apps by Smart4Kids, CC BY-SA; words by the translators of pySioGame",
        "https://www.eduactiv8.org",
        "CC BY-SA without a version, stated in the program's translations, not in the package's copyright file",
    ),
}


@dataclass(frozen=True)
class Picture:
    """One picture with its descriptions.

    Attributes:
        name: Unique within the source, of letters, digits, ``_`` and ``-``.
        category: Folder of the package, such as ``animals``.
        kind: ``png``, ``svg`` or ``jpg``.
        content: The file.
        captions: Language to description; English is always there.
    """

    name: str
    category: str
    kind: str
    content: bytes
    captions: dict[str, str]


def parse_description(content: bytes) -> dict[str, str]:
    """Return the descriptions of a stamp by language.

    The first line is English; further lines are ``LANGUAGE.utf8=TEXT``. A text that equals the English one was never
    translated and is left out, as are variants of a language (``pt_BR``, ``sr@latin``).

    Args:
        content: The file, UTF-8.
    """
    first, *lines = content.decode("utf-8", "replace").splitlines() or [""]
    captions = {"en": _clean(first)}
    for line in lines:
        locale, found, text = line.partition(".utf8=")
        cleaned = _clean(text)
        if found and locale in LANGUAGES and locale != "en" and cleaned and not _same(cleaned, captions["en"]):
            captions[locale] = cleaned
    return captions


def read_stamps(files: Mapping[str, bytes]) -> list[Picture]:
    """Return the stamps with an English description, without glyphs; of two formats of a stamp the PNG is read."""
    pictures = []
    for path in sorted(path for path in files if path.endswith(".txt")):
        stem = path.removesuffix(".txt")
        inside = stem.removeprefix(STAMP_FOLDER)
        kind = next((ending for ending in (".png", ".svg") if stem + ending in files), None)
        captions = parse_description(files[path])
        if kind is None or not captions["en"] or inside.startswith(GLYPHS):
            continue
        category = PurePosixPath(inside).parent.as_posix()
        pictures.append(Picture(_file_name(inside), category, KINDS[kind], files[stem + kind], captions))
    return pictures


def read_word_drawings(files: Mapping[str, bytes]) -> list[Picture]:
    """Return the drawings whose file is named by their English word, with the words of the lists beside it.

    Raises:
        UserError: A list is missing or not what it was.
    """
    folder = WORD_FOLDER + "i18n/custom/"
    words = _word_lists(files, folder + "a4a_words.py")
    translated = {
        language: _word_lists(files, path)
        for file, language in WORD_FILES.items()
        if (path := f"{folder}a4a_py/{file}.py") in files
    }
    pictures = []
    for name, originals in words.items():
        category = name.removeprefix("a4a_")
        by_word: dict[str, dict[str, str]] = defaultdict(dict)
        for language, lists in translated.items():
            texts = lists.get(name, [])
            if len(texts) == len(originals):  # an incomplete list cannot be matched by position
                for original, text in zip(originals, texts, strict=True):
                    by_word[original][language] = _clean(text)
        for original in originals:
            path = f"{WORD_FOLDER}res/images/art4apps/{category}/{original.replace(' ', '_')}.jpg"
            captions = {"en": _clean(original)}
            captions |= {
                language: text
                for language, text in by_word[original].items()
                if text and language != "en" and not _same(text, captions["en"])
            }
            if path in files:
                pictures.append(Picture(_file_name(f"{category}/{original}"), category, "jpg", files[path], captions))
    return pictures


READERS = {"stamps": read_stamps, "words": read_word_drawings}


def _word_lists(files: Mapping[str, bytes], path: str) -> dict[str, list[str]]:
    """Return the lists that a Python file assigns to entries of a dictionary; the file is parsed, never run."""
    try:
        found: dict[str, list[str]] = {}
        for statement in ast.parse(files[path]).body:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            if isinstance(statement, ast.Assign) and isinstance(target, ast.Subscript):
                name, value = ast.literal_eval(target.slice), ast.literal_eval(statement.value)
                found[str(name)] = [str(text) for text in value]
        return found
    except (KeyError, SyntaxError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"pysiogame: {path} is missing or not a list of words ({error!r}); give version 4.20.01 by --packages"
        ) from error


def _clean(text: str) -> str:
    """Return a description on one line without its full stop, as names of things are written."""
    return " ".join(text.split()).rstrip(".|").strip()


def _same(text: str, english: str) -> bool:
    return text.casefold() == english.casefold()


def _file_name(inside: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", inside.replace("/", "--"))

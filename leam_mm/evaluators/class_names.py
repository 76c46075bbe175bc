"""Class names by language for zero-shot classification, from a file or from the folder of the images."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError
from leam_mm.evaluators.class_templates import check_templates, given_templates, own_templates, read_file, texts_digest
from leam_mm.evaluators.image_set import CLASS_FILE, ImageSet
from leam_mm.evaluators.zero_shot import LanguageClasses, language_classes
from leam_mm.files import file_sha256
from leam_mm.json_text import parse_object
from leam_mm.languages import LANGUAGE_NAMES

SAMPLES_OF_ERROR = 3


@dataclass(frozen=True)
class ClassNames:
    """Names and templates with which classes are named.

    Args:
        classes: Class ids.
        languages: For each measured language its texts and groups.
        unnamed: Languages that were asked for, but have no names.
        texts: For each measured language the names of each class, and the templates.
        source: Where the names come from.
        record: Digests of names and templates, for the record of a number.
    """

    classes: list[str]
    languages: dict[str, LanguageClasses]
    unnamed: list[str]
    texts: dict[str, tuple[list[list[str]], list[str]]]
    source: str
    record: dict[str, Any]


def name_classes(
    images: ImageSet, file: Path | None, templates: Path | None, languages: Sequence[str]
) -> ClassNames | None:
    """Return names and templates of the classes of some images.

    Args:
        images: The images.
        file: Names: text, one a line in the order of the classes, in the only language of `languages` or in English;
            JSON with a list in that order, or a mapping from class id, for each language; or a class file of zero-shot
            evaluation. None takes the folder's own names.
        templates: Templates by language; None takes those of the class file, of the folder, or ours.
        languages: Languages to measure; empty takes all that have names.

    Returns:
        None if the classes have no names at all.

    Raises:
        UserError: A file is damaged, a class is named twice or not at all, or a language is not known.
    """
    if not images.classes:
        return None
    own = images.place / CLASS_FILE
    file = own if file is None and own.is_file() else file
    if file is None:
        if images.names is None:
            return None
        if len(images.names) != len(images.classes) or not all(images.names):
            raise UserError(f"{images.place}: a class has no name, or a name no class: name every class once")
        names = {class_id: [name] for class_id, name in zip(images.classes, images.names, strict=True)}
        # Published lists name some classes alike, such as two of ImageNet: those are right for one another.
        classes, entries, source = images.classes, {"en": {"names": names}}, f"{images.layout}, as English"
    else:
        classes, entries = _read(file, images, languages)
        source = str(file.name)
    if wrong := [code for code in languages if code not in entries and code not in LANGUAGE_NAMES]:
        raise UserError(f"--languages {wrong[0]}: unknown language; use {', '.join(LANGUAGE_NAMES)}, or one with names")
    known = {sample.class_id for sample in images.samples}
    if not known & set(classes):
        raise UserError(f"{source} names none of the classes of {images.place}: give names of these classes")
    measured = [code for code in (languages or sorted(entries)) if code in entries]
    given = given_templates(templates, languages) if templates else {}
    used = {}
    for code in measured:
        chosen = given.get(code) or entries[code].get("templates") or (images.templates if code == "en" else None)
        used[code] = check_templates(list(chosen or own_templates().get(code) or ["{}"]), f"templates in {code}")
    found = {code: language_classes(classes, entries[code] | {"templates": used[code]}) for code in measured}
    record = {
        "class_names": source,
        "class_names_sha256": file_sha256(file) if file else texts_digest(entries),
        "templates_sha256": {code: texts_digest(texts) for code, texts in used.items()},
        "templates_per_language": {code: len(texts) for code, texts in used.items()},
    }
    texts = {code: ([list(entries[code]["names"].get(c) or []) for c in classes], used[code]) for code in measured}
    return ClassNames(classes, found, [code for code in languages if code not in entries], texts, source, record)


def _read(file: Path, images: ImageSet, languages: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return classes and entries by language of a file of names."""
    text = read_file(file)
    if file.suffix != ".json":
        names = [line.strip() for line in text.splitlines() if line.strip()]
        code = languages[0] if len(languages) == 1 else "en"
        return images.classes, {code: _listed(names, images.classes, str(file))}
    try:
        content = parse_object(text)
        if isinstance(content.get("languages"), dict) and isinstance(content.get("classes"), list):
            classes = [str(class_id) for class_id in content["classes"]]
            entries = {str(code): _class_file_entry(entry) for code, entry in content["languages"].items()}
        else:
            classes = images.classes
            entries = {code: _entry(names, classes, f"{file}, {code}") for code, names in content.items()}
    except ValueError as error:
        raise UserError(f"{file} holds no class names ({error}): give a list of names for each language") from None
    if not entries or len(set(classes)) < len(classes) or len(classes) < 2:
        raise UserError(f"{file} names no language, fewer than two classes, or a class twice: correct it")
    if wrong := [code for code in entries if not re.fullmatch("[A-Za-z][A-Za-z0-9-]{1,34}", code)]:
        raise UserError(f"{file}: {wrong[0][:40]!r} is no language code, such as de: correct it")
    return classes, entries


def _class_file_entry(entry: Any) -> dict[str, Any]:
    """Return the entry of a language in a class file of zero-shot evaluation, checked."""
    if not isinstance(entry, dict) or not isinstance(entry.get("names"), dict):
        raise ValueError("a language has no names")
    if not all(isinstance(names, list) for names in entry["names"].values()):
        raise ValueError("the names of a class are not a list")
    for key in ("templates", "ambiguous"):
        if not isinstance(entry.get(key, []), list):
            raise ValueError(f"{key} is not a list")
    if not all(isinstance(text, str) for text in entry.get("templates", [])):
        raise ValueError("a template is no text")
    if not all(isinstance(group, list) for group in entry.get("ambiguous", [])):
        raise ValueError("ambiguous holds something that is not a list")
    return entry


def _entry(names: Any, classes: Sequence[str], place: str) -> dict[str, Any]:
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return _listed(names, classes, place)
    if not isinstance(names, dict):
        raise ValueError(f"{place} is neither a list nor an object")
    if unknown := sorted(set(names) - set(classes))[:SAMPLES_OF_ERROR]:
        raise UserError(f"{place}: there is no class {', '.join(unknown)}: name classes of the images")
    several = {key: [value] if isinstance(value, str) else value for key, value in names.items()}
    if not all(isinstance(own, list) and all(isinstance(name, str) for name in own) for own in several.values()):
        raise ValueError(f"{place}: a name is no text")
    return {"names": several}


def _listed(names: Sequence[str], classes: Sequence[str], place: str) -> dict[str, Any]:
    """Return the entry of names in the order of the classes.

    Raises:
        UserError: Their number differs from that of the classes, one is empty, or one stands twice.
    """
    if len(names) != len(classes):
        raise UserError(f"{place} has {len(names)} names for {len(classes)} classes: give one for each, in their order")
    if not all(name.strip() for name in names):
        raise UserError(f"{place}: a name is empty: name every class")
    twice = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
    if twice:
        raise UserError(
            f"{place}: the class {twice[0]!r} is named twice: give each class its own name, or list names by class in "
            "JSON, where classes of equal names are right for one another"
        )
    return {"names": {class_id: [name] for class_id, name in zip(classes, names, strict=True)}}

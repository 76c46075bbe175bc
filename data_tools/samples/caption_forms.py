"""The forms in which people write several captions of an image, and the one form of ours.

Ours is a JSON list of objects with ``text``, ``language``, ``source`` and ``machine_translated``. Also read: a list of
texts, an object of texts (or lists of texts) by language, and objects without a language.
"""

import json
import re
from typing import Any

from leam_mm.json_text import parse_json

UNDETERMINED = "und"
MOST = 1000  # captions of an image
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8})*")  # a language tag (RFC 5646), also with underscores
OURS = re.compile(r"\s*\[\s*\{")
Entry = dict[str, Any]


def is_language(text: str) -> bool:
    """Return whether a text has the form of a language tag."""
    return LANGUAGE.fullmatch(text) is not None


def caption_entry(text: str, language: str | None, source: str = "alt") -> Entry:
    """Return one caption in our form."""
    return {
        "text": text.strip(), "language": language or UNDETERMINED, "source": source, "machine_translated": False,
    }  # fmt: skip


def caption_entries(value: Any, language: str | None = None, source: str = "alt") -> list[Entry]:
    """Return the captions that a value holds, in our form; empty texts are left out.

    Args:
        value: A text; a list of texts or of objects with ``text``; or an object, by language.
        language: Language of captions whose own is not stated.
        source: Where they come from.

    Raises:
        ValueError: It has another form.
    """
    entries: list[Entry] = []
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if isinstance(item, str):
            entries.append(caption_entry(item, language, source))
        elif isinstance(item, dict) and "text" in item:
            entries.append(_own_entry(item, language, source))
        elif isinstance(item, dict):
            entries += _by_language(item, source)
        else:
            raise ValueError(f"captions holds {json.dumps(item)[:40]}, which is no text")
    entries = [entry for entry in entries if entry["text"].strip()]
    if len(entries) > MOST:
        raise ValueError(f"captions holds {len(entries)} captions, more than {MOST}")
    return entries


def normal_captions(cell: str, language: str | None = None, source: str = "alt") -> str:
    """Return the cell of a table in our form.

    Args:
        cell: JSON in one of the forms, or a plain text, which is one caption.
        language: Language of captions whose own is not stated.
        source: Where they come from.

    Returns:
        JSON in our form; a cell that has none of the forms as it is, so that its row is refused for it.
    """
    if OURS.match(cell) and cell.count('"text"') == cell.count('"language"') == cell.count("{"):
        return cell
    try:
        plain = not cell.lstrip().startswith(("[", "{", '"'))
        entries = caption_entries(cell if plain else parse_json(cell), language, source)
    except ValueError:
        return cell
    return json.dumps(entries, ensure_ascii=False)


def captions_fault(cell: str) -> str | None:
    """Return why a cell cannot be read as captions, or None."""
    try:
        caption_entries(parse_json(cell))
    except ValueError as error:
        text = str(error)
        return text if text.startswith("captions") else f"captions is no JSON ({text})"
    return None


def _own_entry(item: Entry, language: str | None, source: str) -> Entry:
    text, own = item["text"], item.get("language")
    if not isinstance(text, str) or not (own is None or isinstance(own, str)):
        raise ValueError("captions holds an entry whose text or language is no text")
    return {**caption_entry(text, (own or "").strip() or language, source), **{
        name: value for name, value in item.items() if name not in ("text", "language") and value is not None
    }}  # fmt: skip


def _by_language(item: Entry, source: str) -> list[Entry]:
    entries = []
    for name, texts in item.items():
        if not is_language(str(name)):
            raise ValueError(f"captions holds the key {str(name)[:40]!r}, which is neither text nor a language")
        for text in texts if isinstance(texts, list) else [texts]:
            if text is not None and not isinstance(text, str):
                raise ValueError(f"captions holds a caption in {name} that is no text")
            if text:
                entries.append(caption_entry(text, str(name).replace("_", "-"), source))
    return entries

"""The captions of a sample of a tar that others made: from text members, fields of its json, or class numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leam_mm.errors import UserError

TEXT_MEMBERS = ("txt", "text", "caption")  # recognised, in this order
TEXT_FIELDS = ("caption", "captions", "text", "TEXT", "CAPTION", "prompt", "title", "alt_text")
CLASS = "cls"
MAX_TEXT = 1 << 20  # bytes of a text member
MAX_CAPTION = 50_000  # characters
MAX_CAPTIONS = 1000
Caption = dict[str, Any]


@dataclass(frozen=True)
class CaptionRule:
    """Where the captions of all samples are.

    Args:
        members: Suffixes of text members.
        fields: Fields of the json.
        class_names: Name of each class number of ``.cls`` members; None if these are not used.
        language: Language of captions whose json does not say.
        language_field: Field of the json with the language, or None.
    """

    members: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    language: str = "und"
    language_field: str | None = None

    def __str__(self) -> str:
        """Return the sources in words."""
        words = [f".{name}" for name in self.members] + [f"the json's {name}" for name in self.fields]
        if self.class_names is not None:
            words.append(f".{CLASS} with {len(self.class_names)} class names")
        return " and ".join(words)

    def captions(
        self, texts: Mapping[str, bytes], record: Mapping[str, Any] | None, notes: Counter[str]
    ) -> list[Caption]:
        """Return the captions of a sample; an empty list if it has none.

        Args:
            texts: Its text members by suffix.
            record: Its json, or None.
            notes: Counts what had to be assumed.
        """
        language = self._language(record)
        found: list[tuple[str, str, str]] = []  # text, language, source
        for name in self.members:
            if name in texts:
                found.append((decode_text(texts[name], notes), language, name))
        for name in self.fields if record is not None else ():
            found += [(text, code or language, name) for text, code in _texts(record.get(name))]  # type: ignore[union-attr]
        if self.class_names is not None and CLASS in texts:
            found.append((self._class(decode_text(texts[CLASS], notes)), language, CLASS))
        captions: dict[tuple[str, str], Caption] = {}
        for text, code, source in found:
            text = text.replace("\0", "").strip()
            if len(text) > MAX_CAPTION:
                notes["captions longer than 50,000 characters left out"] += 1
            elif text:
                entry = {"text": text, "language": code, "source": source, "machine_translated": False}
                captions.setdefault((text, code), entry)
        if len(captions) > MAX_CAPTIONS:
            notes[f"samples with more than {MAX_CAPTIONS} captions, cut"] += 1
        return list(captions.values())[:MAX_CAPTIONS]

    def _language(self, record: Mapping[str, Any] | None) -> str:
        said = record.get(self.language_field) if record is not None and self.language_field else None
        return said.lower() if isinstance(said, str) and is_language(said) else self.language

    def _class(self, text: str) -> str:
        assert self.class_names is not None
        number = text.strip()
        if not number.isdecimal():
            return text  # the name itself
        return self.class_names[int(number)] if len(number) < 10 and int(number) < len(self.class_names) else ""


def is_language(text: str) -> bool:
    """Return whether a text has the form of a language tag (RFC 5646) that names a language."""
    return re.fullmatch(r"[a-zA-Z]{2,3}(-[a-zA-Z0-9]{2,8})*", text) is not None and text.lower() not in ("unk", "nan")


def _texts(value: object) -> Iterator[tuple[str, str | None]]:
    """Yield texts and languages of a field: a text, a list of them, an object by language, or captions of ours."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item, None
        elif isinstance(item, dict) and isinstance(item.get("text"), str):
            language = item.get("language")
            yield item["text"], language if isinstance(language, str) and is_language(language) else None
        elif isinstance(item, dict) and all(is_language(str(code)) for code in item):
            for code, texts in item.items():
                yield from ((text, str(code)) for text in (texts if isinstance(texts, list) else [texts])
                            if isinstance(text, str))  # fmt: skip


def decode_text(raw: bytes, notes: Counter[str]) -> str:
    """Decode a text file: UTF-8 with or without a mark, UTF-16 with a mark, else Latin-1, which is counted."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        notes["captions that are no UTF-8 read as Latin-1"] += 1
        return raw.decode("latin-1")


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read the names of classes 0, 1, ..., one a line."""
    try:
        names = tuple(line.strip() for line in decode_text(path.read_bytes(), Counter()).splitlines())
    except OSError as error:
        raise UserError(f"--class-names {path} cannot be read ({error.strerror}): give a text file") from None
    if not any(names):
        raise UserError(f"--class-names {path} holds no name: write one a line, that of class 0 first")
    return names


@dataclass
class Sighting:
    """What the first samples of the tars have, from which the source of captions is recognised.

    Args:
        suffixes: Number of samples with each suffix.
        fields: Number of samples whose json has a text in a field.
        samples: Number of samples.
        img2dataset: Number of samples with the json of img2dataset.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    img2dataset: int = 0

    def add(self, suffixes: Iterable[str], record: Mapping[str, Any] | None) -> None:
        """Count one sample."""
        self.samples += 1
        self.suffixes.update(suffixes)
        self.fields.update(name for name in record or {} if any(True for _ in _texts((record or {})[name])))
        self.img2dataset += record is not None and is_img2dataset(record)


def is_img2dataset(record: Mapping[str, Any]) -> bool:
    """Return whether the json of a sample is that of img2dataset."""
    return "key" in record and "status" in record and "error_message" in record


def recognise(seen: Sighting, rule: CaptionRule, where: str) -> CaptionRule:
    """Return a rule whose sources of captions are recognised if none was given.

    Raises:
        UserError: Nothing looks like captions.
    """
    if rule.members or rule.fields or rule.class_names is not None:
        return rule
    most = max(1, seen.samples // 2)  # a sample here and there may lack its caption
    for name in TEXT_MEMBERS:
        if seen.suffixes[name] >= most:
            return replace(rule, members=(name,))
    for name in TEXT_FIELDS:
        if seen.fields[name] >= most:
            return replace(rule, fields=(name,))
    if seen.suffixes[CLASS] >= most:
        raise UserError(f"{where} has classes (.{CLASS}) and no captions: give --class-names FILE, one name a line")
    members = ", ".join(f".{name}" for name, _ in seen.suffixes.most_common(8)) or "none"
    fields = f"; fields of its json with text: {', '.join(list(seen.fields)[:8])}" if seen.fields else ""
    raise UserError(
        f"{where}: no captions recognised among the members {members}{fields}; name them by --caption-member or "
        "--caption-field"
    )

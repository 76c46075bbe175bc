"""Find national identity and tax numbers, bank accounts and payment cards, and validate them.

A checksum alone proves little: one in ten article numbers of the right length passes. A number therefore counts as
validated by its checksum together with either a form that hardly anything else has, or a word beside it that names it.
The countries, forms and words are in leam_mm/data/personal_numbers.yaml; python-stdnum computes the checksums offline.
"""

import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from stdnum import iban, luhn, verhoeff
from stdnum.hu import anum

TABLE = Path(__file__).with_name("personal_numbers.yaml")
BEFORE, AFTER = 40, 15  # characters around a number in which a word may announce it
# Not inside a longer number or word, nor after "12.", "12-" or "12/".
START, END = r"(?<![0-9A-Za-z])(?<![0-9][.,/-])", r"(?![0-9A-Za-z])(?![.,/-][0-9])"
_LETTERS = re.compile(r"[^\W\d_]+")
# Possible start of a number, tested before the forms of forty countries: five more capitals or digits follow.
_BEGIN = re.compile(r"[0-9A-Z](?=(?:[ ./+-]?[0-9A-Z]){5})" + r"(?<![0-9A-Za-z].)(?<![0-9][.,/-].)")

# A caption without six digits in a row (ignoring separators) or the letters of an Italian code holds none of them.
POSSIBLE = re.compile(r"[0-9](?:[ ./-]{0,2}[0-9]){5}|[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-Z]")
# Possessive: a long run of letters and digits has only one division into groups, else there are millions to try.
_IBAN = re.compile(
    START + r"[A-Za-z]{2}[0-9]{2}(?=(?:[ -]?[A-Za-z0-9]){3})(?:[ -]?[A-Za-z0-9]{1,4}+){1,16}" + r"(?![A-Za-z0-9])"
)
# Issuers' first digits: Visa, Mastercard, Discover, Maestro (ISO/IEC 7812), 4-4-4-4; American Express 4-6-5.
_CARD = re.compile(
    START
    + r"(?:(?:4[0-9]{3}|5[1-5][0-9]{2}|2[2-7][0-9]{2}|6(?:011|5[0-9]{2})|50[0-9]{2}|6[37][0-9]{2})(?:[ -]?[0-9]{4}){3}"
    + r"|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5})"
    + END
)
# fmt: off
_CARD_WORDS = (
    "card", "karte", "kreditkarte", "carte", "carta", "tarjeta", "cartão", "kort", "karta", "kortti", "kártya", "kaart",
    "visa", "mastercard", "amex", "κάρτα", "карта", "kartă", "kartica",
)
# fmt: on


@dataclass(frozen=True)
class NumberFound:
    """A number that identifies a person or an account.

    Args:
        kind: ``national_id``, ``tax_id``, ``iban`` or ``card``.
        start: Index of its first character in the text.
        end: Index after its last character.
        validated: Whether its checksum is right, and its form or a word beside it identifies it.
        detail: Which number of which country.
    """

    kind: str
    start: int
    end: int
    validated: bool
    detail: str


@dataclass(frozen=True)
class _Entry:
    kind: str
    name: str
    pattern: re.Pattern[str]
    sure: re.Pattern[str] | None
    cues: re.Pattern[str]
    valid: Callable[[str], Any]
    shorten: bool


def find_numbers(text: str, shaped: bool = False) -> Iterator[NumberFound]:
    """Find numbers in a text.

    Args:
        text: A caption.
        shaped: Also yield numbers that only have the form; much slower for national numbers.
    """
    if not POSSIBLE.search(text):
        return
    yield from (found for found in (*_accounts(text), *_cards(text)) if shaped or found.validated)
    near = shaped or not _cue_words().isdisjoint(_LETTERS.findall(text.casefold()))
    for begin in _BEGIN.finditer(text):
        for entry in _entries():
            if not near and not entry.sure:
                continue
            match = entry.pattern.match(text, begin.start())
            if not match:
                continue
            announced = bool(near and _announced(text, *match.span(), entry.cues))
            if announced or shaped or (entry.sure and entry.sure.match(text, match.start())):
                end = _longest(text, *match.span(), entry.valid, entry.shorten)
                sure = announced or bool(entry.sure and entry.sure.fullmatch(text, match.start(), end or match.end()))
                if (end and sure) or (shaped and (end or announced)):
                    detail = entry.name if end else f"{entry.name}, checksum wrong"
                    yield NumberFound(entry.kind, match.start(), end or match.end(), bool(end and sure), detail)


def _accounts(text: str) -> Iterator[NumberFound]:
    for match in _IBAN.finditer(text):
        end = _longest(text, *match.span(), _account, shorten=True)
        if end:
            yield NumberFound("iban", match.start(), end, True, match[0][:2].upper())
        elif _announced(text, match.start(), match.end(), _words(("iban",))):
            yield NumberFound("iban", match.start(), match.end(), False, "checksum wrong")


def _account(number: str) -> bool:
    # Checksum and form of the country only; a bank that the library does not know may be new.
    return bool(iban.is_valid(number, check_country=False))


def _cards(text: str) -> Iterator[NumberFound]:
    for match in _CARD.finditer(text):
        if luhn.is_valid(re.sub("[ -]", "", match[0])):
            grouped = " " in match[0] or "-" in match[0]
            sure = grouped or bool(_announced(text, *match.span(), _words(_CARD_WORDS)))
            yield NumberFound("card", *match.span(), sure, "Luhn")


def _longest(text: str, start: int, end: int, valid: Callable[[str], Any], shorten: bool) -> int | None:
    """Return the end of the longest valid part, because words after a number may look like its last groups."""
    while end - start >= 5:
        if valid(text[start:end]):
            return end
        end = text.rfind(" ", start, end) if shorten else -1
    return None


def _announced(text: str, start: int, end: int, words: re.Pattern[str]) -> re.Match[str] | None:
    return words.search(text[max(0, start - BEFORE) : start]) or words.search(text[end : end + AFTER])


@cache
def _words(words: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)


@cache
def _cue_words() -> frozenset[str]:
    """Return the first word of every cue; a caption without any of them has no cue."""
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    rows = (row for kind in ("national_id", "tax_id") for row in table[kind].values())
    cues = {*table["words"], *(cue for row in rows for cue in row["cues"])}
    return frozenset(_LETTERS.findall(cue.casefold())[0] for cue in cues)


@cache
def _entries() -> tuple[_Entry, ...]:
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    found = []
    for kind in ("national_id", "tax_id"):
        for name, row in table[kind].items():
            own = name.startswith("own.")
            valid = globals()[name[4:]] if own else importlib.import_module(f"stdnum.{name}").is_valid
            sure = re.compile(row["sure"]) if "sure" in row else None
            cues = _words((*row["cues"], *table["words"]))
            pattern = re.compile(row["pattern"] + END)
            found.append(_Entry(kind, name, pattern, sure, cues, valid, row.get("shorten", False)))
    return tuple(found)


def _digits(number: str) -> list[int]:
    return [int(digit) for digit in number if digit.isdigit()]


def hungarian_tax(number: str) -> bool:
    """Adóazonosító jel: ten digits, the last is the weighted sum of the others modulo 11 (act CL of 2017, annex)."""
    digits = _digits(number)
    return sum(weight * digit for weight, digit in enumerate(digits[:9], 1)) % 11 == digits[9]


def hungarian_insurance(number: str) -> bool:
    """TAJ: nine digits, weights 3 and 7 in turn, modulo 10 (act XX of 1996, annex 2)."""
    digits = _digits(number)
    return sum((3, 7)[index % 2] * digit for index, digit in enumerate(digits[:8])) % 10 == digits[8] and any(digits)


def hungarian_business(number: str) -> bool:
    """Adószám: eight digits with their checksum, then kind of tax and county."""
    return bool(anum.is_valid(number[:8]))


def luxembourgish(number: str) -> bool:
    """Matricule: birth date and serial, then a Luhn digit and a Verhoeff digit, both over the first eleven."""
    digits = "".join(str(digit) for digit in _digits(number))
    dated = 1 <= int(digits[4:6]) <= 12 and 1 <= int(digits[6:8]) <= 31
    return dated and luhn.is_valid(digits[:12]) and bool(verhoeff.is_valid(digits[:11] + digits[12]))


def german_pension(number: str) -> bool:
    """Rentenversicherungsnummer: the letter counts as two digits; weighted cross sums modulo 10 (VKVV § 2)."""
    raw = number.replace(" ", "")
    digits = [int(digit) for digit in raw[:8] + f"{ord(raw[8]) - 64:02d}" + raw[9:]]
    products = [weight * digit for weight, digit in zip((2, 1, 2, 5, 7, 1, 2, 1, 2, 1, 2, 1), digits, strict=False)]
    day, month = int(raw[2:4]), int(raw[4:6])
    dated = 1 <= month <= 12 and 1 <= day <= 81
    return dated and sum(product // 10 + product % 10 for product in products) % 10 == digits[12]

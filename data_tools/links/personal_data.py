"""Find what names a person in a caption: e-mail, telephone, accounts, national numbers, handles, addresses of profiles.

Each finding has a kind, a place in the text, and says whether it was validated (a known top-level domain, a number in
use in a European numbering plan, a checksum) or is only written like one. By default only validated ones are acted on:
dates, sizes, prices and article numbers stay. The rule either puts a placeholder in its place or drops the link.
Numbers with checksums are in data_tools/links/personal_numbers.py; nothing here asks a network.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import phonenumbers
from publicsuffixlist import PublicSuffixList

from data_tools.links.personal_numbers import POSSIBLE, find_numbers
from leam_mm.errors import UserError

KINDS = ("email", "phone", "iban", "national_id", "tax_id", "card", "handle", "ip_address", "user_url")
ACTIONS = ("redact", "drop", "keep")
MAX_CHARACTERS = 20_000  # of one text; what lies behind is not looked at, so that longer captions must be refused
# The EU, the EEA, and their neighbours whose numbers stand on European pages.
# fmt: off
REGIONS = (
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV",
    "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK", "IS", "LI", "NO", "CH", "GB",
)
# fmt: on

_POSSIBLE = re.compile(
    r"[@＠]|[(\[{] ?(?:at|ät|arroba|chiocciola) ?[)\]}]|[0-9](?:[ ./()–-]{0,3}[0-9]){5}|:[0-9A-Fa-f]{0,4}:"
    r"|[A-Za-z]/[A-Za-z@~]",
    re.IGNORECASE,
)
_MARKS = re.compile("[0-9@＠/:([{]")  # without one of these a caption holds nothing that is looked for here

_AT = r"(?:[@＠]| ?[(\[{] ?(?:at|ät|arroba|chiocciola) ?[)\]}] ?)"
_DOT = r"(?:[.．]| ?[(\[{] ?(?:dot|punkt|point|punto|ponto) ?[)\]}] ?)"
_EMAIL = re.compile(
    rf"(?<![\w.+%-])[\w+%-](?:[\w.+%-]{{0,63}}){_AT}((?:[\w-]{{1,63}}{_DOT}){{1,4}}[^\W\d_]{{2,24}})(?![\w-])",
    re.IGNORECASE,
)
_HANDLE = re.compile(r"(?<![\w@＠./:=&-])[@＠]([A-Za-z_][\w.]{1,28}\w)(?![\w@＠])")
_PHOTO_SIZE = re.compile(r"[1-9]x|media|import|keyframes|charset|font_?face", re.IGNORECASE)
_IP4 = re.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-])(?!\.[0-9])")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_VERSION = re.compile(
    r"(?:\bv|version|versión|versione|wersja|verze|release|firmware|chapter|kapitel|§|art|nr|no)\.? ?$", re.I
)
_URL = re.compile(
    r"(?:https?://|www\.)[^\s<>\"]{3,500}|(?<![\w@.])(?:[\w-]{1,63}\.){1,4}[a-z]{2,12}/[^\s<>\"]{1,300}", re.I
)
_PROFILE = re.compile(
    r"(?:instagram|facebook|fb|twitter|x|tiktok|threads|vk|ok|pinterest|snapchat|onlyfans|twitch|patreon|github|soundcloud"
    r"|medium|behance|dribbble|about|linktr|500px|t)\.(?:com|net|me|tv|ru|ee|pl|de|fr|it|es)/@?(?!p/|reel|watch|share|hashtag"
    r"|explore|events|groups|pages/|intent|tag|search|home|i/|status)[\w.%-]{2,64}"
    r"|linkedin\.com/(?:in|pub)/[\w%-]{2,100}|flickr\.com/(?:photos|people)/[\w@-]{2,64}|/@[\w.-]{2,64}"
    r"|/(?:users?|u|profiles?|members?|people|author)/[\w.%@-]{2,64}|/~[\w.-]{2,64}"
    r"|[?&](?:user|user_?id|uid|username|profile_?id|member|author_?id)=[\w.%@-]{1,64}|profile\.php\?id=[0-9]{3,}",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.,/#+=&-])(?:\+|00|\(\+|\(?0[-/ ]?|(?=[1-9]))[0-9(](?:[ ./()–-]{0,3}[0-9]){5,16}"
    r"(?![\w%€$£])(?![.,/-][0-9])"
)
_PHONE_WORDS = re.compile(
    r"(?:☎|📞|📱|✆|(?<!\w)(?:tel|phone|telephone|telefon|téléphone|tél|telefono|teléfono|telefone|telefón|telefoon|telefoni|"
    r"puhelin|puh|gsm|mobile?|mobil|mobilné|móvil|cell|cellulare|handy|tlf|tfn|tālr|tālrunis|sími|s[íi]mi|τηλ|τηλέφωνο|κιν|"
    r"тел|телефон|моб|whatsapp|viber|call|fax|faks|φαξ|факс|komórka|kom|hívjon|fón|guthán|teileafón|ring|zavolajte|"
    r"zadzwoń|rufen|appelez|llámanos|chiama|bel|soita|helista|zvaniet|skambinkite|pokličite|nazovite|sunați|ċempel)(?!\w))"
    r"[^0-9+(\n]{0,12}\(?$",
    re.IGNORECASE,
)
_DAY = (
    r"(?:[0-3]?[0-9]\. ?[01]?[0-9]\. ?|[0-3]?[0-9]/[01]?[0-9]/|[0-3]?[0-9]-[01]?[0-9]-|[0-3][0-9] [01][0-9] (?=[12]))"
)
_DAY += r"(?:1[5-9]|20)?[0-9]{2}"
_DATE = re.compile(
    rf"{_DAY}(?: ?[–-] ?{_DAY})?|[0-3]?[0-9]\.? ?[–-] ?{_DAY}|(?:1[5-9]|20)[0-9]{{2}}([./ -])[01]?[0-9]\1[0-3]?[0-9]"
    r"|(?:1[0-9]|20)[0-9]{2} ?[/–-] ?(?:1[0-9]|20)[0-9]{2}"
)


@dataclass(frozen=True)
class PersonalData:
    """Something in a text that names a person.

    Args:
        kind: One of ``KINDS``.
        start: First character in the text.
        end: Behind its last character.
        validated: Whether more than its looks speaks for it.
        detail: What it is, without giving it away: a country, a numbering plan, a check.
    """

    kind: str
    start: int
    end: int
    validated: bool
    detail: str


def find_personal_data(text: str, shaped: bool = False) -> list[PersonalData]:
    """Find personal data in the first ``MAX_CHARACTERS`` of a text, in order; findings never overlap.

    Args:
        text: A caption.
        shaped: Also give what is only written like it.
    """
    if not _MARKS.search(text) or not (_POSSIBLE.search(text) or POSSIBLE.search(text)):
        return []
    text = text[:MAX_CHARACTERS]
    found = [item for item in (*_mail_and_web(text), *_machines(text)) if shaped or item.validated]
    found += [PersonalData(**vars(number)) for number in find_numbers(text, shaped)]
    found += [item for item in _phones(text) if shaped or item.validated]
    # The surest and longest first: an IBAN's digits are also a telephone number's.
    ranked = sorted(found, key=lambda item: (not item.validated, item.start - item.end, KINDS.index(item.kind)))
    chosen: list[PersonalData] = []
    for item in ranked:
        if all(item.end <= other.start or item.start >= other.end for other in chosen):
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.start)


class PersonalDataRule:
    """What is done with each kind of personal data in captions.

    Args:
        actions: Kind to ``redact`` (a placeholder such as ``<email>``), ``drop`` (the link) or ``keep``.
            Kinds that are not named are redacted.
        shaped: Act also on what is only written like it; costs captions with article numbers.
    """

    def __init__(self, actions: dict[str, str] | None = None, shaped: bool = False) -> None:
        """Check the names."""
        self.actions = dict.fromkeys(KINDS, "redact") | (actions or {})
        self.shaped = shaped
        for kind, action in self.actions.items():
            if kind not in KINDS or action not in ACTIONS:
                told = f"{kind}={action}"
                raise UserError(
                    f"personal data {told!r}: give KIND=ACTION of {', '.join(KINDS)} and {', '.join(ACTIONS)}"
                )

    def clean(self, text: str) -> tuple[str, list[PersonalData]]:
        """Return the text with placeholders, and what was found, with places in the original text."""
        found = [item for item in find_personal_data(text, self.shaped) if self.actions[item.kind] != "keep"]
        for item in reversed(found):
            text = f"{text[: item.start]}<{item.kind}>{text[item.end :]}"
        return text, found

    def dropping(self, found: Iterable[PersonalData]) -> PersonalData | None:
        """Return the first finding for which the link is dropped, if any."""
        return next((item for item in found if self.actions[item.kind] == "drop"), None)


def _mail_and_web(text: str) -> Iterator[PersonalData]:
    for match in _EMAIL.finditer(text):
        domain = re.sub(_DOT, ".", match[1], flags=re.IGNORECASE)
        known = bool(_suffixes().publicsuffix(domain.lower()))
        yield PersonalData(
            "email", *match.span(), known, "known top-level domain" if known else "unknown top-level domain"
        )
    for match in _HANDLE.finditer(text):
        if not _PHOTO_SIZE.fullmatch(match[1]):
            yield PersonalData("handle", *match.span(), True, "@name")
    for match in _URL.finditer(text):
        if profile := _PROFILE.search(match[0]):
            yield PersonalData("user_url", *match.span(), True, profile[0].partition("/")[0] or "path")


def _machines(text: str) -> Iterator[PersonalData]:
    for match in (*_IP4.finditer(text), *_IP6.finditer(text)):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        version = bool(_VERSION.search(text[max(0, match.start() - 12) : match.start()]))
        small = address.version == 4 and max(address.packed) < 32  # 1.10.4.2 is a version or a paragraph
        scattered = address.version == 6 and sum(map(bool, match[0].split(":"))) < 3  # 12::30
        sure = address.is_global and not version and not small and not scattered
        yield PersonalData("ip_address", *match.span(), sure, f"IPv{address.version}")


def _phones(text: str) -> Iterator[PersonalData]:
    for match in _PHONE.finditer(text):
        raw = match[0]
        digits = re.sub(r"[^0-9]", "", raw)
        announced = bool(_PHONE_WORDS.search(text[max(0, match.start() - 40) : match.start()]))
        if not 7 <= len(digits) <= 17 or _DATE.fullmatch(raw):
            continue
        international = raw.lstrip("(").startswith(("+", "00"))
        trunk = raw.lstrip("(").startswith("0")
        if not (announced or trunk or international):
            continue
        plan = _plan(raw, announced)
        if plan or announced or raw.lstrip("(").startswith("+"):
            yield PersonalData("phone", *match.span(), bool(plan), plan or "in no numbering plan")


@lru_cache(maxsize=10_000)
def _plan(raw: str, announced: bool) -> str:
    """Name the country in whose numbering plan a number is in use.

    A number without its country and without a word before it must also be grouped as people there group it.
    """
    bare = raw.replace("(0)", "").lstrip("(")
    if bare.startswith(("+", "00")):
        number = _parse("+" + bare.lstrip("+0"), None)
        return (phonenumbers.region_code_for_number(number) or "international") if number else ""
    for region in REGIONS:
        number = _parse(raw, region)
        if number and (announced or _grouped(raw, number)):
            return region
    return ""


def _parse(raw: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        number = phonenumbers.parse(raw, region)
    except phonenumbers.NumberParseException:
        return None
    valid = phonenumbers.is_valid_number_for_region(number, region) if region else phonenumbers.is_valid_number(number)
    return number if valid else None


def _grouped(raw: str, number: phonenumbers.PhoneNumber) -> bool:
    written = re.findall("[0-9]+", raw)
    usual = re.findall("[0-9]+", phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL))
    return len(written) > 1 and written == usual


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)

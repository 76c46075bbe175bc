"""Find personal data in captions: e-mail, telephone, accounts, national numbers, handles, profile addresses.

Each finding has a kind and a span, and is either validated (a known top-level domain, a number of a European numbering
plan, a checksum) or only has the form. By default only validated findings are acted on, so dates, sizes, prices and
article numbers stay. Numbers with checksums are in leam_mm/data/personal_numbers.py. The rule that redacts captions
(data_tools/links/personal_data_rule.py) and the audit of personal data use this finder. Nothing here uses the network.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import phonenumbers
from publicsuffixlist import PublicSuffixList

from leam_mm.data.personal_numbers import POSSIBLE, find_numbers

KINDS = ("email", "phone", "iban", "national_id", "tax_id", "card", "handle", "ip_address", "user_url")
MAX_CHARACTERS = 20_000  # of one text; the rest is not searched, so longer captions must be refused
# The EU, the EEA, and neighbours whose numbers occur on European pages.
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
_MARKS = re.compile("[0-9@＠/:([{]")  # a caption without one of these holds no personal data of these kinds

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
    """Personal data in a text.

    Args:
        kind: One of ``KINDS``.
        start: Index of its first character in the text.
        end: Index after its last character.
        validated: Whether more than its form supports it.
        detail: What it is, without revealing it: a country, a numbering plan, a check.
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
        shaped: Also return findings that only have the form.
    """
    if not _MARKS.search(text) or not (_POSSIBLE.search(text) or POSSIBLE.search(text)):
        return []
    text = text[:MAX_CHARACTERS]
    found = [item for item in (*_mail_and_web(text), *_machines(text)) if shaped or item.validated]
    found += [PersonalData(**vars(number)) for number in find_numbers(text, shaped)]
    found += [item for item in _phones(text) if shaped or item.validated]
    # Validated and longest first: the digits of an IBAN may also be a telephone number.
    ranked = sorted(found, key=lambda item: (not item.validated, item.start - item.end, KINDS.index(item.kind)))
    chosen: list[PersonalData] = []
    for item in ranked:
        if all(item.end <= other.start or item.start >= other.end for other in chosen):
            chosen.append(item)
    return sorted(chosen, key=lambda item: item.start)


def _mail_and_web(text: str) -> Iterator[PersonalData]:
    for match in _EMAIL.finditer(text):
        domain = re.sub(_DOT, ".", match[1], flags=re.IGNORECASE)
        valid = bool(_suffixes().publicsuffix(domain.lower()))
        yield PersonalData("email", *match.span(), valid, f"{'known' if valid else 'unknown'} top-level domain")
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
    """Return the country in whose numbering plan a number is valid, or "".

    A number without a country code and without a word that announces it must also be grouped as is usual there.
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

"""Grammars of rights reservations: robots tags, Content-Usage, path patterns, robots.txt groups, TDM values.

Sources: RFC 9309 (robots.txt), RFC 9651 (structured fields), draft-ietf-aipref-attach-05 and -vocab-07,
contentsignals.org, Google's robots meta tag specification, TDMRep final report (W3C community group, 10 May 2024),
trust.txt (journallist.net). The words are listed in reservation_words.yaml. All functions take linear time, because the
texts are untrusted.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import yaml

from data_tools.network.link_address import normal_url

WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reservation_words.yaml").read_text("utf-8"))
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
QUOTES = "\"' "
ALL_QUOTES = QUOTES + "`\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"  # those of word processors, too
MOST_VALUES = 1000  # of a list in tdmrep.json
_KEY = r"[a-z*][a-z0-9_\-.*]*"
_BARE = r"""(?:[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|"(?:[^"\\]|\\.)*"|-?\d[\d.]*|\?[01]|:[A-Za-z0-9+/=]*:|@-?\d+)"""
_MEMBER = re.compile(rf"[ \t]*({_KEY})(?:=({_BARE}|\([^()]*\)))?(?:;[ ]*{_KEY}(?:={_BARE})?)*[ \t]*(,|$)")
_LOOSE = re.compile(
    rf"(?<![\w*.\-])([\w*.\-]{{1,32}})[{ALL_QUOTES}]{{0,8}}\s{{0,8}}[=:]\s{{0,8}}[{ALL_QUOTES}]{{0,8}}(\w{{1,8}})(?!\w)"
)
_TDM_TEXT = re.compile(
    r"""tdm[-_:]?reservation["']?\s{0,8}[:=][\s\["']{0,8}(1|1\.0{1,8}|true)(?![\w.])""", re.IGNORECASE
)
_PARAMETER = re.compile(rf";[ \t]*({_KEY})=({_BARE})")
_BREAK = re.compile(r"<br\s{0,8}/?>|\\r\\n|\\n", re.IGNORECASE)  # as text
_FIELD = re.compile(r"\s{0,80}([a-z][a-z _-]{0,30}?)\s{0,80}[:=\uff1a]([^#]*)", re.IGNORECASE)
_AGENT_FIELDS = ("user-agent", "useragent", "user agent")


def origin_of(url: str) -> str:
    """Return scheme, host and port of an address in their normal form: ``https://site.example:8443``."""
    parts = urlsplit(normal_url(url))
    return f"{parts.scheme}://{parts.netloc}".lower()


def path_of(url: str) -> str:
    """Return path and query of an address, against which rules are matched."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def path_matches(pattern: str, target: str) -> bool:
    """Whether a path of robots.txt or tdmrep.json covers a path with query (RFC 9309, 2.2.2 and 2.2.3).

    ``*`` matches any characters, a final ``$`` the end. Percent-encoding is undone on both sides, except ``%2F``.
    """
    anchored = pattern.endswith("$")
    pieces = [_plain(piece) for piece in (pattern[:-1] if anchored else pattern).split("*")]
    text = _plain(target)
    if len(pieces) == 1:
        return text == pieces[0] if anchored else text.startswith(pieces[0])
    if not text.startswith(pieces[0]):
        return False
    position = len(pieces[0])
    for piece in pieces[1:-1]:
        found = text.find(piece, position)
        if found < 0:
            return False
        position = found + len(piece)
    if anchored:
        return text.endswith(pieces[-1]) and len(text) - len(pieces[-1]) >= position
    return text.find(pieces[-1], position) >= 0


def _plain(text: str) -> bytes:
    kept = text.replace("%2F", "%252F").replace("%2f", "%252F")
    return unquote_to_bytes(kept.encode("utf-8", "surrogatepass"))  # JSON can spell half a surrogate pair


def product_token(name: str) -> str:
    """Return a product name in comparable form: ``leambot`` for ``LeamBot/1.0`` and ``leambot*`` (RFC 9309, 2.2.1)."""
    return name.strip().casefold().partition("/")[0].rstrip("* ") or "*"


def agent_names(agent: str) -> set[str]:
    """Return the product names whose rules apply to us: our own and those in reservation_words.yaml."""
    return {agent.strip().casefold(), *WORDS["also_obeyed"]} - {""}


def tdm_value(value: object) -> bool | None:
    """Whether a TDM value reserves rights; None, meaning unset, for every value that the report does not define.

    Quotes, parameters (``1;q=0.5``), the boolean and number forms of RFC 9651, and lists are understood; of a list, one
    value that reserves is enough.
    """
    if isinstance(value, str) and "," in value:
        value = value.split(",")
    if isinstance(value, list):
        found = [tdm_value(item) for item in value[:MOST_VALUES] if not isinstance(item, list)]
        return True if True in found else False if False in found else None
    word = str(value).partition(";")[0].strip(QUOTES + "\t[]\u201c\u201d").removeprefix("?").casefold()
    with suppress(ValueError):
        number = float(word[:20])
        word = str(int(number)) if number in (0, 1) else word
    return True if word in WORDS["tdm"]["reserved"] else False if word in WORDS["tdm"]["free"] else None


def robots_words(text: str, names: set[str] | None, fetched_at: datetime) -> Iterator[str]:
    """Yield the reserving words of one X-Robots-Tag header or robots tag that apply to us, with the agent they name.

    In ``agent: word, word, other: word`` the words up to the next agent belong to an agent. Words that carry a value (a
    date with colons, and a comma after the weekday) are not agents.

    Args:
        text: Value of the header or tag.
        names: Product names that apply to us; None if the text has no agents.
        fetched_at: Time with which ``unavailable_after`` is compared.
    """
    robots = WORDS["robots"]
    concerned, agent = True, ""
    elements = _without_format(text).split(",")[::-1]
    while elements:
        parts = elements.pop().split(":")
        for number, part in enumerate(parts):
            words = [word.strip(QUOTES) for word in re.split(r"[\s;|=]+", part)]
            words = list(filter(None, words))
            name = words.pop().casefold() if words and number + 1 < len(parts) else ""
            if name in robots["reserving"]:  # with a value in place of the name of an agent
                words, name = [*words, name], ""
            if concerned:
                yield from (agent + word for word in words if word.casefold() in robots["reserving"])
            if name in robots["valued"]:
                value = ":".join(parts[number + 1 :])
                if value.strip()[:3].casefold() in DAYS and elements:
                    value += "," + elements.pop()
                end = _date(value) if name in robots["dated"] and concerned else None
                if end and fetched_at >= end:
                    yield f"{agent}{name}: {end.isoformat()}"
                break
            if name and names is not None:
                concerned = product_token(name) in names | {"*"}
                agent = f"{name}: "


def _date(text: str) -> datetime | None:
    """Parse RFC 822, RFC 850 or ISO 8601, in UTC if no zone is given; None, like Google, for an invalid date."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text.strip(QUOTES)[:60])
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def usage_refusals(text: str) -> list[str]:
    """Return the members of a Content-Usage or Content-Signal text that refuse training, such as ``train-ai=n``.

    By the draft, text that is not a dictionary has no meaning, and neither has a value in quotes; here a plain refusal
    (``Train-AI = N``, ``train-ai="n"``) counts.
    """
    members: dict[str, str] = {}
    position, usage = 0, WORDS["usage"]
    text = text.strip()
    while position < len(text):
        member = _MEMBER.match(text, position)
        if member is None:
            return _refusing(_LOOSE.findall(text), usage)
        members[member[1]] = member[2] or "?1"  # the last of one name wins (RFC 9651, 4.2.2)
        position = member.end()
    # Between semicolons, members would be parameters of the first one.
    return _refusing([*members.items(), *_PARAMETER.findall(text)], usage)


def _refusing(members: list[tuple[str, str]], usage: dict[str, list[str]]) -> list[str]:
    return [
        f"{key}={value}"
        for key, value in members
        if key.casefold() in usage["labels"] and value.strip(ALL_QUOTES).casefold() in usage["refusing"]
    ]


def plain_rules(text: str) -> str:
    """Return robots.txt in the form that its grammar asks for, where it breaks it but plainly refuses.

    Line ends may be written as text; ``=`` and quotes are understood, as are several agents in one line, and refused
    paths that are whole addresses or do not begin with a slash.
    """
    lines = []
    for line in _BREAK.sub("\n", _without_format(text)).splitlines():
        found = _FIELD.match(line)
        field, value = (found[1], found[2].strip(QUOTES + "\t")) if found else ("", "")
        if field.casefold() in _AGENT_FIELDS:
            lines += [f"{field}: {name}" for name in dict.fromkeys([value, *re.split(r"[,\s]+", value)]) if name]
        elif field.casefold().startswith("dis") and value:
            lines.append(f"{field}: {_location(value, False)}")
        else:
            lines.append(line)
    return "\n".join(lines)


def _without_format(text: str) -> str:
    """Return a text without invisible characters, which would hide a word."""
    return text if text.isascii() else "".join(each for each in text if unicodedata.category(each) != "Cf")


def rule_groups(text: str) -> Iterator[tuple[set[str], list[tuple[str, str]]]]:
    """Yield the groups of robots.txt: names of agents and their rules; rules before the first name have no names."""
    names: set[str] = set()
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        field, colon, value = (part.strip() for part in line.partition("#")[0].replace("\t", " ").partition(":"))
        field = field.casefold()
        if field in _AGENT_FIELDS:
            if lines:
                yield names, lines
                names, lines = set(), []
            names.add(value.casefold())
        elif colon and field not in ("sitemap", "host"):
            lines.append((field, value))
    yield names, lines


def tdm_rules(text: str) -> list[tuple[str, bool, str]]:
    """Return the rules of tdmrep.json: location, whether reserved, value with policy; unset values are skipped.

    A rule is an object with ``tdm-reservation``, at any depth; one without location holds for the whole site. Text that
    is not JSON reserves the whole site if it contains a reservation.
    """
    try:
        waiting: list[Any] = [json.loads(text.replace("\ufeff", ""), object_pairs_hook=all_values)]
    except (ValueError, RecursionError):
        return [("/", True, "1 (the file is no JSON)")] if _TDM_TEXT.search(text) else []
    found = []
    while waiting:
        rule = waiting.pop()
        if isinstance(rule, list):
            waiting += rule[::-1]
        elif isinstance(rule, dict):
            rule = {re.sub("[^a-z]", "", str(name).casefold()): value for name, value in rule.items()}
            waiting += [value for value in rule.values() if isinstance(value, dict | list)][::-1]
            reserved, stated = tdm_value(rule.get("tdmreservation")), rule.get("location") or "/"
            for location in stated[:MOST_VALUES] if isinstance(stated, list) else [stated]:
                if reserved is not None:
                    said = f"{int(reserved)} {rule.get('tdmpolicy') or ''}".strip()[:500]
                    found.append((_location(str(location), reserved), reserved, said))
    return found


def _location(text: str, reserved: bool) -> str:
    """Return the path of a rule; a reservation of something that is no address holds for the whole site.

    A path may be relative to the site, and that of a reservation a regular expression of the kind ``^/images/.*$``.
    """
    text = re.sub(r"^\.(/|$)", "/", text.strip().replace("\\", "/"))
    if reserved:
        text = re.sub(r"(^|/)\.\*", r"\1*", text.removeprefix("^"))
    try:
        location = path_of(text) if "://" in text else text
    except ValueError:
        location = "/" if reserved else text
    return location if location.startswith(("/", "*")) else "/" + location


def trust_refusals(text: str) -> list[str]:
    """Return the lines of trust.txt that refuse training (JournalList reference document, version of 2024-04-04)."""
    pairs = [line.partition("#")[0].partition("=")[::2] for line in text.replace("\ufeff", "").splitlines()]
    refused = WORDS["trust"]["refusing"]
    return [
        f"{name.strip()}={value.strip()}"
        for name, value in pairs
        if name.strip().casefold() in WORDS["trust"]["fields"] and value.strip(QUOTES).casefold() in refused
    ]


def rules_text(body: bytes) -> str:
    """Decode a file of rules: UTF-8, UTF-16 or UTF-32, with or without a byte order mark (RFC 4627, section 3)."""
    encoding = json.detect_encoding(body)
    if encoding.endswith(("le", "be")) and 4 * body.count(0) < len(body):  # single zeros in UTF-8
        encoding = "utf-8"
    return body.decode(encoding, "replace").replace("\0", "")


def all_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of some JSON; a name that occurs again has a list of all its values, not only the last."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        found[name] = [*_listed(found[name]), *_listed(value)] if name in found else value
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]

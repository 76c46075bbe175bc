"""The grammars in which rights are reserved: words of robots tags, Content-Usage, path patterns, groups, TDM values.

Sources: RFC 9309 (robots.txt), RFC 9651 (structured fields), draft-ietf-aipref-attach-05 and -vocab-07,
contentsignals.org, Google's robots meta tag specification, TDMRep final report (W3C community group, 10 May 2024). The
words themselves stand in reservation_words.yaml. Nothing here takes longer than a stranger's text is long.
"""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import yaml

WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("reservation_words.yaml").read_text("utf-8"))
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
QUOTES = "\"' "
_KEY = r"[a-z*][a-z0-9_\-.*]*"
_BARE = r"""(?:[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*|"(?:[^"\\]|\\.)*"|-?\d[\d.]*|\?[01]|:[A-Za-z0-9+/=]*:|@-?\d+)"""
_MEMBER = re.compile(rf"[ \t]*({_KEY})(?:=({_BARE}|\([^()]*\)))?(?:;[ ]*{_KEY}(?:={_BARE})?)*[ \t]*(,|$)")
_LOOSE = re.compile(r"(?<![\w*.\-])([\w*.\-]{1,32})\s{0,8}[=:]\s{0,8}(\w{1,8})(?!\w)")
_TDM_TEXT = re.compile(r'"tdm-reservation"\s{0,8}:\s{0,8}"?(1|true)\b', re.IGNORECASE)


def origin_of(url: str) -> str:
    """Scheme, host and port of an address: ``https://site.example:8443``."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def path_of(url: str) -> str:
    """Path and query of an address: what rules are matched against."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def path_matches(pattern: str, target: str) -> bool:
    """Whether a path of robots.txt or tdmrep.json covers a path with query (RFC 9309, 2.2.2 and 2.2.3).

    ``*`` is any run of characters, a closing ``$`` the end; percent-encoding is undone on both sides, but for ``%2F``.
    """
    anchored = pattern.endswith("$")
    pieces = [_plain(piece) for piece in (pattern[:-1] if anchored else pattern).split("*")]
    text = _plain(target)
    if len(pieces) == 1:
        return text == pieces[0] if anchored else text.startswith(pieces[0])
    if not text.startswith(pieces[0]):
        return False
    place = len(pieces[0])
    for piece in pieces[1:-1]:
        found = text.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    if anchored:
        return text.endswith(pieces[-1]) and len(text) - len(pieces[-1]) >= place
    return text.find(pieces[-1], place) >= 0


def _plain(text: str) -> bytes:
    return unquote_to_bytes(text.replace("%2F", "%252F").replace("%2f", "%252F"))


def product_token(name: str) -> str:
    """``LeamBot/1.0`` and ``leambot*`` are both ``leambot`` (RFC 9309, 2.2.1)."""
    return name.strip().casefold().partition("/")[0].rstrip("* ") or "*"


def agent_names(agent: str) -> set[str]:
    """Product names whose rules bind us: our own and those in reservation_words.yaml."""
    return {agent.strip().casefold(), *WORDS["also_obeyed"]} - {""}


def tdm_value(value: object) -> bool | None:
    """Whether a TDM value reserves; None is unset, as every value that the report does not know."""
    word = str(value).strip().casefold()
    return True if word in WORDS["tdm"]["reserved"] else False if word in WORDS["tdm"]["free"] else None


def robots_words(text: str, names: set[str] | None, moment: datetime) -> Iterator[str]:
    """Give the reserving words of one X-Robots-Tag header or robots tag that concern us, with the agent they name.

    ``agent: word, word, other: word``: an agent's words go on to the next agent. Words that carry a value (a date with
    its colons, and a comma behind the weekday) are no agents. Without ``names`` the text has no agents.
    """
    robots = WORDS["robots"]
    concerned, said_to = True, ""
    elements = text.split(",")[::-1]
    while elements:
        parts = elements.pop().split(":")
        for number, part in enumerate(parts):
            words = [word.strip(QUOTES) for word in part.replace(";", " ").split()]
            name = words.pop().casefold() if words and number + 1 < len(parts) else ""
            if concerned:
                yield from (said_to + word for word in words if word.casefold() in robots["reserving"])
            if name in robots["valued"]:
                value = ":".join(parts[number + 1 :])
                if value.strip()[:3].casefold() in DAYS and elements:
                    value += "," + elements.pop()
                end = _date(value) if name in robots["dated"] and concerned else None
                if end and moment >= end:
                    yield f"{said_to}{name}: {end.isoformat()}"
                break
            if name and names is not None:
                concerned = product_token(name) in names | {"*"}
                said_to = f"{name}: "


def _date(text: str) -> datetime | None:
    """RFC 822, RFC 850 or ISO 8601, in UTC where no zone is named; without a valid date Google's rule is ignored."""
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            found = read(text.strip(QUOTES)[:60])
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def usage_refusals(text: str) -> list[str]:
    """Give the members of a Content-Usage or Content-Signal text that refuse training, such as ``train-ai=n``.

    A text that is no dictionary says nothing by the draft; one that plainly refuses (``Train-AI = N``) is heard here.
    """
    members: dict[str, str] = {}
    place, usage = 0, WORDS["usage"]
    text = text.strip()
    while place < len(text):
        member = _MEMBER.match(text, place)
        if member is None:
            return _refusing(_LOOSE.findall(text), usage)
        members[member[1]] = member[2] or "?1"  # the last of one name wins (RFC 9651, 4.2.2)
        place = member.end()
    return _refusing(list(members.items()), usage)


def _refusing(members: list[tuple[str, str]], usage: dict[str, list[str]]) -> list[str]:
    return [
        f"{key}={value}"
        for key, value in members
        if key.casefold() in usage["labels"] and value.casefold() in usage["refusing"]
    ]


def rule_groups(text: str) -> Iterator[tuple[set[str], list[tuple[str, str]]]]:
    """Groups of robots.txt: agents' names and the rules below them; rules above all names concern everybody."""
    names: set[str] = set()
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        field, colon, value = (part.strip() for part in line.partition("#")[0].replace("\t", " ").partition(":"))
        field = field.casefold()
        if field in ("user-agent", "useragent", "user agent"):
            if lines:
                yield names, lines
                names, lines = set(), []
            names.add(value.casefold())
        elif colon and field not in ("sitemap", "host"):
            lines.append((field, value))
    yield names, lines


def tdm_rules(text: str) -> list[tuple[str, bool, str]]:
    """Rules of tdmrep.json: location, whether reserved, value with policy; rules whose value is unset are left out.

    A single object counts as a list of one, a rule without location for the whole site. A text that is no JSON reserves
    the whole site if it shows a reservation.
    """
    try:
        rules = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return [("/", True, "1 (the file is no JSON)")] if _TDM_TEXT.search(text) else []
    found = []
    for rule in rules if isinstance(rules, list) else [rules]:
        if isinstance(rule, dict) and (reserved := tdm_value(rule.get("tdm-reservation"))) is not None:
            location = str(rule.get("location") or "/")
            location = path_of(location) if "://" in location else location
            location = location if location.startswith(("/", "*")) else "/" + location
            found.append((location, reserved, f"{int(reserved)} {rule.get('tdm-policy') or ''}".strip()[:500]))
    return found

"""Read machine-readable reservations: headers, meta tags, robots.txt, tdmrep.json, ai.txt, trust.txt, registries.

Pure functions from text to signals, without network or clock (grammars and sources: rights/reservation_grammar.py). If
a source is ambiguous, or a text breaks its grammar but plainly refuses, the refusal counts.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from protego import Protego

from data_tools.network.link_address import spellings
from data_tools.rights.reservation_grammar import (
    WORDS,
    agent_names,
    origin_of,
    path_matches,
    path_of,
    plain_rules,
    product_token,
    robots_words,
    rule_groups,
    tdm_rules,
    tdm_value,
    trust_refusals,
    usage_refusals,
)
from leam_mm.data.legal_basis import LegalBasis

ACCESS = "robots.txt"  # the only kind of signal that controls fetching and not the use of what was fetched
PARSED = 128  # parsed files of origins in the cache, of each kind
TOO_MANY = 429  # a status that asks to come later, and so is no answer yet
SHOWN = 500  # characters of foreign text in a signal


@dataclass(frozen=True)
class Signal:
    """One statement of a right holder about one address.

    Args:
        kind: Where it was found: ``robots.txt``, ``robots.txt:content-usage``, ``tdmrep.json``, ``ai.txt``,
            ``registry``, ``header:x-robots-tag``, ``header:tdm-reservation``, ``meta:robots``, ``c2pa`` and so on.
        value: The deciding words.
        source: Address of the answer or file.
        reserved: Whether it refuses.
    """

    kind: str
    value: str
    source: str
    reserved: bool


class Registry(Protocol):
    """An opt-out list, such as OptOutRegistry of data_tools/rights/opt_out_registry.py."""

    name: str

    def find(self, url: str) -> str | None:
        """Return the entry that covers an address, or None."""


def decide(signals: Iterable[Signal], basis: LegalBasis) -> Signal | None:
    """Return the signal that forbids the use, or None.

    Access rules apply to every basis, reservations to article 4 alone. A ``TDM-Reservation`` header takes precedence
    over tdmrep.json of the same origin (TDMRep, Processing priority).
    """
    signals = list(signals)
    for signal in signals:
        if signal.reserved and signal.kind == ACCESS:
            return signal
    if not basis.honours_reservations:
        return None
    with_header = {
        origin_of(signal.source)
        for signal in signals
        if signal.kind == "header:tdm-reservation" and tdm_value(signal.value.partition(" ")[0]) is not None
    }
    for signal in signals:
        if signal.reserved and not (signal.kind == "tdmrep.json" and origin_of(signal.source) in with_header):
            return signal
    return None


def header_signals(headers: Iterable[tuple[str, str]], agent: str, url: str, fetched_at: datetime) -> list[Signal]:
    """Read all headers of one answer; every hop of a redirect is an answer of its own.

    Args:
        headers: Names and values; a name may occur several times.
        agent: Our product name in the User-Agent header.
        url: Address that was requested.
        fetched_at: Time of the answer, with time zone; ``unavailable_after`` is compared with it.
    """
    found, policy = [], ""
    for name, value in headers:
        field = name.strip().casefold().replace("_", "-")
        if field == "x-robots-tag":
            found.append(_robots_signal("header:x-robots-tag", value, agent_names(agent), url, fetched_at))
        elif field == "tdm-reservation":
            found.append(_tdm_signal("header:tdm-reservation", value, url))
        elif field == "tdm-policy":
            policy = value.strip()[:SHOWN]
        elif field in WORDS["usage"]["fields"]:
            found.append(_usage_signal(f"header:{field}", value, url))
    return _with_policy(found, policy)


def meta_signals(pairs: Iterable[tuple[str, str]], agent: str, url: str, fetched_at: datetime) -> list[Signal]:
    """Read the meta tags (name, content) of a page, which are taken to hold for its images, too."""
    found, policy = [], ""
    for name, content in pairs:
        field = name.strip().casefold()
        if field == "robots" or product_token(field) in agent_names(agent):
            found.append(_robots_signal("meta:robots", content, None, url, fetched_at))
        elif field in ("tdm-reservation", "tdm:reservation"):
            found.append(_tdm_signal("meta:tdm-reservation", content, url))
        elif field in ("tdm-policy", "tdm:policy"):
            policy = content.strip()[:SHOWN]
        elif field in WORDS["usage"]["fields"]:
            found.append(_usage_signal(f"meta:{field}", content, url))
    return _with_policy(found, policy)


def json_ld_signals(texts: Iterable[str], url: str) -> list[Signal]:
    """Read the JSON-LD of a page: a ``tdm-reservation`` counts wherever it stands, in broken JSON, too.

    No specification defines it there, so that it can refuse but not permit.
    """
    found = (tdm_rules(text.strip()) for text in texts if "tdm" in text.casefold())
    return [
        Signal("json-ld:tdm-reservation", said[:SHOWN], url, True)
        for _, reserved, said in (rule for rules in found for rule in rules)
        if reserved
    ]


def _robots_signal(kind: str, text: str, names: set[str] | None, url: str, fetched_at: datetime) -> Signal:
    found = list(robots_words(text, names, fetched_at))
    return Signal(kind, (", ".join(found) or text.strip())[:SHOWN], url, bool(found))


def _tdm_signal(kind: str, text: str, url: str) -> Signal:
    """Return the signal of a TDM header; several values are several headers joined, and one that reserves is enough."""
    values = [value.strip() for value in text.split(",")]
    deciding = next((value for value in values if tdm_value(value)), values[0])
    return Signal(kind, deciding[:SHOWN], url, bool(tdm_value(deciding)))


def _usage_signal(kind: str, text: str, url: str) -> Signal:
    refused = usage_refusals(text)
    return Signal(kind, (", ".join(refused) or text.strip())[:SHOWN], url, bool(refused))


def _with_policy(found: list[Signal], policy: str) -> list[Signal]:
    """Add the policy, which says where a licence can be obtained, to the value of the reservation."""
    return [
        replace(one, value=f"{one.value} {policy}")
        if policy and one.reserved and one.kind.endswith("tdm-reservation")
        else one
        for one in found
    ]


class _Rules:
    """A file in the grammar of robots.txt, for one agent: Protego parses access, and newer rules are parsed here."""

    def __init__(self, text: str, agent: str) -> None:
        text = plain_rules(text)
        groups = list(rule_groups(text))
        self.file = Protego.parse(text)
        agents = {name for names, _ in groups for name in names if name}
        own = {name for name in agents if product_token(name) == product_token(agent)} or {"*"}
        also = {name for name in agents if product_token(name) in WORDS["also_obeyed"]}
        self.names = sorted(own) + sorted(also - own)
        lines = [line for names, rules in groups for line in rules if not names or names & set(self.names)]
        self.disallowed = [value for field, value in lines if field == "disallow" and value]
        self.used: dict[str, list[tuple[str, str, str]]] = {}  # field -> path, refused members, whole value
        for field, value in lines:
            if field in WORDS["usage"]["fields"]:
                path, _, said = value.partition(" ") if value.startswith("/") else ("", "", value)
                self.used.setdefault(field, []).append((path, ", ".join(usage_refusals(said)), said))
        training = WORDS["training_rules"]
        self.trained = [
            (value, field in training["allowing"], f"{field}: {value}")
            for field, value in lines
            if value and field in training["refusing"] + training["allowing"]
        ]

    def refusal(self, url: str) -> str | None:
        """Return the access rule that forbids an address in one of its spellings, or None."""
        pairs = ((name, each) for each in spellings(url) for name in self.names)
        refusing, url = next(((name, each) for name, each in pairs if not self.file.can_fetch(each, name)), ("", url))
        if not refusing:
            return None
        target = path_of(url)
        rules = [value for value in self.disallowed if path_matches(value, target)]
        return f"{refusing}: Disallow: {max(rules, key=len, default='')}".rstrip()[:SHOWN]

    def usage(self, url: str, source: str, kind: str) -> Iterator[Signal]:
        """Yield Content-Usage, Content-Signal and DisallowAITraining, each from the longest path that matches.

        Of another spelling of the address, only what reserves is yielded.
        """
        for number, each in enumerate(spellings(url)):
            yield from (one for one in self._usage(path_of(each), source, kind) if number == 0 or one.reserved)

    def _usage(self, target: str, source: str, kind: str) -> Iterator[Signal]:
        for field, rules in self.used.items():
            fits = [
                (len(path), bool(refused), f"{path} {refused or said}".strip())
                for path, refused, said in rules
                if path_matches(path, target)
            ]
            if fits:
                _, reserved, said = max(fits)
                yield Signal(f"{kind}:{field}", said[:SHOWN], source, reserved)
        ruled = [(len(path), allowed, said) for path, allowed, said in self.trained if path_matches(path, target)]
        if ruled:
            _, allowed, said = max(ruled)
            yield Signal(f"{kind}:training", said[:SHOWN], source, not allowed)


@functools.lru_cache(PARSED)
def _rules(text: str, agent: str) -> _Rules:
    return _Rules(text, agent)


def robots_signals(text: str | None, status: int | None, url: str, agent: str) -> list[Signal]:
    """Read robots.txt for one address (RFC 9309).

    Args:
        text: The file, or None if there is none.
        status: Status of the answer, or None without an answer. 5xx and no answer forbid everything (2.3.1.4), 4xx and
            too many redirects nothing (2.3.1.2, 2.3.1.3).
        url: Address to be fetched.
        agent: Our product name; its groups apply, or those of ``*`` if it has none.
    """
    source = origin_of(url) + "/robots.txt"
    if status is None or status >= 500 or status == TOO_MANY:
        return [Signal(ACCESS, "no answer" if status is None else f"status {status}", source, True)]
    if text is None:
        return [Signal(ACCESS, f"status {status}", source, False)]
    rules = _rules(text, agent)
    refusal = rules.refusal(url)
    return [Signal(ACCESS, refusal or "allowed", source, refusal is not None), *rules.usage(url, source, ACCESS)]


def robots_delay(text: str, agent: str) -> float | None:
    """Return the seconds that robots.txt asks for between two of our requests, or None."""
    rules = _rules(text, agent)
    return max((delay for name in rules.names if (delay := rules.file.crawl_delay(name)) is not None), default=None)


def ai_txt_signals(text: str | None, url: str, agent: str = "") -> list[Signal]:
    """Read Spawning's ai.txt: the grammar of robots.txt, usually with file endings; a refusal concerns training."""
    if not text or text.lstrip("\ufeff \t\r\n").startswith("<"):
        return []  # an HTML page in place of the file
    source = origin_of(url) + "/ai.txt"
    rules = _rules(text.casefold(), agent)
    refusal = rules.refusal(url.casefold())
    return [Signal("ai.txt", refusal or "allowed", source, refusal is not None), *rules.usage(url, source, "ai.txt")]


@functools.lru_cache(PARSED)
def _tdm_rules(text: str) -> list[tuple[str, bool, str]]:
    return tdm_rules(text)


def tdmrep_signals(text: str | None, url: str) -> list[Signal]:
    """Read /.well-known/tdmrep.json for one address (TDMRep final report, TDM File on the Origin Server).

    By the report the most specific match counts, and this is the first one. If the first and the longest match differ,
    the reservation counts.
    """
    found = [signal for each in spellings(url) for signal in _tdmrep_signals(text or "[]", each)]
    return sorted(found, key=lambda one: not one.reserved)[:1]


def _tdmrep_signals(text: str, url: str) -> list[Signal]:
    target = path_of(url)
    matches = [rule for rule in _tdm_rules(text) if path_matches(rule[0], target)]
    if not matches:
        return []
    first, longest = matches[0], max(matches, key=lambda rule: len(rule[0]))
    location, reserved, value = longest if longest[1] and not first[1] else first
    return [Signal("tdmrep.json", f"{location}: {value}", origin_of(url) + "/.well-known/tdmrep.json", reserved)]


def trust_txt_signals(text: str | None, source: str) -> list[Signal]:
    """Read trust.txt, whose ``datatrainingallowed=no`` concerns the whole site.

    Args:
        text: The file, or None if there is none.
        source: Its address.
    """
    refused = trust_refusals(text or "")
    return [Signal("trust.txt", refused[0][:SHOWN], source, True)] if refused else []


def registry_signals(registry: Registry, url: str) -> list[Signal]:
    """Look up an address in an opt-out registry; an address that is not listed gives no signal."""
    entry = registry.find(url)
    return [Signal("registry", entry, registry.name, True)] if entry else []

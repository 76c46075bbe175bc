"""Read terms in Really Simple Licensing 1.0 (https://rslstandard.org/rsl), and find where a site states them.

A document lists ``content`` by paths, with licences that permit or prohibit usages. Training is reserved unless one
licence of the most specific matching content allows it without a condition: no payment, no licence server, no limit to
users or countries (RSL 1.0, 3.4 to 3.7). Documents are found by ``License:`` in robots.txt, by Link headers, and by
links and scripts in pages (4.4 to 4.7). Input is untrusted: no DTD and no entities are read, and sizes are limited.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit
from xml.etree import ElementTree

from data_tools.network.link_address import spellings
from data_tools.rights.licence_address import read_licence
from data_tools.rights.reservation_grammar import WORDS, origin_of, path_matches, path_of, product_token
from data_tools.rights.reservations import PARSED, SHOWN, Signal

MEDIA_TYPE = "application/rsl+xml"
MOST_DOCUMENTS = 5  # that are read for one origin, answer or page
MOST_CHARACTERS, MOST_CONTENTS = 1 << 19, 1000
_LINK = re.compile(r"<([^<>]{1,2048})>([^<]{0,1000})")
_PARAMETER = re.compile(
    r"""(rel|type)\s{0,8}=\s{0,8}(?:"([^"]{0,200})"|'([^']{0,200})'|([^\s;,"']{1,200}))""", re.IGNORECASE
)
_DOCUMENT = re.compile(  # also a feed or a list of addresses that holds terms
    r"""<(?:\w{1,20}:)?rsl[\s>/]|xmlns(?::\w{1,20})?\s{0,8}=\s{0,8}["']https?://(?:www\.)?rslstandard\.org/rsl""",
    re.IGNORECASE,
)
_DECLARATION = re.compile(r"^\s{0,1000}<\?xml[^>]{0,200}\?>")
_MISSING = (404, 410)


@dataclass(frozen=True)
class _Content:
    """One digital asset of a document: where it lies, whether training is reserved, and the deciding words."""

    location: str
    reserved: bool
    words: str


def rsl_signals(text: str, kind: str, source: str, targets: Iterable[str]) -> list[Signal]:
    """Return the signal of a document about some addresses, or an empty list if it says nothing about them.

    Args:
        text: The document.
        kind: Where it was found, for the signal.
        source: Address of the document, or of the page that holds it.
        targets: The image's address, and others for which the terms hold as well. Paths of the document belong to the
            origin of the first.
    """
    contents = _contents(text)
    if contents is None:
        return [Signal(kind, "its terms cannot be read", source, True)]
    targets = list(targets)
    places = [each for target in targets for each in spellings(target)]
    found = [one for place in places for one in _most_specific(contents, place, origin_of(targets[0]))]
    if not found:
        return []
    deciding = next((one for one in found if one.reserved), found[0])
    return [Signal(kind, f"{deciding.location}: {deciding.words}"[:SHOWN], source, deciding.reserved)]


def file_signals(status: int | None, text: str | None, kind: str, source: str, targets: Iterable[str]) -> list[Signal]:
    """Return the signal of a document that was requested; one that is withheld or does not answer reserves rights."""
    if status in _MISSING:
        return []
    if text is None:
        answer = "no answer" if status is None else f"status {status}"
        return [Signal(kind, f"its terms cannot be read ({answer})", source, True)]
    return rsl_signals(text, kind, source, targets)


def _most_specific(contents: tuple[_Content, ...], target: str, base: str) -> list[_Content]:
    paths = [(_matching_path(one.location, target, base), one) for one in contents]
    longest = max((len(path) for path, _ in paths if path is not None), default=0)
    return [one for path, one in paths if path is not None and len(path) == longest]


def _matching_path(location: str, target: str, base: str) -> str | None:
    """Return the path of a content element that covers an address, or None."""
    try:
        location = f"https:{location}" if location.startswith("//") else location
        absolute = "://" in location
        path = path_of(location) if absolute else location
        same = origin_of(target).partition("://")[2] == origin_of(location if absolute else base).partition("://")[2]
    except ValueError:
        return None
    path = path if path.startswith(("/", "*")) else "/" + path
    return path if same and path_matches(path, path_of(target)) else None


@functools.lru_cache(PARSED)
def _contents(text: str) -> tuple[_Content, ...] | None:
    """Return the contents of a document, none if it is no RSL document, or None if it is one that cannot be read."""
    if not _DOCUMENT.search(text):
        return ()
    if len(text) > MOST_CHARACTERS or "<!DOCTYPE" in text.upper() or "<!ENTITY" in text.upper():
        return None
    try:
        root = ElementTree.fromstring(_DECLARATION.sub("", text.replace("\ufeff", "")).strip())
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        return None
    found = [node for node in root.iter() if _name(node) == "content" and _children(node, "license")]
    return tuple(map(_read, found)) if len(found) <= MOST_CONTENTS else None


def _name(node: ElementTree.Element) -> str:
    """Return the name of an element without its namespace; comments have none."""
    return node.tag.rpartition("}")[2].casefold() if isinstance(node.tag, str) else ""


def _children(node: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in node if _name(child) == name]


def _read(content: ElementTree.Element) -> _Content:
    conditions = [_conditions(licence) for licence in _children(content, "license")]
    if content.get("server"):  # a licence must be obtained there, even a free one (RSL 1.0, 3.3)
        conditions = [f"server {content.get('server')}", *filter(None, conditions)]
    words = "; ".join(filter(None, conditions)) or "training permitted"
    return _Content((content.get("url") or "/").strip(), all(conditions), words)


def _conditions(licence: ElementTree.Element) -> str:
    """Return the words of a licence that reserve training, empty if it allows training without a condition."""
    words, usages = [], None
    for node in _children(licence, "permits"):
        values = " ".join((node.text or "").replace(",", " ").casefold().split())
        if (node.get("type") or "usage").casefold() == "usage":
            usages = f"{usages or ''} {values}".strip()
        else:
            words.append(f"permits {node.get('type')} {values}")
    if usages is not None and not _covers_training(usages):
        words.append(f"permits usage {usages}")
    for node in _children(licence, "prohibits"):
        kind, values = (node.get("type") or "usage").casefold(), " ".join((node.text or "").replace(",", " ").split())
        if kind != "usage" or _covers_training(values.casefold()):
            words.append(f"prohibits {kind} {values}")
    for node in _children(licence, "payment"):
        if (kind := (node.get("type") or "free").casefold()) not in WORDS["rsl"]["free"] or len(node):
            words.append(f"payment {kind}")
    return ", ".join(words)


def _covers_training(values: str) -> bool:
    return bool(set(values.split()) & set(WORDS["rsl"]["training"]))


def header_links(headers: Iterable[tuple[str, str]], base: str) -> list[str]:
    """Return the addresses of RSL documents in the Link headers of an answer (RFC 8288; RSL 1.0, 4.5)."""
    found = []
    for name, value in headers:
        if name.strip().casefold() == "link":
            for target, parameters in _LINK.findall(value):
                given = {key.casefold(): "".join(values) for key, *values in _PARAMETER.findall(parameters)}
                found.append(document_link(target, given.get("rel", ""), given.get("type", ""), base))
    return list(dict.fromkeys(filter(None, found)))[:MOST_DOCUMENTS]


def document_link(target: str, relation: str, media_type: str, base: str) -> str | None:
    """Return the absolute address of an RSL document to which a link of a page or header leads, or None.

    Args:
        target: The link's address.
        relation: Its ``rel``; the word ``license`` must occur.
        media_type: Its ``type``; without one, an address that ends with .xml may be an RSL document.
        base: Address of the page or answer.
    """
    kind = media_type.partition(";")[0].strip().casefold()
    if "license" not in relation.casefold().split() or kind not in (MEDIA_TYPE, ""):
        return None
    address = _absolute(target, base)
    return address if address and (kind or urlsplit(address).path.casefold().endswith(".xml")) else None


def robots_links(text: str, agent: str, base: str) -> list[str]:
    """Return the addresses of documents that robots.txt names for us (RSL 1.0, 4.4).

    A line ``License:`` inside a group holds for its agents. One before all groups, or after an empty line,
    holds for all.
    """
    own = {product_token(agent), "*", *WORDS["also_obeyed"]}
    names: set[str] = set()
    found, inside, rules = [], False, False
    for line in text.replace("\ufeff", "").splitlines():
        field, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        field = field.casefold()
        if not line.strip():
            inside = False
        elif field in ("user-agent", "useragent", "user agent"):
            names, inside, rules = (set() if rules else names) | {product_token(value)}, True, False
        elif field in ("license", "licence") and (not inside or names & own):
            found.append(_absolute(value, base))
        rules = rules or field in ("allow", "disallow", "license", "licence", "crawl-delay")
    known = [address for address in dict.fromkeys(found) if address and not _is_open_licence(address)]
    return known[:MOST_DOCUMENTS]


def _is_open_licence(address: str) -> bool:
    licence = read_licence(address)
    return licence is not None and licence.name != licence.address


def _absolute(target: str, base: str) -> str | None:
    try:
        address = urljoin(base, target.strip().strip("\"'<>"))
        return address if urlsplit(address).scheme in ("http", "https") and urlsplit(address).hostname else None
    except ValueError:
        return None

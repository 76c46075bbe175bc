"""Authors and licences that a page states for its images: schema.org as JSON-LD or microdata, and rel=license.

Follows schema.org/ImageObject and Google's image metadata (license, acquireLicensePage, creditText, creator,
copyrightNotice). A statement holds for an image if it names the image's address or is inside its figure; all others
hold for the page and not for its images. A licence in JSON-LD that cannot be read permits nothing, for any image. The
input is untrusted: sizes and depths are limited.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from resiliparse.parse.html import ElementNode, HTMLTree

from data_tools.rights.reservation_grammar import all_values

FIELDS = ("license", "acquireLicensePage", "creditText", "creator", "copyrightNotice", "copyrightHolder", "caption")
IMAGE_TYPES = frozenset({"ImageObject", "Photograph", "ImageObjectSnapshot"})
MAX_SCRIPTS, MAX_JSON, MAX_NODES = 20, 1 << 18, 20_000
MAX_PROPERTIES, MAX_STATEMENTS, MAX_TEXT, MAX_LICENCES = 2000, 1000, 500, 20
UNREAD = "broken json-ld"  # source of a statement that holds for all images of its page
ANCESTORS = 40  # outer elements that are searched; deeper nesting is ignored
Resolve = Callable[[str | None], str | None]


@dataclass
class Statement:
    """What a page states about one image, or about itself.

    Args:
        addresses: Addresses of the image; empty for a statement about the page.
        source: Where it was found: ``json-ld``, ``microdata``, ``rel=license``; or ``UNREAD``.
        fields: The given fields of ``FIELDS``, as text.
    """

    addresses: list[str]
    source: str
    fields: dict[str, str] = field(default_factory=dict)


_UNREAD_LICENCE = Statement([], UNREAD, {"license": "not known: statements of the page that cannot be read"})


def page_statements(tree: HTMLTree, resolve: Resolve) -> list[Statement]:
    """Return all statements of a page, at most ``MAX_STATEMENTS``; for rel=license in figures see `figure_licences`.

    Args:
        tree: The page.
        resolve: Returns the absolute http(s) address of a reference, or None.
    """
    if tree.document is None:
        return []
    found = [*_json_ld(tree, resolve), *_microdata(tree, resolve), *_relations(tree, resolve)]
    found += [_UNREAD_LICENCE] * (len(found) > MAX_STATEMENTS)
    return sorted(found, key=lambda one: one.source != UNREAD)[:MAX_STATEMENTS]


def _json_ld(tree: HTMLTree, resolve: Resolve) -> Iterator[Statement]:
    unread = False
    for number, text in enumerate(json_ld_texts(tree.document)):
        if len(text) > MAX_JSON or number >= MAX_SCRIPTS:
            unread = unread or _names_licence(text)
            continue
        try:
            plain = text.strip().removeprefix("<!--").removesuffix("-->")
            waiting: list[Any] = [json.loads(plain, strict=False, object_pairs_hook=all_values)]
        except (ValueError, RecursionError):
            unread = unread or _names_licence(text)
            continue
        seen = 0
        while waiting and seen < MAX_NODES:
            node, seen = waiting.pop(), seen + 1
            if isinstance(node, list):
                waiting += node[::-1]
            elif isinstance(node, dict):
                yield from _json_statement(node, resolve)
                waiting += [value for value in node.values() if isinstance(value, dict | list)][::-1]
        unread = unread or (bool(waiting) and _names_licence(text))
    if unread:  # search engines ignore it, but it may restrict what the rest of the page permits
        yield _UNREAD_LICENCE


def json_ld_texts(document: Any) -> list[str]:
    """Return the texts of all scripts in JSON-LD."""
    return [script.text or "" for script in select(document, 'script[type="application/ld+json" i]')]


def _names_licence(text: str) -> bool:
    return re.search("licen[cs]e", text, re.IGNORECASE) is not None


def _json_statement(node: dict[str, Any], resolve: Resolve) -> Iterator[Statement]:
    types = node.get("@type")
    names = {str(name).rpartition("/")[2] for name in (types if isinstance(types, list) else [types])}
    fields = {name: text for name in FIELDS if name != "license" and (text := _json_text(node.get(name)))}
    licences = [text if " " in text else resolve(text) or text for text in _json_licences(node.get("license"))]
    image = bool(names & IMAGE_TYPES)
    if image and "caption" not in fields and (text := _json_text(node.get("description") or node.get("name"))):
        fields["caption"] = text
    addresses = [resolve(_json_text(node.get(name))) for name in ("contentUrl", "url", "@id")] if image else []
    distinct = list(dict.fromkeys(address for address in addresses if address))
    if (fields and distinct) or licences:
        first, *more = [{"license": text} for text in licences] or [{}]
        yield Statement(distinct, "json-ld", fields | first)
        yield from (Statement(distinct, "json-ld", licence) for licence in more)


def _json_licences(value: Any) -> list[str]:
    """Return all licences of a property, each once; of an object, its addresses, or its name if it has none."""
    found: list[str] = []
    for one in (value if isinstance(value, list) else [value])[:MAX_LICENCES]:
        texts = [_json_text(one.get(key)) for key in ("url", "@id", "@value", "name")] if isinstance(one, dict) else []
        addresses = [text for text in texts if "://" in text]
        found += addresses or [next(filter(None, texts), "") if isinstance(one, dict) else _json_text(one)]
    return list(dict.fromkeys(filter(None, found)))


def _json_text(value: Any) -> str:
    """Return a property as text: the text itself, or the name or address of a nested object."""
    for _ in range(4):
        if isinstance(value, list):
            value = value[0] if value else None
        elif isinstance(value, dict):
            value = next((value[key] for key in ("name", "url", "@id", "@value") if key in value), None)
    return " ".join(value.split())[:MAX_TEXT] if isinstance(value, str) else ""


def _microdata(tree: HTMLTree, resolve: Resolve) -> Iterator[Statement]:
    items: dict[ElementNode, Statement] = {}
    further: list[Statement] = []  # licences after the first of an item
    for prop in select(tree.document, "[itemprop]")[:MAX_PROPERTIES]:
        words = (prop.get_attribute("itemprop") or "").split()
        name = next((word for word in words if word in (*FIELDS, "contentUrl", "url", "name")), "")
        if not name:
            continue
        item, nested = _item_of(prop)
        if item is None or (name == "name" and nested != "creator"):
            continue
        statement = items.setdefault(item, Statement([], "microdata"))
        value = _property(prop)
        if name in ("contentUrl", "url"):
            address = resolve(value)
            statement.addresses += [address] if address and address not in statement.addresses else []
        elif value:
            key = "creator" if name == "name" else name
            value = (resolve(value) or value) if key == "license" else value
            if key == "license" and statement.fields.get(key, value) != value:
                further.append(Statement(statement.addresses, "microdata", {key: value}))
            statement.fields.setdefault(key, value)
    yield from (one for one in [*items.values(), *further] if one.fields and one.addresses)


def _item_of(prop: ElementNode) -> tuple[ElementNode | None, str]:
    """Return the ImageObject that a property belongs to, and the name of the item between the two, or ""."""
    nested = ""
    for node in ancestors(prop):
        if node.has_attribute("itemscope"):
            if (node.get_attribute("itemtype") or "").strip().rpartition("/")[2] in IMAGE_TYPES:
                return node, nested
            if nested:
                return None, ""
            nested = (node.get_attribute("itemprop") or "?").strip()
            if nested != "creator":
                return None, ""
    return None, ""


def _property(prop: ElementNode) -> str:
    """Return the value of a property (WHATWG HTML, 5.2.4 Values)."""
    for attribute in ("content", "href", "src"):
        if value := prop.get_attribute(attribute):
            return " ".join(value.split())[:MAX_TEXT]
    return " ".join((prop.text or "")[: 4 * MAX_TEXT].split())[:MAX_TEXT]


def _relations(tree: HTMLTree, resolve: Resolve) -> Iterator[Statement]:
    """Yield rel=license outside of figures; ``about`` or ``resource`` (RDFa) may name an image, inside of them, too."""
    for link in license_links(tree.document):
        about = _about(link, resolve)
        if (text := _reference(link, resolve)) and (about or _figure_of(link) is None):
            yield Statement([about] if about else [], "rel=license", {"license": text})


def figure_licences(figure: ElementNode, resolve: Resolve) -> list[Statement]:
    """Return the rel=license statements of a figure, not of one inside it, which hold for its images."""
    own = [link for link in license_links(figure) if _figure_of(link) == figure and not _about(link, resolve)]
    texts = dict.fromkeys(_reference(link, resolve) for link in own)
    return [Statement([], "rel=license", {"license": text}) for text in texts if text]


def _figure_of(link: ElementNode) -> ElementNode | None:
    return next((node for node in ancestors(link) if node.tag == "figure"), None)


def _about(link: ElementNode, resolve: Resolve) -> str | None:
    return resolve(link.get_attribute("about") or link.get_attribute("resource"))


def _reference(link: ElementNode, resolve: Resolve) -> str:
    """Return the address of a licence, or what stands in its place, such as a mail address, which allows nothing."""
    reference = (link.get_attribute("href") or "").strip()
    return resolve(reference) or reference[:MAX_TEXT]


def license_links(node: Any) -> list[ElementNode]:
    """Return the links below a node whose rel contains the word license, at most 50."""
    return select(node, '[rel~="license" i][href]')[:50]


def select(node: Any, selector: str) -> list[Any]:
    """Return all elements below a node that match a CSS selector (resiliparse's iterators take quadratic time)."""
    return list(node.query_selector_all(selector).values())


def ancestors(node: ElementNode) -> Iterator[ElementNode]:
    """Yield the outer elements of a node, from the inside out, at most ``ANCESTORS``."""
    parent = node.parent_element
    for _ in range(ANCESTORS):
        if parent is None:
            return
        yield parent
        parent = parent.parent_element

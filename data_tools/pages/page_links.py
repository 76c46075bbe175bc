"""Read one HTML page: its images with their texts, its language, and its rights signals.

The parser is resiliparse (lexbor: WHATWG HTML, scripting off). The texts of an image are its alt text, the caption of
its figure, its title, and its descriptions in Open Graph and schema.org. Pages are untrusted: `PageLimits` sets fixed
limits of sizes, counts and depths, so that a page always gives the same links.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import DocumentNode, ElementNode, HTMLTree

from data_tools.links.language_vote import UNDETERMINED, primary_language, vote
from data_tools.network.link_address import host_of
from data_tools.pages.page_licences import (
    UNREAD,
    Statement,
    ancestors,
    figure_licences,
    json_ld_texts,
    license_links,
    page_statements,
    select,
)
from data_tools.pages.warc_pages import Page, PageRefused
from data_tools.rights.reservations import Signal, header_signals, json_ld_signals, meta_signals
from data_tools.rights.rsl_terms import MEDIA_TYPE, MOST_DOCUMENTS, document_link, header_links, rsl_signals
from leam_mm.data.registered_domain import same_owner

# Attributes in which scripts for lazy loading keep the address, the largest image first.
LAZY = ("data-original", "data-src", "data-lazy-src", "data-lazy", "data-original-src", "data-hi-res-src", "data-url")
LAZY_SETS = ("data-srcset", "data-lazy-srcset")
UNREADABLE = (".svg", ".svgz", ".ico")  # vector images and icons, which image_repair does not open
UNREADABLE_TYPES = ("image/svg+xml", "image/jxl", "image/heic", "image/heif")
_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s{0,9}=[\s\"']{0,9}([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
MOST_SIGNALS = 50  # that are kept of a page, those that reserve rights first
UNDATED = datetime(9999, 1, 1, tzinfo=UTC)  # for a page of unknown date: every expiry date has passed


@dataclass(frozen=True)
class PageLimits:
    """Limits of what is read of a page.

    Args:
        tags: Most "<" in a page; one with more is refused, because parsing can take quadratic time.
        images: Most images of a page, in its order.
        address: Most characters of an address.
        caption: Most characters of a text; a longer one is skipped.
        side: Smallest stated width and height in pixels; smaller images are skipped.
        head: Meta tags from which language and images are read; rights are read from all.
    """

    tags: int = 100_000
    images: int = 1000
    address: int = 2048
    caption: int = 5000
    side: int = 32
    head: int = 500


@dataclass
class PageLink:
    """An image of a page.

    Args:
        url: Its address.
        captions: Text, source, and the language that the page states for it or None.
        statements: Statements about its licence and author.
    """

    url: str
    captions: list[tuple[str, str, str | None]] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


@dataclass
class PageReading:
    """What was found in a page.

    Args:
        title: Title of the page.
        language: ISO 639 code, or "und".
        language_source: Where it was found: ``html``, ``meta``, ``header``, ``og``, ``vote``; empty for "und".
        signals: At most ``MOST_SIGNALS`` rights signals, those that reserve first.
        links: Images with at least one text.
        statements: Statements about the licence of the page itself.
        skipped: Numbers of images that give no link, by reason.
        terms: RSL documents that the page holds.
        linked_terms: Addresses of RSL documents to which it or its headers link.
    """

    title: str
    language: str
    language_source: str
    signals: list[Signal]
    links: list[PageLink]
    statements: list[Statement]
    skipped: Counter[str]
    terms: list[str] = field(default_factory=list)
    linked_terms: list[str] = field(default_factory=list)


def read_page(page: Page, agent: str, limits: PageLimits) -> PageReading:
    """Read a page.

    Args:
        page: The page.
        agent: Our product name, by which the page may address us.
        limits: Limits of what is read.

    Raises:
        PageRefused: The page is too large to be parsed safely, or empty.
    """
    html = decode_page(page)
    if html.count("<") > limits.tags:
        raise PageRefused("page_size", f"{html.count('<')} tags", f"more than {limits.tags} tags")
    tree = HTMLTree.parse(html)
    if tree.document is None or not html.strip():
        raise PageRefused("page_empty", "", "the page is empty")
    return _Reader(page, tree, tree.document, agent, limits).reading()


def decode_page(page: Page) -> str:
    """Decode by byte order mark, else charset of the header, charset of the page, UTF-8, or detection."""
    content, marks = page.content, ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
    encoding = next((name for mark, name in marks if content.startswith(mark)), None)
    own = _CHARSET.search(content[:4096])
    for stated in (page.charset, own[1].decode("ascii") if own else None):
        encoding = encoding or (map_encoding_to_html5(stated, fallback_utf8=False) if stated else None)
    with suppress(UnicodeDecodeError):
        encoding = encoding or (content.decode("utf-8") and "utf-8")
    # Text that is not in the stated encoding is decoded as UTF-8 or Windows-1252 as far as possible.
    return bytes_to_str(content, encoding or detect_encoding(content) or "utf-8", errors="replace")


class _Reader:
    """State while one page is read."""

    def __init__(self, page: Page, tree: HTMLTree, document: DocumentNode, agent: str, limits: PageLimits) -> None:
        self.page, self.tree, self.document, self.agent, self.limits = page, tree, document, agent, limits
        self.skipped: Counter[str] = Counter()
        self.links: dict[str, PageLink] = {}
        self.figures: dict[ElementNode, tuple[str, list[Statement]]] = {}
        self.base = page.url
        base = self.document.query_selector("base[href]")
        if base is not None:
            self.base = self.resolve(base.get_attribute("href")) or page.url

    def reading(self) -> PageReading:
        metas = list(self._metas())
        signals, metas = self._signals(metas), metas[: self.limits.head]
        language, source = self._language(metas)
        images = select(self.document, "img")
        for image in images[: self.limits.images]:
            self._image(image)
        self.skipped += Counter({"too many images": len(images) - self.limits.images})  # adds what is above 0
        self._open_graph(metas)
        page_wide = self._statements()
        kept = []
        for link in self.links.values():
            first = {text: number for number, (text, _, _) in reversed(list(enumerate(link.captions)))}
            link.captions = [link.captions[number] for number in sorted(first.values())]
            if link.captions:
                kept.append(link)
            else:
                self.skipped["no text"] += 1
        title = self.text(self.tree.title or "")
        return PageReading(title, language, source, signals, kept, page_wide, self.skipped, *self._terms())

    def _terms(self) -> tuple[list[str], list[str]]:
        """Return the RSL documents in the page, and the addresses of those to which it links (RSL 1.0, 4.6 and 4.7)."""
        scripts = select(self.document, f'script[type="{MEDIA_TYPE}" i]')[:MOST_DOCUMENTS]
        found = header_links(self.page.headers, self.page.url)
        for link in license_links(self.document):
            reference, words = link.get_attribute("href") or "", (link.get_attribute("rel") or "")
            found.append(document_link(reference, words, link.get_attribute("type") or "", self.base) or "")
        return [script.text or "" for script in scripts], list(dict.fromkeys(filter(None, found)))[:MOST_DOCUMENTS]

    def resolve(self, reference: str | None) -> str | None:
        """Return the absolute http(s) address of a reference, without fragment, or None."""
        text = "".join(character for character in (reference or "").strip() if character not in "\t\n\r")
        if not text or len(text) > self.limits.address or text[:5].lower() == "data:":
            return None
        try:
            address = urldefrag(urljoin(self.base, text.replace("\\", "/") if "://" not in text else text))[0]
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            return None
        return address.replace(" ", "%20") if usable and len(address) <= self.limits.address else None

    def text(self, text: str) -> str:
        """Return a text on one line, without control characters; empty if it is too long."""
        text = unicodedata.normalize("NFC", text) if len(text) <= 4 * self.limits.caption else ""
        if not text.isprintable():
            text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
        text = " ".join(text.split())
        return text if len(text) <= self.limits.caption else ""

    def _metas(self) -> Iterator[tuple[str, str]]:
        for meta in select(self.document, "meta"):
            content = meta.get_attribute("content")
            for attribute in ("name", "property", "http-equiv"):
                if content is not None and (name := meta.get_attribute(attribute)):
                    yield name.strip().casefold(), content

    def _signals(self, metas: list[tuple[str, str]]) -> list[Signal]:
        fetched_at = self.page.fetched_at or UNDATED
        headers = [*self.page.headers, *(pair for pair in metas if pair[0] == "x-robots-tag")]
        found = header_signals(headers, self.agent, self.page.url, fetched_at)
        found += meta_signals(metas, self.agent, self.page.url, fetched_at)
        found += json_ld_signals(json_ld_texts(self.document), self.page.url)
        return sorted(dict.fromkeys(found), key=lambda one: not one.reserved)[:MOST_SIGNALS]

    def _language(self, metas: list[tuple[str, str]]) -> tuple[str, str]:
        root = self.document.query_selector("html[lang]")
        stated = [("html", root.get_attribute("lang") if root else None)]
        stated += [("meta", value) for name, value in metas if name in ("content-language", "dc.language")]
        stated += [("header", value) for name, value in self.page.headers if name.casefold() == "content-language"]
        stated += [("og", value) for name, value in metas if name == "og:locale"]
        for source, tag in stated:
            if tag and "," not in tag and (language := primary_language(tag)):
                return language, source
        plain = extract_plain_text(self.tree, alt_texts=False)[:8000]
        language = vote([plain])[0].language
        return (language, "vote") if language != UNDETERMINED else (UNDETERMINED, "")

    def _image(self, image: ElementNode) -> None:
        outer = list(ancestors(image))
        picture = next((node for node in outer[:2] if node.tag == "picture"), None)
        url = self._address(image, picture)
        if url is None:
            self.skipped["no address"] += 1
            return
        if urlsplit(url).path.lower().endswith(UNREADABLE):
            self.skipped["drawing or icon"] += 1
            return
        if any(0 <= _pixels(image.get_attribute(name)) < self.limits.side for name in ("width", "height")):
            self.skipped["small"] += 1
            return
        link = self.links.setdefault(url, PageLink(url))
        stated = [node.get_attribute("lang") for node in (image, *outer) if node.tag != "html"]
        language = next(filter(None, stated), None)
        figure = next((node for node in outer if node.tag == "figure"), None)
        caption = ""
        if figure is not None:
            if figure not in self.figures:
                node = figure.query_selector("figcaption")
                text = self.text(node.text or "") if node is not None else ""
                self.figures[figure] = (text, figure_licences(figure, self.resolve))
            caption, licences = self.figures[figure]
            link.statements += [one for one in licences if one not in link.statements]
        alt, title = (self.text(image.get_attribute(name) or "") for name in ("alt", "title"))
        for text, source in ((alt, "alt"), (caption, "figcaption"), (title, "title")):
            if text and len(link.captions) < 20:
                link.captions.append((text, source, language))

    def _address(self, image: ElementNode, picture: ElementNode | None) -> str | None:
        """Return the address of the largest readable version of an image, the first of equal ones, or None."""
        sets = [value for name in ("srcset", *LAZY_SETS) if (value := image.get_attribute(name))]
        if picture is not None:
            for source in select(picture, "source")[:20]:
                if (source.get_attribute("type") or "").strip().lower() not in UNREADABLE_TYPES:
                    sets += [value for name in ("srcset", *LAZY_SETS) if (value := source.get_attribute(name))]
        offers = [
            (size, url) for value in sets for size, reference in srcset(value) if (url := self.resolve(reference))
        ]
        if offers:
            return max(offers, key=lambda offer: offer[0])[1]
        for name in (*LAZY, "src"):
            if url := self.resolve(image.get_attribute(name)):
                return url
        return None

    def _open_graph(self, metas: list[tuple[str, str]]) -> None:
        """Add the images in og:image, each described by the properties that follow it (ogp.me)."""
        title = self.text(next((value for name, value in metas if name == "og:title"), ""))
        link = None
        for name, value in metas:
            if name in ("og:image", "og:image:url", "og:image:secure_url"):
                url = self.resolve(value)
                link = self.links.setdefault(url, PageLink(url)) if url else None
                if link is not None and title:
                    link.captions.append((title, "og:title", None))
            elif name == "og:image:alt" and link is not None and (text := self.text(value)):
                link.captions.append((text, "og:image:alt", None))

    def _statements(self) -> list[Statement]:
        """Attach statements to the images that they name; return those about the page."""
        page_wide = []
        for statement in page_statements(self.tree, self.resolve):
            named = [self.links[address] for address in statement.addresses if address in self.links]
            if statement.source == UNREAD:
                named = list(self.links.values())
            for link in named:
                link.statements.append(statement)
                if text := self.text(statement.fields.get("caption", "")):
                    link.captions.append((text, statement.source, None))
            if not named and not statement.addresses:
                page_wide.append(statement)
        return page_wide


def srcset(value: str) -> Iterator[tuple[float, str]]:
    """Yield size and address of each candidate in a srcset (WHATWG HTML); densities rank below all widths."""
    start, count = 0, 0
    while start < len(value) and count < 50:
        while start < len(value) and value[start] in " \t\n\r\f,":
            start += 1
        end = start
        while end < len(value) and value[end] not in " \t\n\r\f":
            end += 1
        reference, start, count = value[start:end], end, count + 1
        size = ""
        if reference.endswith(","):
            reference = reference.rstrip(",")
        else:
            stop = value.find(",", start)
            stop = len(value) if stop < 0 else stop
            size, start = value[start:stop].strip(), stop
        if reference:
            yield _size(size), reference


def _size(descriptor: str) -> float:
    words = descriptor.split()[:2]
    for word in words:
        try:
            number = float(word[:-1])
        except ValueError:
            continue
        if word[-1] in "wx" and 0 < number < 1e5:
            return number if word[-1] == "w" else number / 1e6
    return 1e-6


def _pixels(value: str | None) -> int:
    digits = (value or "").strip().removesuffix("px")
    return int(digits) if digits.isdecimal() and len(digits) < 6 else -1


def speaks_for(page: Page, link: PageLink) -> bool:
    """Whether a page belongs to the site of an image, so that the licence it states for the image counts."""
    return same_owner(host_of(page.url), host_of(link.url))


def link_evidence(page: Page, reading: PageReading, link: PageLink) -> dict[str, Any]:
    """Return the column ``consent``: rights of the page, licences, and archive and record of the page."""
    scope = "image" if speaks_for(page, link) else "claim"
    licences = [(scope, one) for one in link.statements] + [("page", one) for one in reading.statements]
    targets = [page.url, link.url]
    terms = [signal for text in reading.terms for signal in rsl_signals(text, "page:rsl", page.url, targets)]
    linked = {"page_terms": reading.linked_terms} if reading.linked_terms else {}
    return linked | {
        "page_rights": [asdict(signal) for signal in [*terms, *reading.signals]],
        "licences": [
            {"scope": scope, "source": one.source, **{k: v for k, v in one.fields.items() if k != "caption"}}
            for scope, one in licences[:20]
        ],
        "page": {"archive": page.archive, "record": page.record, "fetched_at": page.date},
    }

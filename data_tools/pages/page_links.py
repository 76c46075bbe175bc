"""Read one HTML page: its images with their texts, its language, and what it says of rights.

The parser is resiliparse's (lexbor: WHATWG HTML, scripting off). An image's texts are its alt text, the caption of its
figure, its title, and what Open Graph and schema.org say of it. Pages are strangers' work: sizes, counts and depths are
limited by `PageLimits`, the same for everybody, so that the same page always gives the same links.
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
from data_tools.pages.page_licences import Statement, ancestors, figure_licences, page_statements, select
from data_tools.pages.warc_pages import Page, PageRefused
from data_tools.rights.reservations import Signal, header_signals, meta_signals

# Where scripts that load images late keep the address: the largest first.
LAZY = ("data-original", "data-src", "data-lazy-src", "data-lazy", "data-original-src", "data-hi-res-src", "data-url")
LAZY_SETS = ("data-srcset", "data-lazy-srcset")
UNREADABLE = (".svg", ".svgz", ".ico")  # drawings and icons, which image_repair does not open
UNREADABLE_TYPES = ("image/svg+xml", "image/jxl", "image/heic", "image/heif")
_CHARSET = re.compile(rb"<meta[^>]{1,200}?charset\s{0,9}=[\s\"']{0,9}([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
UNDATED = datetime(9999, 1, 1, tzinfo=UTC)  # a page of unknown date: whatever expires has expired


@dataclass(frozen=True)
class PageLimits:
    """What is read of a page.

    Args:
        tags: "<" in a page; one with more is refused, since parsing can take time quadratic in it.
        images: Images of a page that are looked at, in its order.
        address: Characters of an address.
        caption: Characters of a text; a longer one is left out.
        side: An image that is said to be smaller than this, in pixels, is left out.
        head: Meta tags that are read.
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
        captions: Text, source, and the language that the page states for it, if any.
        statements: What is said of its licence and author.
    """

    url: str
    captions: list[tuple[str, str, str | None]] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


@dataclass
class PageReading:
    """What was found in a page.

    Args:
        title: Of the page.
        language: ISO 639 code, or "und".
        language_source: Who says so: ``html``, ``meta``, ``header``, ``og``, ``vote``; empty where nobody does.
        signals: What reserves rights, or says that none are.
        links: Images with at least one text.
        statements: What is said of the page's own licence.
        skipped: Images that are no links, by reason.
    """

    title: str
    language: str
    language_source: str
    signals: list[Signal]
    links: list[PageLink]
    statements: list[Statement]
    skipped: Counter[str]


def read_page(page: Page, agent: str, limits: PageLimits) -> PageReading:
    """Read a page.

    Raises:
        PageRefused: It is too large to be parsed safely, or holds nothing.
    """
    html = decode_page(page)
    if html.count("<") > limits.tags:
        raise PageRefused("page_size", f"{html.count('<')} tags", f"more than {limits.tags} tags")
    tree = HTMLTree.parse(html)
    if tree.document is None or not html.strip():
        raise PageRefused("page_empty", "", "the page is empty")
    return _Reader(page, tree, tree.document, agent, limits).reading()


def decode_page(page: Page) -> str:
    """Bytes to text: by byte order mark, the header's charset, the page's own, UTF-8, or what the bytes look like."""
    content, marks = page.content, ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
    encoding = next((name for mark, name in marks if content.startswith(mark)), None)
    own = _CHARSET.search(content[:4096])
    for said in (page.charset, own[1].decode("ascii") if own else None):
        encoding = encoding or (map_encoding_to_html5(said, fallback_utf8=False) if said else None)
    with suppress(UnicodeDecodeError):
        encoding = encoding or (content.decode("utf-8") and "utf-8")
    # A text that is not in the encoding it is said to be in is read as UTF-8 or Windows-1252, as far as it goes.
    return bytes_to_str(content, encoding or detect_encoding(content) or "utf-8", errors="replace")


class _Reader:
    """A page while it is read."""

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
        return PageReading(
            self.text(self.tree.title or ""), language, source, self._signals(metas), kept, page_wide, self.skipped
        )

    def resolve(self, reference: str | None) -> str | None:
        """The absolute http(s) address of a reference, without fragment, or nothing."""
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
        """A text on one line, without control characters; empty where it is too long."""
        text = unicodedata.normalize("NFC", text) if len(text) <= 4 * self.limits.caption else ""
        if not text.isprintable():
            text = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
        text = " ".join(text.split())
        return text if len(text) <= self.limits.caption else ""

    def _metas(self) -> Iterator[tuple[str, str]]:
        for meta in select(self.document, "meta")[: self.limits.head]:
            content = meta.get_attribute("content")
            for attribute in ("name", "property", "http-equiv"):
                if content is not None and (name := meta.get_attribute(attribute)):
                    yield name.strip().casefold(), content[: self.limits.caption]

    def _signals(self, metas: list[tuple[str, str]]) -> list[Signal]:
        moment = self.page.moment or UNDATED
        headers = [*self.page.headers, *(pair for pair in metas if pair[0] == "x-robots-tag")]
        found = header_signals(headers, self.agent, self.page.url, moment)
        return list(dict.fromkeys(found + meta_signals(metas, self.agent, self.page.url, moment)))

    def _language(self, metas: list[tuple[str, str]]) -> tuple[str, str]:
        root = self.document.query_selector("html[lang]")
        said = [("html", root.get_attribute("lang") if root else None)]
        said += [("meta", value) for name, value in metas if name in ("content-language", "dc.language")]
        said += [("header", value) for name, value in self.page.headers if name.casefold() == "content-language"]
        said += [("og", value) for name, value in metas if name == "og:locale"]
        for source, tag in said:
            if tag and "," not in tag and (language := primary_language(tag)):
                return language, source
        plain = extract_plain_text(self.tree, alt_texts=False)[:8000]
        language = vote([plain])[0].language
        return (language, "vote") if language != UNDETERMINED else (UNDETERMINED, "")

    def _image(self, image: ElementNode) -> None:
        held = list(ancestors(image))
        picture = next((node for node in held[:2] if node.tag == "picture"), None)
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
        near = [node.get_attribute("lang") for node in (image, *held) if node.tag != "html"]
        spoken = next(filter(None, near), None)
        figure = next((node for node in held if node.tag == "figure"), None)
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
                link.captions.append((text, source, spoken))

    def _address(self, image: ElementNode, picture: ElementNode | None) -> str | None:
        """The largest form of an image that we can read; of equal ones the first."""
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
        """og:image belongs to the page; what follows it describes it (ogp.me, structured properties)."""
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
        """Give each image what is said of it; what is said of none is returned."""
        page_wide = []
        for statement in page_statements(self.tree, self.resolve):
            named = [self.links[address] for address in statement.addresses if address in self.links]
            for link in named:
                link.statements.append(statement)
                if text := self.text(statement.fields.get("caption", "")):
                    link.captions.append((text, statement.source, None))
            if not named and not statement.addresses:
                page_wide.append(statement)
        return page_wide


def srcset(value: str) -> Iterator[tuple[float, str]]:
    """Candidates of a srcset attribute with their size: width in pixels, or density below any width (WHATWG HTML)."""
    place, count = 0, 0
    while place < len(value) and count < 50:
        while place < len(value) and value[place] in " \t\n\r\f,":
            place += 1
        end = place
        while end < len(value) and value[end] not in " \t\n\r\f":
            end += 1
        reference, place, count = value[place:end], end, count + 1
        size = ""
        if reference.endswith(","):
            reference = reference.rstrip(",")
        else:
            stop = value.find(",", place)
            stop = len(value) if stop < 0 else stop
            size, place = value[place:stop].strip(), stop
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


def link_evidence(page: Page, reading: PageReading, link: PageLink) -> dict[str, Any]:
    """What stands in the column ``consent``: rights of the page, licences, and where the page can be found again."""
    licences = [("image", one) for one in link.statements] + [("page", one) for one in reading.statements]
    return {
        "page_rights": [asdict(signal) for signal in sorted(reading.signals, key=lambda one: not one.reserved)[:50]],
        "licences": [
            {"scope": scope, "source": one.source, **{k: v for k, v in one.fields.items() if k != "caption"}}
            for scope, one in licences[:20]
        ],
        "page": {"archive": page.archive, "record": page.record, "fetched_at": page.date},
    }

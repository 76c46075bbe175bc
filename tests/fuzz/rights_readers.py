"""Readers of pages, and of rights: robots.txt, tdmrep.json, headers, HTML, WARC, metadata of images."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, PngImagePlugin
from toys.images import deep_png, encoded_image, rotated_jpeg, two_coloured_image
from toys.signed_images import sign, training_mining
from toys.warc import WarcFile

from data_tools.network.http_body import retry_after, unpack
from data_tools.network.image_fetch import FetchSetting, TooManyBytesError
from data_tools.pages.crawl_rows import link_rows, page_row
from data_tools.pages.page_links import PageLimits, read_page
from data_tools.pages.warc_pages import Page, PageRefused, warc_pages
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.reservations import (
    ai_txt_signals,
    header_signals,
    meta_signals,
    robots_delay,
    robots_signals,
    tdmrep_signals,
)
from data_tools.rights.robots_rules import MOST_BYTES, RobotsRules
from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image
from fuzz.hunt import Reader
from fuzz.mutation import damage_bytes, damage_json, damage_png

Read = Callable[[bytes], object]
SETTING = FetchSetting("links", "raw", "Agent", "")
URL = "https://site.example/dir/page.html?a=1"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROBOTS = b"""User-agent: *
Crawl-delay: 2
Disallow: /private/*.jpg$
Allow: /private/open
Content-Usage: /dir/ train-ai=n
Content-Signal: search=yes, ai-train=no
DisallowAITraining: /dir

User-agent: GPTBot
Disallow: /
Sitemap: https://site.example/map.xml
"""
TDMREP = [
    {"location": "/dir/*", "tdm-reservation": 1, "tdm-policy": "https://site.example/p.json"},
    {"location": "/", "tdm-reservation": 0},
]
HEADERS = b"""X-Robots-Tag: noai, otherbot: noindex, unavailable_after: Sat, 01 Jan 2022 00:00:00 GMT
TDM-Reservation: 1
TDM-Policy: https://site.example/p
Content-Usage: train-ai=n;exact, search
Content-Language: de
Link: <https://site.example/l.xml>; rel="license"; type="application/rsl+xml"
Retry-After: 120
"""
PAGE = b"""<!doctype html><html lang=de><head><meta charset=utf-8><base href="/img/"><title>Wiese</title>
<meta name=robots content="noai, unavailable_after: 2030-01-01"><meta property=og:image content=o.jpg>
<meta property=og:image:alt content="ein Pferd"><meta name="tdm-reservation" content="1">
<link rel=license href="https://creativecommons.org/licenses/by/4.0/">
<script type="application/ld+json">{"@type": ["ImageObject"], "contentUrl": "a.jpg",
"license": "https://creativecommons.org/publicdomain/zero/1.0/",
"creator": {"@type": "Person", "name": "A"}, "caption": "x",
"@graph": [{"@type": "ImageObject", "url": "b.jpg"}]}</script></head>
<body><figure itemscope itemtype="https://schema.org/ImageObject"><picture><source
srcset="w.webp 900w, v.webp 2x"><img src=a.jpg
srcset="m.jpg 640w"
alt="graue Pferde" width=640 height=480></picture><figcaption>Pferde auf der Wiese</figcaption>
<span itemprop=creator itemscope><meta itemprop=name content=A></span><a rel=license href=l>l</a></figure>
<noscript><img data-src="n.jpg" alt="x"></noscript></body></html>"""
PAGE_WORDS = (
    *(
        b"<img ",
        b"src=",
        b"srcset=",
        b"alt=",
        b"<base href=",
        b"<script type=application/ld+json>",
        b"</script>",
        b"<table>",
    ),
    *(
        b"itemscope ",
        b"itemprop=",
        b"<meta ",
        b"charset=utf-16",
        b"<svg>",
        b"<template>",
        b"<noscript>",
        b"http://[",
        b"<figure>",
    ),
)
PACKET = (
    b'<?xpacket begin="" id="W5M0"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
    b'xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Description rdf:about="" plus:DataMining="DMI-PROHIBITED">'
    b"<dc:rights><rdf:Alt><rdf:li>no ai training</rdf:li></rdf:Alt></dc:rights></rdf:Description></rdf:RDF></x:xmpmeta>"
)
XMP_WORDS = (
    b"<rdf:RDF ",
    b"</rdf:RDF>",
    b"xmlns:",
    b"DataMining",
    b"reservation",
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>",
    b"&a;",
)


def robots(folder: Path) -> Read:
    """Read robots.txt and ai.txt."""

    def read(data: bytes) -> None:
        text = data[:MOST_BYTES].decode("utf-8", "replace")
        robots_signals(text, 200, URL, "leam_mm")
        robots_delay(text, "leam_mm")
        ai_txt_signals(text, URL, "leam_mm")

    return read


def tdmrep(folder: Path) -> Read:
    """Read tdmrep.json."""
    return lambda data: tdmrep_signals(data[:MOST_BYTES].decode("utf-8", "replace"), URL)


def headers(folder: Path) -> Read:
    """Read headers, and the same words as meta tags."""

    def read(data: bytes) -> None:
        lines = data.decode("latin-1").split("\n")
        pairs = [(name, value) for name, _, value in (line.partition(":") for line in lines)]
        header_signals(pairs, "leam_mm", URL, NOW)
        meta_signals(pairs, "leam_mm", URL, NOW)
        for _, value in pairs:
            retry_after(value, 0.0)

    return read


def visit_seeds(folder: Path) -> list[bytes]:
    """Return the evidence of a visit to an origin."""
    files = {
        path: {"status": 200, "url": f"https://site.example{path}", "text": ""} for path in ("/robots.txt", "/ai.txt")
    }
    files["/.well-known/tdmrep.json"] = {"status": 404, "url": "https://site.example/.well-known/tdmrep.json"}
    visit = {
        "origin": "https://site.example",
        "agent": SETTING.agent,
        "asked": datetime.now(UTC).isoformat(),
        "files": files,
    }
    return [json.dumps(visit).encode() + b"\n"]


def visits(folder: Path) -> Read:
    """Read the evidence of visits that lies beside a table."""
    from leam_mm.data.legal_basis import LegalBasis

    basis = next(iter(LegalBasis))

    path = folder / "origins.jsonl"
    rules = RobotsRules(SETTING, path)  # one for all inputs: each has a thread
    rules._ask = lambda origin: json.loads(visit_seeds(folder)[0])  # type: ignore[method-assign]  # no network

    def read(data: bytes) -> None:
        path.write_bytes(data)
        rules._read = 0
        rules._offsets.clear()
        rules._recent.clear()
        rules.decide(URL, basis)
        rules.evidence(URL)
        rules.crawl_delay(URL)

    return read


def body_seeds(folder: Path) -> list[bytes]:
    """Return compressed bodies."""
    import gzip
    import zlib

    return [gzip.compress(PAGE, mtime=0), zlib.compress(PAGE), zlib.compress(PAGE)[2:-4]]


def page(folder: Path) -> Read:
    """Read a page and make rows of its images."""

    def read(data: bytes) -> None:
        one = Page(0, URL, data, headers=[("Content-Language", "de")], fetched_at=NOW)
        reading = read_page(one, "leam_mm", PageLimits())
        for row in link_rows(one, reading, "", True):
            json.dumps(row, ensure_ascii=False).encode()
        page_row(one, reading)

    return read


def warc_seeds(folder: Path) -> list[bytes]:
    """Return WARC files, plain and compressed."""
    folder.mkdir(exist_ok=True)
    contents = []
    for ending in ("", ".gz", ".zst"):
        path = folder / f"a.warc{ending}"
        with WarcFile(path) as file:
            file.add(URL, PAGE)
            file.add("http://b.example/", b"<html>b</html>", headers=(("Content-Encoding", "gzip"),))
        contents.append(path.read_bytes())
    return contents


def warc(folder: Path) -> Read:
    """Read a WARC file."""

    def read(data: bytes) -> None:
        ending = {b"\x1f\x8b": ".gz", b"(\xb5": ".zst"}.get(data[:2], "")
        path = folder / f"a.warc{ending}"
        path.write_bytes(data)
        for one in warc_pages(path, 200_000):
            page_row(one, one.refused or PageRefused("x", "x", "x"))

    return read


def file_seeds(folder: Path) -> list[bytes]:
    """Return image files with metadata of all kinds."""
    exif = Image.Exif()
    exif[0x8298], exif[0x0112] = "all rights reserved, no ai training", 6
    notes = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x15\x1c\x02t\0\x10no data mining x"
    image, texts = two_coloured_image(), PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", PACKET.decode(), zip=True)
    texts.add_text("Copyright", "no data mining")
    jpeg = encoded_image(image, "JPEG", exif=exif, xmp=PACKET)
    jpeg = jpeg[:2] + b"\xff\xed" + (len(notes) + 2).to_bytes(2, "big") + notes + jpeg[2:]
    webp, png = (
        encoded_image(image, "WEBP", exif=exif, xmp=PACKET),
        encoded_image(image, "PNG", pnginfo=texts, exif=exif),
    )
    return [jpeg, png, webp]


def signed_seeds(folder: Path) -> list[bytes]:
    """Return a signed image."""
    return [
        sign(
            encoded_image(two_coloured_image(), "JPEG"),
            assertions=[training_mining(ai_generative_training="notAllowed")],
        )
    ]


def picture_seeds(folder: Path) -> list[bytes]:
    """Return image files of all kinds that are repaired."""
    image = two_coloured_image()
    frames = [image.convert("P"), image.rotate(90).convert("P")]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    kinds = [encoded_image(image, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    grey, clear = image.convert("LA"), image.convert("P")
    return [
        *kinds,
        animated.getvalue(),
        rotated_jpeg(),
        deep_png(1, 300),
        deep_png(3, 9),
        encoded_image(grey),
        encoded_image(clear),
    ]


def repaired(folder: Path) -> Read:
    """Repair an image as the downloader does."""
    rules = [
        ImageRule(max_pixels=4_000_000),
        ImageRule(16, "center_crop", "webp", 4_000_000),
        ImageRule(16, "border", "jpg", 4_000_000),
    ]

    def read(data: bytes) -> None:
        for rule in rules:
            repair_image(data, rule)

    return read


IMAGES = (damage_png, damage_bytes)
READERS = [
    Reader(
        "robots",
        lambda folder: [ROBOTS],
        robots,
        words=(b"User-agent:", b"Disallow:", b"Allow:", b"Crawl-delay:", b"*" * 50),
    ),
    Reader("tdmrep", lambda folder: [json.dumps(TDMREP).encode()], tdmrep, (damage_json, damage_bytes)),
    Reader(
        "headers",
        lambda folder: [HEADERS],
        headers,
        words=(b"X-Robots-Tag:", b"TDM-Reservation:", b"unavailable_after:", b"Retry-After:"),
    ),
    Reader("visits", visit_seeds, visits, (damage_json, damage_bytes)),
    Reader(
        "body", body_seeds, lambda folder: lambda data: unpack(data, 100_000), allowed=(ValueError, TooManyBytesError)
    ),
    Reader("page", lambda folder: [PAGE], page, allowed=(PageRefused,), words=PAGE_WORDS, seconds=10.0),
    Reader(
        "warc",
        warc_seeds,
        warc,
        allowed=(PageRefused,),
        words=(b"WARC/1.0\r\n", b"Content-Length: ", b"\r\n\r\n", b"HTTP/1.1 200 OK"),
    ),
    Reader("file_rights", file_seeds, lambda folder: rights_in_file, IMAGES, words=XMP_WORDS),
    Reader("content_credentials", signed_seeds, lambda folder: rights_in_file),
    Reader("image", picture_seeds, repaired, IMAGES, allowed=(ImageFault,), seconds=5.0),
]

import json
import time
from datetime import UTC, datetime

import pytest

from data_tools.pages.crawl_rows import image_licence
from data_tools.pages.page_links import PageLimits, PageReading, decode_page, link_evidence, read_page, srcset
from data_tools.pages.warc_pages import Page, PageRefused
from data_tools.rights.licence_address import read_licence

URL = "https://site.example/dir/page.html"


def read(html: str | bytes, limits: PageLimits | None = None, **page: object) -> PageReading:
    content = html.encode() if isinstance(html, str) else html
    return read_page(Page(0, URL, content, **page), "leam_mm", limits or PageLimits())  # type: ignore[arg-type]


def found(html: str) -> dict[str, list[tuple[str, str]]]:
    return {link.url: [(text, source) for text, source, _ in link.captions] for link in read(html).links}


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ('<img src="a.jpg" alt="x">', "https://site.example/dir/a.jpg"),
        ('<img src=" /a b.jpg\n" alt="x">', "https://site.example/a%20b.jpg"),
        ('<img src="//cdn.example/a.jpg#top" alt="x">', "https://cdn.example/a.jpg"),
        ('<base href="/img/"><img src="a.jpg" alt="x">', "https://site.example/img/a.jpg"),
        ('<base href="javascript:1"><img src="a.jpg" alt="x">', "https://site.example/dir/a.jpg"),
        ('<img src="s.jpg" srcset="m.jpg 640w, l.jpg 1280w, t.jpg 80w" alt="x">', "https://site.example/dir/l.jpg"),
        ('<img src="s.jpg" srcset="m.jpg, l.jpg 2x" alt="x">', "https://site.example/dir/l.jpg"),
        ('<img src="data:image/gif;base64,AA" data-src="real.jpg" alt="x">', "https://site.example/dir/real.jpg"),
        ('<img src="blank.gif" data-original="real.jpg" alt="x">', "https://site.example/dir/real.jpg"),
        ('<img data-srcset="a.jpg 1x, b.jpg 3x" src="blank.gif" alt="x">', "https://site.example/dir/b.jpg"),
        (
            '<picture><source srcset="w.webp 900w"><img src="a.jpg" alt="x"></picture>',
            "https://site.example/dir/w.webp",
        ),
        (
            '<picture><source type="image/jxl" srcset="w.jxl 900w"><img src="a.jpg" alt="x"></picture>',
            "https://site.example/dir/a.jpg",
        ),
        ('<noscript><img src="n.jpg" alt="x"></noscript>', "https://site.example/dir/n.jpg"),
        ('<img src="a.jpg?x=1&amp;y=ü" alt="x">', "https://site.example/dir/a.jpg?x=1&y=ü"),
    ],
)
def test_address_of_an_image(image: str, url: str) -> None:
    assert found(image) == {url: [("x", "alt")]}


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ('<img src="data:image/png;base64,AA" alt="x">', "no address"),
        ('<img src="file:///etc/passwd" alt="x">', "no address"),
        ('<img src="javascript:alert(1)" alt="x">', "no address"),
        ('<img src="http://[::1" alt="x">', "no address"),
        ('<img src="http://a.example:99999/a.jpg" alt="x">', "no address"),
        ('<img alt="x">', "no address"),
        (f'<img src="/{"a" * 3000}" alt="x">', "no address"),
        ('<img src="logo.svg?v=1" alt="x">', "drawing or icon"),
        ('<img src="a.gif" width="1" height="1px" alt="x">', "small"),
        ('<img src="a.jpg">', "no text"),
        ('<img src="a.jpg" alt="  \n ">', "no text"),
    ],
)
def test_images_that_give_no_link(image: str, reason: str) -> None:
    reading = read(image)
    assert not reading.links and reading.skipped == {reason: 1}


def test_texts_of_an_image_with_their_sources() -> None:
    html = """<html lang="de"><head><meta property="og:image" content="/dir/a.jpg">
    <meta property="og:image:alt" content="OG">
    <meta property="og:title" content="Seite"></head><body><figure><img src="a.jpg" alt=" Ein &amp;  Bild " title="T">
    <figcaption>Foto:\n <b>Kirche</b></figcaption></figure><img src="a.jpg" alt="T">
    <img src="b.jpg" alt="two" lang="en">
    <div lang="fr"><p><img src="c.jpg" alt="trois"></p></div></body></html>"""
    links = {link.url.rpartition("/")[2]: link.captions for link in read(html).links}
    assert links["a.jpg"] == [
        ("Ein & Bild", "alt", None),
        ("Foto: Kirche", "figcaption", None),
        ("T", "title", None),
        ("Seite", "og:title", None),
        ("OG", "og:image:alt", None),
    ]
    assert links["b.jpg"] == [("two", "alt", "en")] and links["c.jpg"] == [("trois", "alt", "fr")]


def test_srcset_is_read_as_in_the_standard() -> None:
    assert list(srcset("a.jpg 1x, b,c.jpg 2x")) == [(1e-6, "a.jpg"), (2e-6, "b,c.jpg")]
    assert list(srcset(" a.jpg, b.jpg 100w,c.jpg 50w ")) == [(1e-6, "a.jpg"), (100.0, "b.jpg"), (50.0, "c.jpg")]
    assert [size for size, _ in srcset("a -5w, b nanw, c 1e99w, d 10h")] == [1e-6] * 4
    assert len(list(srcset("a.jpg 1x, " * 10_000))) == 50


@pytest.mark.parametrize(
    ("html", "headers", "expected"),
    [
        ('<html lang="pt-BR">', [], ("pt", "html")),
        ('<meta http-equiv="Content-Language" content="fi">', [], ("fi", "meta")),
        (
            '<html lang=""><meta http-equiv="content-language" content="de, en">',
            [("Content-Language", "sv")],
            ("sv", "header"),
        ),
        ('<meta property="og:locale" content="no_NO">', [], ("nb", "og")),
        ("<p>Vanha kirkko lumisella mäellä, kuvattu talvella vuonna 1930", [], ("fi", "vote")),
        ("<p>1234", [], ("und", "")),
    ],
)
def test_language_of_a_page(html: str, headers: list[tuple[str, str]], expected: tuple[str, str]) -> None:
    reading = read(html + '<img src="a.jpg" alt="x">', headers=headers)
    assert (reading.language, reading.language_source) == expected


def test_every_signal_of_the_page_is_kept() -> None:
    html = """<meta name="robots" content="index, noai"><meta name="LEAM_MM" content="noimageai">
    <meta name="googlebot" content="noindex"><meta name="tdm-reservation" content="1">
    <meta name="tdm-policy" content="https://site.example/policy.json">
    <meta http-equiv="X-Robots-Tag" content="noml">"""
    headers = [("X-Robots-Tag", "otherbot: none"), ("TDM-Reservation", "1"), ("Content-Usage", "train-ai=n")]
    signals = read(html, headers=headers, fetched_at=datetime(2026, 1, 1, tzinfo=UTC)).signals
    kinds = sorted(signal.kind for signal in signals if signal.reserved)
    robots = ["header:x-robots-tag", "meta:robots", "meta:robots"]
    assert kinds == ["header:content-usage", "header:tdm-reservation", *robots, "meta:tdm-reservation"]
    assert all(signal.source == URL for signal in signals)


def test_expiry_dates_have_passed_on_a_page_without_date() -> None:
    html = '<meta name="robots" content="unavailable_after: 25 Jun 2030 15:00:00 GMT">'
    assert [signal.reserved for signal in read(html).signals] == [True]
    dated = read(html, fetched_at=datetime(2026, 1, 1, tzinfo=UTC)).signals
    assert not any(signal.reserved for signal in dated)


@pytest.mark.parametrize(
    ("content", "charset", "text"),
    [
        ("<p>žluťoučký".encode("cp1250"), "windows-1250", "<p>žluťoučký"),
        ('<meta charset="iso-8859-7"><p>κύκλος'.encode("iso-8859-7"), None, '<meta charset="iso-8859-7"><p>κύκλος'),
        ("<p>ķīlis".encode("utf-16"), None, "<p>ķīlis"),
        ("\ufeff<p>é".encode(), "iso-8859-1", "<p>é"),
        ("<p>größer".encode("latin-1"), "utf-8", "<p>größer"),
        ("<p>größer".encode(), "no-such-charset", "<p>größer"),
    ],
)
def test_encodings(content: bytes, charset: str | None, text: str) -> None:
    assert decode_page(Page(0, URL, content, charset)) == text


def test_licences_hold_for_the_images_they_name() -> None:
    json_ld = {
        "@context": "https://schema.org",
        "@graph": [
            {
                "@type": "ImageObject",
                "contentUrl": "a.jpg",
                "license": "https://creativecommons.org/licenses/by/4.0/",
                "creditText": "Museum",
                "creator": [{"@type": "Person", "name": "A. Maler"}],
                "caption": "Ein Bild",
            },
            {"@type": "WebPage", "license": {"@id": "https://site.example/terms"}},
        ],
    }
    html = f"""<script type="application/ld+json">{json.dumps(json_ld)}</script>
    <script type="application/ld+json">{{</script>
    <img src="a.jpg" alt="a"><img src="b.jpg" alt="b"><figure><img src="c.jpg" alt="c">
    <a rel="license" href="https://creativecommons.org/publicdomain/zero/1.0/">CC0</a></figure>
    <div itemscope itemtype="https://schema.org/ImageObject"><img itemprop="contentUrl" src="d.jpg" alt="d">
    <span itemprop="creator" itemscope itemtype="https://schema.org/Person">
    <meta itemprop="name" content="D. Foto"></span>
    <a itemprop="license" href="https://creativecommons.org/licenses/by-sa/4.0/">x</a></div>
    <a rel="license" about="b.jpg" href="https://creativecommons.org/licenses/by-nc/4.0/">y</a>
    <footer><a rel="nofollow license" href="/terms#a">terms</a></footer>"""
    reading = read(html)
    stated = {
        link.url[-5]: [(one.source, one.fields.get("license")) for one in link.statements] for link in reading.links
    }
    assert stated == {
        "a": [("json-ld", "https://creativecommons.org/licenses/by/4.0/")],
        "b": [("rel=license", "https://creativecommons.org/licenses/by-nc/4.0/")],
        "c": [("rel=license", "https://creativecommons.org/publicdomain/zero/1.0/")],
        "d": [("microdata", "https://creativecommons.org/licenses/by-sa/4.0/")],
    }
    first, fourth = reading.links[0], reading.links[3]
    assert first.statements[0].fields["creator"] == "A. Maler" and ("Ein Bild", "json-ld", None) in first.captions
    assert fourth.statements[0].fields["creator"] == "D. Foto"
    assert {one.fields["license"] for one in reading.statements} == {"https://site.example/terms"}
    evidence = link_evidence(Page(0, URL, archive="a.warc.gz"), reading, first)
    assert [one["scope"] for one in evidence["licences"]] == ["image", "page", "page"]


BY = "https://creativecommons.org/licenses/by/4.0/"
SCRIPT, SAID = '<script type="application/ld+json">{}</script>', '{{"contentUrl": "a.jpg", "license": "{}"'
UNREADABLE = {
    "cut": SAID,
    "without quotes": "{{license: {}}}",
    "nested": "[" * 100_000 + SAID,
    "long": SAID + "}}" + " " * 300_000,
    "wide": "[" + "{{}}," * 25_000 + SAID + "}}]",
    "twenty-first": "{{}}" + "</script><script type=application/ld+json>{{}}" * 20 + "</script>" + SCRIPT.format(SAID),
}


@pytest.mark.parametrize("name", sorted(UNREADABLE))
@pytest.mark.parametrize("licence", [BY, "https://site.example/all-rights-reserved"])
def test_a_licence_in_json_ld_that_cannot_be_read_permits_nothing(name: str, licence: str) -> None:
    """It may restrict an image that the rest of the page permits, and is no permission itself."""
    html = SCRIPT.format(UNREADABLE[name].format(licence))
    figure = f'<figure><img src="a.jpg" alt="a"><a rel="license" href="{BY}">by</a></figure>'
    for page in (html + figure, html + '<img src="a.jpg" alt="a">'):
        (link,) = read(page).links
        stated = image_licence(link)
        assert stated is not None and stated.basis is None and "cannot be read" in stated.name
    (link,) = read(figure + SCRIPT.format("{ broken")).links  # names no licence
    assert image_licence(link) == read_licence(BY)


@pytest.mark.parametrize("text", ['{"tdm-reservation": 1}', '{"a": [{"tdm:reservation": "1"}]', "{tdmReservation: 1"])
def test_a_reservation_in_json_ld_is_seen_and_none_is_lifted(text: str) -> None:
    (signal,) = read(SCRIPT.format(text) + '<img src="a.jpg" alt="a">').signals
    assert signal.reserved and signal.kind == "json-ld:tdm-reservation"
    assert read(SCRIPT.format(text.replace("1", "0"))).signals == []


HOSTILE = {
    "deep": "<div>" * 90_000 + '<img src="a.jpg" alt="x">',
    "deep figures": "<figure>" * 50_000 + '<img src="a.jpg" alt="x">' * 500,
    "many images": '<img src="a.jpg" alt="x">' * 20_000,
    "many sources": "<picture>" + '<source srcset="a 1w">' * 50_000 + '<img src="a.jpg" alt="x"></picture>',
    "long srcset": '<img alt="x" srcset="' + "a.jpg 1w," * 100_000 + '">',
    "commas": '<img alt="x" srcset="' + "," * 1_000_000 + '">',
    "deep json": '<script type="application/ld+json">' + "[" * 100_000 + "</script>",
    "wide json": '<script type="application/ld+json">[' + "{}," * 80_000 + "{}]</script>",
    "many items": '<div itemscope itemtype="https://schema.org/ImageObject"><a itemprop="license" href="/x">' * 5_000,
    "long text": "<p>" + "Wort " * 400_000 + '<img src="a.jpg" alt="' + "x" * 1_000_000 + '">',
    "control": '<img src="a.jpg" alt="a\x00b\x1b[31mc">',
    "combining": '<img src="a.jpg" alt="a' + "\u0301" * 20_000 + '">',
    "meta": '<meta name="robots" content="' + "a:" * 100_000 + '">' * 2 + '<meta name="robots" content="noai">' * 2000,
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_pages_take_little_time(name: str) -> None:
    begin = time.process_time()
    reading = read(HOSTILE[name])
    assert time.process_time() - begin < 4
    for link in reading.links:
        assert all(text.isprintable() and len(text) <= 5000 for text, _, _ in link.captions)


def test_too_many_tags_are_refused_before_parsing() -> None:
    with pytest.raises(PageRefused, match="more than 100000 tags"):
        read("<i><form>" * 60_000)
    with pytest.raises(PageRefused, match="empty"):
        read(b"")


ZERO, NC = "https://creativecommons.org/publicdomain/zero/1.0/", "https://creativecommons.org/licenses/by-nc/4.0/"
A, B = "https://a.example/a.jpg", "https://a.example/b.jpg"
ITEM = '<div itemscope itemtype="https://schema.org/ImageObject"><meta itemprop="url contentUrl" content="{}">{}</div>'


def _json_ld(licence: str) -> str:
    return f'<script type="application/ld+json">{{"@type": "ImageObject", "contentUrl": "{A}", {licence}}}</script>'


def _link(licence: str, more: str = "") -> str:
    return f'<a rel="license" itemprop="license" href="{licence}" {more}>licence</a>'


@pytest.mark.parametrize(
    ("html", "names"),
    [
        (_json_ld(f'"license": ["{ZERO}", "{NC}"]'), {ZERO, NC}),
        (_json_ld(f'"license": ["{ZERO}", "All rights reserved"]'), {ZERO, "All rights reserved"}),
        (_json_ld(f'"license": "{NC}", "license": "{ZERO}"'), {ZERO, NC}),
        (_json_ld(f'"license": {{"name": "{ZERO}", "url": "{NC}"}}'), {ZERO, NC}),
        (_json_ld(f'"license": {{"name": "CC0", "url": "{ZERO}"}}'), {ZERO}),
        (_json_ld('"license": {"name": "CC 0"}'), {"CC 0"}),
        (ITEM.format(A, _link(ZERO) + _link(NC)), {ZERO, NC}),
        (f'<figure><img src="{A}" alt="a">{_link(ZERO)}{_link("mailto:me")}</figure>', {ZERO, "mailto:me"}),
        (f'<figure><img src="{A}" alt="a"><figure>{_link(ZERO)}</figure></figure>', set()),
        (f'<figure><img src="{A}" alt="a">{_link(ZERO, f"about={B}")}</figure>', set()),
        (f'<figure><img src="{A}" alt="a">{_link(ZERO)}{_link(NC, f"about={A}")}</figure>', {ZERO, NC}),
    ],
)  # fmt: skip
def test_all_licences_of_an_image_and_none_of_another(html: str, names: set[str]) -> None:
    """The strictest of them counts later; see crawl_rows."""
    links = {link.url: link for link in read(f'<img src="{A}" alt="a"><img src="{B}" alt="b">{html}').links}
    assert {one.fields["license"] for one in links[A].statements if "license" in one.fields} == names
    assert (ZERO in {one.fields.get("license") for one in links[B].statements}) is (f"about={B}" in html)

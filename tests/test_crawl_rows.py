import json
from collections import Counter

from data_tools.pages.crawl_rows import LINK_SCHEMA, attribution, image_licence, link_rows, page_row
from data_tools.pages.page_licences import Statement
from data_tools.pages.page_links import PageLimits, PageLink, PageReading, read_page
from data_tools.pages.warc_pages import Page, PageRefused
from data_tools.rights.reservations import Signal
from leam_mm.data.ledger import link_uid

ZERO, BY = "https://creativecommons.org/publicdomain/zero/1.0/", "https://creativecommons.org/licenses/by/4.0/"
PAGE = Page(0, "https://a.example/", b"<p>", archive="a.warc", record="urn:1")


def link(*licences: str, **fields: str) -> PageLink:
    said = [Statement(["x"], "json-ld", {"license": licence}) for licence in licences]
    return PageLink("https://a.example/x.jpg", [("A map", "alt", None)], [*said, Statement(["x"], "json-ld", fields)])


def reading(*links: PageLink, reserved: bool = False, language: str = "en") -> PageReading:
    signals = [Signal("meta:robots", "noai", PAGE.url, reserved)]
    page_wide = [Statement([], "rel=license", {"license": ZERO})]
    return PageReading("T", language, "html", signals, list(links), page_wide, Counter())


def test_a_basis_needs_a_licence_of_the_image_and_no_reservation() -> None:
    cases = [
        link(ZERO),
        link(BY),
        link(ZERO, BY),
        link(ZERO, "https://a.example/terms"),
        link(ZERO, "all mine"),
        link(),
    ]
    rows = link_rows(PAGE, reading(*cases), "", True)
    assert [row["legal_basis"] for row in rows] == ["public_domain", "licensed", "licensed", None, None, None]
    assert [row["licence"] for row in rows][:3] == ["CC0-1.0", "CC-BY-4.0", "CC-BY-4.0"] and rows[5]["licence"] is None
    for other in (
        link_rows(PAGE, reading(*cases, reserved=True), "", True),
        link_rows(PAGE, reading(*cases), "", False),
    ):
        assert not any(row["legal_basis"] for row in other)
        assert [row["licence"] for row in other] == [row["licence"] for row in rows]


def test_a_licence_counts_on_pages_of_the_same_site_alone() -> None:
    """What the page of a stranger states about an image is a claim: kept as evidence, without effect."""
    cases = {
        ("https://a.example/", "https://a.example/x.jpg"): True,
        ("https://www.a.example/", "http://img.A.example:8080/x.jpg"): True,
        ("https://a.example.evil.example/", "https://a.example/x.jpg"): False,
        ("https://evil.example/", "https://a.example/x.jpg"): False,
        ("https://one.github.io/", "https://two.github.io/x.jpg"): False,
        ("https://b.co.uk/", "https://a.co.uk/x.jpg"): False,
        ("https://one.wordpress.com/", "https://two.wordpress.com/x.jpg"): False,
        ("https://one.wordpress.com/", "https://img.one.wordpress.com/x.jpg"): True,
        ("https://one.wordpress.com/", "https://one.files.wordpress.com/x.jpg"): False,
        ("https://one.tumblr.com/", "https://64.media.tumblr.com/x.jpg"): False,
        ("https://tumblr.com/", "https://one.tumblr.com/x.jpg"): False,
        ("https://storage.googleapis.com/one/", "https://storage.googleapis.com/two/x.jpg"): False,
        ("https://sites.google.com/one/", "https://sites.google.com/two/x.jpg"): False,
        ("https://evil.example\\@a.example/", "https://a.example/x.jpg"): False,
        ("http://127.0.0.1/", "http://127.0.0.2/x.jpg"): False,
        ("http://127.0.0.1:1/", "http://127.0.0.1:2/x.jpg"): True,
        ("https://example/", "https://a.example/x.jpg"): False,
    }
    for (page_url, url), own in cases.items():
        said = [Statement([url], source, {"license": ZERO}) for source in ("json-ld", "microdata", "rel=license")]
        (row,) = link_rows(
            Page(0, page_url, b"<p>", archive="a.warc", record="urn:1"),
            reading(PageLink(url, [("A map", "alt", None)], said)),
            "",
            True,
        )
        assert (row["licence"], row["legal_basis"]) == (("CC0-1.0", "public_domain") if own else (None, None)), url
        kept = [one for one in json.loads(row["consent"])["licences"] if one["scope"] != "page"]
        assert {(one["scope"], one["license"]) for one in kept} == {("image" if own else "claim", ZERO)}


def test_a_licence_without_address_allows_nothing() -> None:
    licence = image_licence(link("CC BY 4.0"))
    assert licence is not None and licence.name == "CC BY 4.0" and licence.basis is None


def test_names_to_credit_come_once() -> None:
    said = [
        Statement([], "json-ld", {"creator": "A", "creditText": "Museum"}),
        Statement([], "microdata", {"creator": "A"}),
    ]
    assert attribution(said) == "Museum; A" and attribution([]) is None


def test_a_page_of_another_site_credits_nobody() -> None:
    html = b"""<script type="application/ld+json">{"@type": "ImageObject", "contentUrl": "https://museum.example/a.jpg",
        "creator": {"@type": "Person", "name": "A. Claimant"}}</script>
        <img src="https://museum.example/a.jpg" alt="x">"""
    for host, expected in (("www.museum.example", "A. Claimant"), ("stranger.example", None)):
        page = Page(0, f"https://{host}/", html)
        (row,) = link_rows(page, read_page(page, "LeamBot", PageLimits()), "", True)
        assert row["attribution"] == expected and "A. Claimant" in row["consent"]


def test_captions_have_languages_and_the_row_its_name() -> None:
    several = PageLink(
        "https://a.example/x.jpg", [("logo", "alt", None), ("Vanha kirkko lumisella mäellä", "title", "fi")]
    )
    row = link_rows(PAGE, reading(several), "museum", True)[0]
    assert set(row) == set(LINK_SCHEMA.names) and row["source"] == "museum" and row["language"] == "en"
    assert [(one["language"], one["source"]) for one in json.loads(row["captions"])] == [("en", "alt"), ("fi", "title")]
    assert row["uid"] == link_uid("https://a.example/x.jpg", "https://a.example/", "logo")


def test_rows_of_the_ledger() -> None:
    kept = page_row(PAGE, reading(link(), reserved=True))
    assert kept["kept"] and kept["value"] == "1 links" and kept["evidence"]["reserving"] == ["meta:robots"]
    refused = page_row(Page(1, "http://[::1"), PageRefused("page_address", "x", "no address"))
    assert (refused["rule"], refused["kept"], refused["domain"]) == ("page_address", False, None)

"""One normal form of hosts and addresses, in every list that compares them."""

import hashlib
import random
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pytest

from data_tools.download.image_download import DownloadSettings
from data_tools.links.blocklists import DigestList, DomainList
from data_tools.links.link_rows import LinkRows
from data_tools.links.link_rules import LinkRules, LinkRuleSettings
from data_tools.links.link_sources import LinkSources
from data_tools.links.withdrawn_lists import WithdrawnLists
from data_tools.network.link_address import LinkRefused, check_link, host_of, normal_host, normal_url
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.reservation_grammar import origin_of
from leam_mm.errors import UserError

NAMES = ["images.example.org", "bücher.example", "straße.example", "ni.日本語.example", "i❤.example", "a_b.example"]
ADDRESSES = ["93.184.216.34", "8.8.8.8"]


def spellings_of_name(host: str, generator: random.Random) -> str:
    """Write a name as a stranger could."""
    letters = []
    for letter in host:
        choices = [letter, letter.upper() if letter != "ß" else letter, quote(letter, safe="")]
        if letter.isascii() and letter.isalnum():
            choices += [chr(ord(letter) + 0xFEE0), f"%{ord(letter):02X}", f"{letter}\u00ad"]  # full width, soft hyphen
        if letter == ".":
            choices += ["。", "．", "｡", "%2e", "%E3%80%82"]
        letters.append(generator.choice(choices))
    return "".join(letters) + generator.choice(["", ".", "。", "%2E"])


def spellings_of_address(host: str, generator: random.Random) -> str:
    """Write an IPv4 address in one of the forms that libraries understand."""
    a, b, c, d = map(int, host.split("."))
    number = generator.choice([str, hex, lambda value: f"0{value:o}", lambda value: f"0x00{value:X}"])
    parts = generator.choice([[a, b, c, d], [a, b, c << 8 | d], [a, b << 16 | c << 8 | d]])
    whole = generator.choice([parts, parts, [a << 24 | b << 16 | c << 8 | d]])
    mapped = [f"[::ffff:{host}]", f"[0:0:0:0:0:ffff:{a << 8 | b:x}:{c << 8 | d:X}]", f"[::FFFF:{host}%25eth0]"]
    text = ".".join(number(part) for part in whole)
    return generator.choice([text, text + ".", quote(text), text.replace(".", "。"), *mapped])


def spellings(host: str, count: int) -> list[str]:
    """Write a host in many ways, always the same ones."""
    generator = random.Random(host)
    spell = spellings_of_address if host in ADDRESSES else spellings_of_name
    return [spell(host, generator) for _ in range(count)]


@pytest.mark.parametrize("host", NAMES + ADDRESSES)
def test_all_spellings_of_a_host_are_one(host: str) -> None:
    normal = normal_host(host)
    assert normal.isascii() and normal_host(normal) == normal
    for text in spellings(host, 500):
        assert normal_host(text) == normal, text
        for url in (f"http://{text}/a", f"HTTPS://{text}:443/a#b", f"http://user:word@{text}:080/a"):
            assert host_of(url) == normal, url


def test_ipv6_has_one_spelling() -> None:
    forms = ["2606:2800:220:1::1", "[2606:2800:0220:0001:0:0:0:1]", "2606:2800:220:1:0::1%eth0", "[2606:2800:220:1::1]"]
    assert {normal_host(form) for form in forms} == {"2606:2800:220:1::1"}


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a..b", "a b", "a\tb", "a\x00b", "a%00b", "a/b", "a%2fb", "a\\b", "a%5Cb", "a?b", "a#b", "a@b",
        "a%40b", "a:80", "256.1.1.1", "1.2.3.4.5", "09.1.1.1", "a.0x7g.1", "[::1", "[x]", "[]", "x" * 64,
        "a." * 127 + "a", "a*b", "\ud800", "%", "%zz", "℀.example",
    ],
)  # fmt: skip
def test_text_that_is_no_host(text: str) -> None:
    with pytest.raises(ValueError):
        normal_host(text)


def test_links_to_no_host_are_refused() -> None:
    for text in ("", ".", "a..b", "a%00b", "a%2fb", "a\b", "a%40b", "256.1.1.1", "[::1", "[x]", "a*b", "℀.example"):
        with pytest.raises(LinkRefused):
            check_link(f"http://{text}/a", Path(), False, [])


def test_a_number_behind_dots_is_an_address() -> None:
    assert normal_host("0x7f.1..") == normal_host("%30x7f.1%2e.") == "127.0.0.1"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://a.example", "HTTP://A.example.:80/#x"),
        ("https://a.example/a/./b/../c", "https://a.example:0443/a/%2e/x/y/%2E%2e/../c"),
        ("http://a.example/image.png", "http://%61.example/%69mage%2Epng"),
        ("http://a.example/../../x", "http://a.example/x"),
        ("http://a.example/x/..", "http://a.example/"),
        ("http://a.example/ä?ö", "http://user@a。example/%c3%a4?%C3%B6"),
        ("http://127.0.0.1/", "http://0x7F000001"),
        ("http://a.example/100%", "http://a.example/100%25"),
    ],
)
def test_equal_addresses(first: str, second: str) -> None:
    assert normal_url(first) == normal_url(second)
    assert normal_url(normal_url(first)) == normal_url(first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("http://a.example/a%2Fb", "http://a.example/a/b"),
        ("http://a.example/A", "http://a.example/a"),
        ("http://a.example/a/", "http://a.example/a"),
        ("http://a.example:8080/", "http://a.example/"),
        ("https://a.example/", "http://a.example/"),
        ("http://strasse.example/", "http://straße.example/"),  # two names since IDNA 2008
        ("http://a.example/?x=/../y", "http://a.example/?y"),
    ],
)
def test_different_addresses(first: str, second: str) -> None:
    assert normal_url(first) != normal_url(second)


def test_no_text_breaks_the_normal_form() -> None:
    generator = random.Random(0)
    pieces = [
        "http://",
        "https:",
        "//",
        "a",
        ".",
        "..",
        "/",
        "%2e",
        "%",
        "[",
        "]",
        ":",
        "::1",
        "@",
        "?",
        "#",
        "\\",
        "ü",
        "\ud800",
        " ",
    ]
    for _ in range(20_000):
        url = "".join(generator.choices(pieces, k=generator.randrange(12)))
        assert normal_url(normal_url(url)) == normal_url(url)
        host = host_of(url)
        assert not host or normal_host(host) == host


@pytest.mark.parametrize("host", NAMES + ADDRESSES)
def test_every_list_catches_every_spelling(host: str, tmp_path: Path) -> None:
    (tmp_path / "domains.txt").write_text(f"{host}\n")
    (tmp_path / "sources.yaml").write_text(f'sources: [{{domain: "{host}", basis: licensed}}]\n')
    (tmp_path / "prefix.txt").write_text(f"http://{host}/images/\n")
    address = normal_url(f"http://{host}/images/a~b.png")
    (tmp_path / "digests.txt").write_text(hashlib.sha256(address.encode()).hexdigest() + "\n")
    domains, digests = DomainList(tmp_path / "domains.txt"), DigestList(tmp_path / "digests.txt")
    sources = LinkSources(tmp_path / "sources.yaml")
    registries = [OptOutRegistry(tmp_path / name) for name in ("domains.txt", "prefix.txt", "digests.txt")]
    for text in spellings(host, 60):
        url = f"http://{text}:80/x/%2e./images/%61%7eb.png"
        fetch, _, domain = check_link(url, tmp_path, False, [])
        assert domains.find(text) and domains.find(domain), text
        assert digests.find({url}) and digests.find({fetch}), url
        assert all(registry.find(url) and registry.find(fetch) for registry in registries), url
        assert sources.standing(domain, None, None).said_by == "entry 1 of the sources"
        assert origin_of(url) == origin_of(fetch) == f"http://{normal_host(host)}"


def test_lists_in_another_spelling(tmp_path: Path) -> None:
    (tmp_path / "domains.txt").write_text("IMAGES.Example.ORG.\n0x5db8d822\n*.ｂücher.example\n::FFFF:8.8.8.8\n")
    found = DomainList(tmp_path / "domains.txt")
    hosts = ["a.images.example.org", "93.184.216.34", "xn--bcher-kva.example", "8.8.8.8"]
    registry = OptOutRegistry(tmp_path / "domains.txt")
    assert all(found.find(host) and registry.find(f"https://{host}/") for host in hosts)
    assert not found.find("184.216.34") and not found.find("93.184.216.35")
    (tmp_path / "sources.yaml").write_text("sources: [{domain: '*.Museum．EXAMPLE.', basis: licensed}]\n")
    assert LinkSources(tmp_path / "sources.yaml").names_host("a.museum.example", None)


def test_screening_and_download_compare_normal_forms(tmp_path: Path) -> None:
    """Blocked hosts and repeated links are found by the programs, whatever the table writes."""
    (tmp_path / "domains.txt").write_text("bad.example\n")
    rules = LinkRules(LinkRuleSettings(domain_lists=[str(tmp_path / "domains.txt")]))
    urls = [f"http://{text}/" for text in spellings("bad.example", 20)]
    same = ["http://good.example/~x", "http://GOOD.example.:80/y/../%7Ex", "http://g%6fod。example/%7ex"]
    table, _ = rules.apply(pa.table({"url": urls + same, "caption": ["a tree"] * len(urls + same)}))
    assert table["rule"].to_pylist() == ["blocked_domain"] * len(urls) + [None] * 3
    assert len(set(table["link_hash"].to_pylist()[-3:])) == 1 and set(table["origin"].to_pylist()[-3:]) == {
        "http://good.example"
    }
    (tmp_path / "links.csv").write_text("url,caption\n" + "".join(f"{url},a tree\n" for url in same))
    (tmp_path / "url_sha256.txt").write_text(hashlib.sha256(same[0].encode()).hexdigest() + "\n")
    rows = LinkRows(tmp_path / "links.csv", None, False, [], WithdrawnLists([tmp_path]))
    assert [row.decision["rule"] for row in rows] == ["blocked_url"] * 3


def test_trusted_hosts_are_compared_in_their_normal_form(tmp_path: Path) -> None:
    trusted = DownloadSettings(tmp_path, table=tmp_path, allow_private=["LOCALHOST.", "0x7f.1"]).allow_private
    assert trusted == ["127.0.0.1", "localhost"]
    assert check_link("http://127.1:8000/a", tmp_path, False, trusted)[0] == "http://127.0.0.1:8000/a"
    with pytest.raises(UserError, match=r"--allow-private: .*'http://x'"):
        DownloadSettings(tmp_path, table=tmp_path, allow_private=["http://x"])


@pytest.mark.parametrize("scheme", ["http://example.org/", "https://example.org/?q=", "file:"])
def test_addresses_of_more_than_8000_characters_are_refused(scheme: str, tmp_path: Path) -> None:
    check_link(scheme + "a" * 200, tmp_path, True, [])
    with pytest.raises(LinkRefused, match="longer than 8000 characters") as refused:
        check_link(scheme + "[" * 8000, tmp_path, True, [])
    assert refused.value.rule == "url" and len(refused.value.value) < 20


def test_unreserved_characters_are_decoded_and_others_stay() -> None:
    assert normal_url("http://example.org/%7e%41%2D%2f%5b%c3%a4") == "http://example.org/~A-%2F%5B%C3%A4"

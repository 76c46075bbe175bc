import hashlib
import random
import time
from pathlib import Path

import pytest

from data_tools.links.blocklists import DigestList, DomainList, PhraseList, ascii_domain, text_words
from leam_mm.data.registered_domain import registrable_domain
from leam_mm.errors import UserError


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_domains_block_their_subdomains(tmp_path: Path) -> None:
    path = written(
        tmp_path / "domains.txt", "# comment", "Bad.Example", "*.worse.example", "0.0.0.0 ads.example", "bücher.example"
    )
    domains = DomainList(path)
    for host in ("bad.example", "a.b.bad.example", "worse.example", "x.ads.example", "xn--bcher-kva.example"):
        blocked = domains.find(host)
        assert blocked and blocked.rule == "blocked_domain" and host.endswith(blocked.value)
        assert (
            blocked.list_name == "domains.txt" and blocked.list_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        )
    assert [host for host in ("notbad.example", "example", "bad.example.org", "") if domains.find(host)] == []


@pytest.mark.parametrize("line", ["co.uk", "com", "no domain!", "http://", "-"])
def test_domains_that_would_block_too_much_are_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2"):
        DomainList(written(tmp_path / "domains.txt", "# first", line))


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256"])
def test_digests_of_addresses(name: str, tmp_path: Path) -> None:
    urls = [f"http://a.example/{number}" for number in range(2000)]
    lines = [hashlib.new(name, url.encode()).hexdigest().upper() for url in urls[:1000]]
    digests = DigestList(written(tmp_path / "digests.txt", *lines))
    assert [bool(digests.find({url, url + "#part"})) for url in urls] == [True] * 1000 + [False] * 1000
    found = digests.find({urls[3]})
    assert found and found.rule == "blocked_url" and urls[3] not in found.value


def test_digests_with_a_common_prefix_are_distinguished(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"http://a.example/").hexdigest()
    digests = DigestList(written(tmp_path / "digests.txt", digest[:16] + "0" * 48, digest[:16] + "f" * 48))
    assert digests.find({"http://a.example/"}) is None
    with pytest.raises(UserError, match="line 1"):
        DigestList(written(tmp_path / "wrong.txt", "http://a.example/"))


def test_phrases_are_whole_words_of_any_script_and_form(tmp_path: Path) -> None:
    phrases = PhraseList(written(tmp_path / "phrases.txt", "bad thing", "STRASSE", "κακό πράγμα", "лошо", "ﬁne"))
    blocked = [
        "a BAD  thing, here", "bad-thing", "die Straße", "ΚΑΚΌ ΠΡΆΓΜΑ", "Лошо!", "fine", "ｂａｄ thing",
        "ba\u200bd thing", "bad bad thing",
    ]  # fmt: skip
    assert [text for text in blocked if not phrases.find(text_words(text))] == []
    free = ["a bad one", "thing bad", "badthing", "strassen", "κακό", "лошона", "", "finer bad thin g"]
    assert [text for text in free if phrases.find(text_words(text))] == []


def test_ten_thousand_phrases_are_as_fast_as_ten(tmp_path: Path) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnop", k=7)) for _ in range(20_000)]
    few = PhraseList(written(tmp_path / "few.txt", *words[:10]))
    many = PhraseList(
        written(tmp_path / "many.txt", *(f"{a} {b}" for a, b in zip(words[::2], words[1::2], strict=True)))
    )
    captions = [text_words("a red bicycle leans against the wall of an old house " * 3)] * 3000

    def seconds(phrases: PhraseList) -> float:
        begin = time.process_time()
        assert not any(map(phrases.find, captions))
        return time.process_time() - begin

    assert min(seconds(many) for _ in range(3)) < 3 * min(seconds(few) for _ in range(3)) + 0.01


def test_registrable_domains() -> None:
    assert registrable_domain("img.shop.example.co.uk") == "example.co.uk"
    assert registrable_domain("xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert [registrable_domain(host) for host in ("co.uk", "127.0.0.1", "::1", "com")] == [None] * 4
    assert (ascii_domain("Bücher.Example."), ascii_domain("a b"), ascii_domain("")) == (
        "xn--bcher-kva.example",
        None,
        None,
    )

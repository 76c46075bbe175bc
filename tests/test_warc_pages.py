import gzip
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from toys.warc import WarcFile

from data_tools.pages.warc_pages import PageRefused, archive_digest, folder_files, folder_pages, warc_pages


def read(path: Path, limit: int = 1000) -> list:
    return list(warc_pages(path, limit))


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_an_answer_comes_back_whole(name: str, tmp_path: Path) -> None:
    headers = (("X-Robots-Tag", "noai"), ("x-robots-tag", "bot: none"), ("Set-Cookie", "a=b"))
    with WarcFile(tmp_path / name) as file:
        file.add("https://a.example/ä", "<p>é", kind='text/html; boundary=x; charset="UTF-8"', headers=headers)
        file.add("https://a.example/2", "<p>", kind="application/xhtml+xml", date="2026-01-02T05:04:05+02:00")
        file.add("https://a.example/3", "<p>", date="yesterday")
    first, second, third = read(tmp_path / name)
    assert (first.url, first.content, first.charset) == ("https://a.example/ä", "<p>é".encode(), "UTF-8")
    assert [value for key, value in first.headers if key.lower() == "x-robots-tag"] == ["noai", "bot: none"]
    assert (
        first.fetched_at == second.fetched_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) and third.fetched_at is None
    )
    assert first.archive == name and first.record == "urn:00000000-0000-4000-8000-000000000000"
    assert second.refused is None and second.charset is None and [page.number for page in (first, second)] == [0, 1]


def test_bodies_that_are_and_are_not_chunked(tmp_path: Path) -> None:
    chunked = (("Transfer-Encoding", "chunked"),)
    with WarcFile(tmp_path / "a.warc.gz") as file:
        file.add("https://a.example/1", b"3\r\n<p>\r\n2\r\nhi\r\n0\r\n\r\n", headers=chunked)
        file.add("https://a.example/2", b"<p>hi", headers=chunked)
        file.add("https://a.example/3", b"ffffffff\r\n<p>", headers=chunked)
    assert [page.content for page in read(tmp_path / "a.warc.gz")] == [b"<p>hi", b"<p>hi", b"ffffffff\r\n<p>"]


def test_limits_of_size_and_number(tmp_path: Path) -> None:
    with WarcFile(tmp_path / "a.warc.gz") as file:
        file.add("https://a.example/1", b"x" * 1000)
        file.add("https://a.example/2", b"x" * 1001)
        file.add("https://a.example/3", b"x", headers=tuple(("A", "b") for _ in range(300)))
    rules = [page.refused.rule if page.refused else "" for page in read(tmp_path / "a.warc.gz")]
    assert rules == ["", "page_size", "page_headers"]


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    with WarcFile(path) as file:
        for number in range(5):
            file.add(f"https://a.example/{number}", f"<p>{number}")
    whole = path.read_bytes()
    assert len(read(path)) == 5
    for cut in (1, 9, 60, 200, 300):
        path.write_bytes(whole[:-cut])
        with pytest.raises(PageRefused) as refused:
            read(path)
        assert refused.value.rule == "broken_archive", cut


def test_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("b.html", "a/ü.HTM", "c.txt"):
        (tmp_path / name).write_text("<p>" + name)
    files = folder_files(tmp_path)
    pages = list(folder_pages(tmp_path, files, "https://m.example", 6))
    assert [page.url for page in pages] == ["https://m.example/a/%C3%BC.HTM", "https://m.example/b.html"]
    assert pages[0].refused is not None and pages[0].refused.rule == "page_size" and pages[1].refused is not None


def test_the_digest_of_an_archive_covers_both_ends(tmp_path: Path) -> None:
    digests = set()
    for content in (b"a" * 3_000_000, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b", b"a" * 2_999_999, b""):
        (tmp_path / "a").write_bytes(content)
        digests.add(archive_digest(tmp_path / "a"))
    assert len(digests) == 5


def lying(folder: Path, name: str, length: str, bodies: list[str]) -> Path:
    """Write an archive of one gzip member for each record, or plain, whose third record states a wrong length."""
    with WarcFile(folder / "whole.warc") as file:
        for number, body in enumerate(bodies):
            file.add(f"https://a.example/{number}", body)
    records = [b"WARC/1." + part for part in (folder / "whole.warc").read_bytes().split(b"WARC/1.")[1:]]
    true = int(re.search(rb"\r\nContent-Length: (\d+)", records[2])[1])
    stated = str(true + int(length)) if length.startswith(("+", "-")) and length != "-5000" else length
    records[2] = re.sub(rb"\r\nContent-Length: \d+", b"\r\nContent-Length: " + stated.encode(), records[2], count=1)
    pack = gzip.compress if name.endswith(".gz") else bytes
    (folder / name).write_bytes(b"".join(map(pack, records)))
    return folder / name


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize(
    "length",
    ["+10", "+500", "-10", "-300", "-5000", "0", "abc", "", "999999999999999", "9223372036854775808", "9" * 30],
)
def test_a_record_whose_length_lies_is_refused_and_the_next_ones_are_read(
    name: str, length: str, tmp_path: Path
) -> None:
    path = lying(tmp_path, name, length, [f"<p>{number}" + "y" * 300 for number in range(5)])
    pages = read(path)
    assert [page.number for page in pages] == [0, 1, 2, 3, 4]
    assert [page.refused.rule if page.refused else page.url[-1] for page in pages] == [
        "0",
        "1",
        "record_length",
        "3",
        "4",
    ]
    assert not pages[2].content and "\n" not in str(pages[2].refused)


@pytest.mark.parametrize("length", ["+500", "-10", "999999999999999"])
def test_where_no_further_record_is_found_the_file_is_broken(length: str, tmp_path: Path) -> None:
    path = lying(tmp_path, "a.warc", length, ["<p>" + "y" * 300] * 3)
    pages = warc_pages(path, 1000)
    assert [next(pages).refused is None for _ in range(2)] == [True, True] and next(
        pages
    ).refused.rule == "record_length"
    with pytest.raises(PageRefused, match="cannot be read after record 2"):
        next(pages)
    packed = gzip.compress(lying(tmp_path, "b.warc", length, ["<p>" + "y" * 300] * 5).read_bytes())
    (tmp_path / "whole.warc.gz").write_bytes(packed)  # one member for all records
    with pytest.raises(PageRefused, match="cannot be read after record 2"):
        read(tmp_path / "whole.warc.gz")


def test_an_honest_page_may_show_a_record(tmp_path: Path) -> None:
    body = "<pre>\r\n\r\nWARC/1.0\r\nWARC-Type: response\r\n"
    with WarcFile(tmp_path / "a.warc.gz") as file:
        for number in range(3):
            file.add(f"https://a.example/{number}", body)
    assert [page.content for page in read(tmp_path / "a.warc.gz")] == [body.encode()] * 3

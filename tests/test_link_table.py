import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.links.image_folder import folder_links
from data_tools.links.link_table import link_batches, read_links
from data_tools.network.link_address import LinkRefused, check_link
from leam_mm.errors import UserError


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("file:///etc/passwd", "scheme"),
        ("data:image/png;base64,AA", "scheme"),
        ("gopher://example.org/", "scheme"),
        ("", "scheme"),
        (None, "scheme"),
        ("http:///a.png", "host"),
        ("http://user:word@example.org/a.png", "host"),
        ("http://example.org:99999/a.png", "url"),
        ("http://localhost/a.png", "private_address"),
        ("http://printer.local/a.png", "private_address"),
        ("http://[::1]/a.png", "private_address"),
        ("http://169.254.169.254/latest", "private_address"),
    ],
)
def test_links_that_are_refused(url: str | None, rule: str, tmp_path: Path) -> None:
    with pytest.raises(LinkRefused) as refused:
        check_link(url, tmp_path, allow_file=False, allow_private=["127.0.0.1"])
    assert refused.value.rule == rule and refused.value.reason


def test_links_that_pass(tmp_path: Path) -> None:
    fetch, public, domain = check_link("http://bücher.example/ä b.png?q=ü#part", tmp_path, False, [])
    assert (fetch, domain) == ("http://xn--bcher-kva.example/%C3%A4%20b.png?q=%C3%BC", "xn--bcher-kva.example")
    assert public == "http://bücher.example/ä b.png?q=ü#part"
    assert check_link("http://[::1]:80/a", tmp_path, False, ["::1"])[0] == "http://[::1]/a"
    inside = check_link("file:a%20b.png", tmp_path, True, [])
    assert inside == ((tmp_path / "a b.png").resolve().as_uri(), "file:a%20b.png", "")
    with pytest.raises(LinkRefused, match="leads out"):
        check_link("file:../secret.png", tmp_path, True, [])
    assert check_link("file:///srv/x/a.png", tmp_path, True, [])[1] == "file:a.png"


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("links.csv", "address,caption\nhttp://a.example/,x\n", "no column 'url'"),
        ("links.csv", "url\nhttp://a.example/\n", "no column 'caption'"),
        ("links.csv", "url,caption\n", "no row"),
        ("links.csv", "", "holds no row"),
        ("links.parquet", "not parquet", "cannot be read as parquet"),
        ("links.jsonl", "{broken", "cannot be read as jsonl"),
        ("links.jsonl", "[1]\n", "not a JSON object"),
        ("links.xls", "x", "use .parquet, .csv, .tsv, .jsonl, .json or .txt"),
    ],
)
def test_tables_that_cannot_be_used(name: str, content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=word) as error:
        read_links(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_three_formats_hold_the_same_table(tmp_path: Path) -> None:
    rows = {"url": ["http://a.example/1", "http://a.example/2"], "caption": ["007", "two, lines\nof text"]}
    pq.write_table(pa.table(rows | {"unknown": [1, 2]}), tmp_path / "links.parquet")
    (tmp_path / "links.csv").write_text(
        'url,caption\nhttp://a.example/1,007\nhttp://a.example/2,"two, lines\nof text"\n'
    )
    lines = [json.dumps(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "links.jsonl").write_text("\n".join(lines))
    for name in ("links.parquet", "links.csv", "links.jsonl"):
        assert read_links(tmp_path / name).to_pydict() == rows


def test_a_folder_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no image"):
        folder_links(tmp_path)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.txt"):
        folder_links(tmp_path)
    (tmp_path / "captions.csv").write_text("url,caption\na.png,text\n")
    assert folder_links(tmp_path).to_pydict() == {"url": ["file:a.png"], "caption": ["text"]}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_long_tables_come_in_batches(suffix: str, tmp_path: Path) -> None:
    rows = {"url": [f"http://a.example/{number}" for number in range(1003)], "caption": ["two\nlines, ü"] * 1003}
    path = tmp_path / f"links.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(rows | {"unknown": list(range(1003))}), path, row_group_size=70)
    elif suffix == "csv":
        path.write_text("url,caption\n" + "".join(f'{url},"two\nlines, ü"\n' for url in rows["url"]))
    else:
        lines = (json.dumps({"url": url, "caption": "two\nlines, ü"}) for url in rows["url"])
        path.write_text("\n\n".join(lines) + "\n")
    batches = list(link_batches(path, 100))
    assert [batch.num_rows for batch in batches] == [100] * 10 + [3]
    assert pa.concat_tables(batches).select(["url", "caption"]).to_pydict() == rows


def test_batches_of_unusable_tables_are_refused(tmp_path: Path) -> None:
    for name, content, word in [
        ("a.csv", "address,caption\nhttp://a.example/,x\n", "no column 'url'"),
        ("b.parquet", "not parquet", "cannot be read as parquet"),
        ("c.jsonl", '{"url": "http://a.example/", "caption": "x"}\n{broken', "cannot be read as jsonl"),
        ("d.jsonl", "[1]\n", "not a JSON object"),
        ("e.jsonl", "[" * 100_000, "cannot be read as jsonl"),
        ("f.xls", "x", "use .parquet, .csv, .tsv, .jsonl, .json or .txt"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=word) as error:
            list(link_batches(tmp_path / name, 10))
        assert name in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="is not a file"):
        list(link_batches(tmp_path / "g.csv", 10))


def test_half_characters_of_a_jsonl_file_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "links.jsonl").write_text(
        '{"url": "http://a.example/", "caption": "a\\ud800b", "captions": ["\\udfff"]}'
    )
    for table in (read_links(tmp_path / "links.jsonl"), *link_batches(tmp_path / "links.jsonl", 10)):
        assert table["caption"].to_pylist() == ["a?b"] and json.loads(table["captions"][0].as_py())[0]["text"] == "?"

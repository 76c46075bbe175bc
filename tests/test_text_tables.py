"""Tables of strangers: nothing in them takes more memory than the limits, and rows beyond them are recorded."""

import json
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data_tools.links.blocklists import DomainList
from data_tools.links.image_folder import folder_links
from data_tools.links.link_rows import LinkRows
from data_tools.links.link_rules import LinkRules, LinkRuleSettings
from data_tools.links.link_table import link_batches
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.work import csv_table
from data_tools.work.text_tables import MAX_CELL, MAX_LINE, TOO_LONG, text_batches
from leam_mm.data.parquet_pages import page_headers
from leam_mm.errors import UserError

BIG = "x" * 1_000_000
LINK = pa.schema([("url", pa.string()), ("caption", pa.string())])


def urls(count: int) -> list[str]:
    """Return different links."""
    return [f"http://a.example/{number}" for number in range(count)]


def everything(names: Collection[str]) -> list[str]:
    """Choose all columns."""
    return list(names)


def one_value_for_all(path: Path) -> None:
    """A parquet of some kilobytes, 3 GB unpacked: every row points to the same megabyte."""
    caption = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array([BIG]))
    pq.write_table(pa.table({"url": urls(3000), "caption": caption}), path, compression="zstd")


def repeated_beginnings(path: Path) -> None:
    """A parquet whose values repeat the value before (DELTA_BYTE_ARRAY), 1 MB each."""
    encoding = {"url": "PLAIN", "caption": "DELTA_BYTE_ARRAY"}
    table = pa.table({"url": urls(80), "caption": [BIG + str(number) for number in range(80)]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, column_encoding=encoding)


def many_long_rows(path: Path) -> None:
    """A parquet in which each row is within the limits, but not all together."""
    pq.write_table(pa.table({"url": urls(2500), "caption": ["y" * (MAX_CELL - 1)] * 2500}), path, compression="zstd")


def long_line_of_csv(path: Path) -> None:
    """One cell of 100 MB among others."""
    with path.open("w") as file:
        file.write("url,caption\n")
        for number, url in enumerate(urls(9)):
            file.write(f'{url},"{"z" * (100_000_000 if number == 4 else 5)}, and more"\n')


def long_line_of_jsonl(path: Path) -> None:
    """One line of 100 MB among others."""
    with path.open("w") as file:
        for number, url in enumerate(urls(9)):
            file.write(json.dumps({"url": url, "caption": "z" * (100_000_000 if number == 4 else 5)}) + "\n")


CHILD = """
import collections, pathlib, resource, sys
from data_tools.links.link_rows import LinkRows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rules = collections.Counter(row.decision.get("rule") for row in LinkRows(pathlib.Path(sys.argv[1]), None, False, []))
print(rules["table"], rules[None], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize(
    ("name", "write", "refused", "kept", "mebibytes"),
    [
        ("a.parquet", one_value_for_all, 3000, 0, 150),
        ("b.parquet", repeated_beginnings, 80, 0, 400),
        ("c.parquet", many_long_rows, 453, 2047, 900),
        ("d.csv", long_line_of_csv, 1, 8, 100),
        ("e.jsonl", long_line_of_jsonl, 1, 8, 100),
    ],
)
def test_memory_is_bounded_and_rows_are_recorded(
    name: str, write: object, refused: int, kept: int, mebibytes: int, tmp_path: Path
) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [int(word) for word in done.stdout.split()]
    assert found[:2] == [refused, kept] and found[2] < mebibytes


def test_no_other_thread_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of pyarrow that calls Python while the program exits aborts it."""
    readers = set[int]()
    line = csv_table._Lines._line
    monkeypatch.setattr(csv_table._Lines, "_line", lambda self: readers.add(threading.get_ident()) or line(self))
    long = "x" * 10_000
    (tmp_path / "a.csv").write_text("url,caption\n" + "".join(f'{url},"{long}\n"\n\n' for url in urls(1000)))
    batches = list(text_batches(tmp_path / "a.csv", 64, everything))
    assert sum(batch.num_rows for batch in batches) == 1000 and batches[-1]["caption"][0].as_py() == f"{long}\n"
    assert readers == {threading.get_ident()}


def test_a_page_that_unpacks_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leam_mm.data.parquet_file.MAX_PAGE", 1_000_000)
    table = pa.table({"url": urls(2), "caption": [BIG, BIG]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("a page was read"))
    with pytest.raises(UserError, match=r"a page has 20000\d\d bytes, more than 1000000; write smaller ones"):
        list(link_batches(tmp_path / "a.parquet", 10))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_ordinary_parquet_files_are_read_as_they_are(
    version: str, encoding: str | None, compression: str, tmp_path: Path
) -> None:
    captions = [None if number % 7 == 0 else f"caption {number % 40} ü" for number in range(1000)]
    table = pa.table({"url": urls(1000), "caption": captions, "uid": list(range(1000)), "other": [b"\xff"] * 1000})
    chosen = (
        {} if encoding is None else {"use_dictionary": False, "column_encoding": {"url": encoding, "caption": encoding}}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=300,
        data_page_version=version,
        data_page_size=2000,
        compression=compression,
        **chosen,
    )
    batches = list(link_batches(path, 128))
    assert [batch.num_rows for batch in batches] == [128] * 7 + [104]
    found = pa.concat_tables(batches).to_pydict()
    assert found == {"url": urls(1000), "caption": captions, "uid": [str(number) for number in range(1000)]}
    with path.open("rb") as file:
        pages = list(page_headers(file, {"url", "caption"}))
    assert sum(page.values for page in pages if page.is_data) == 2000 and len(pages) >= 8
    names = {"PLAIN": 0, "DELTA_LENGTH_BYTE_ARRAY": 6, "DELTA_BYTE_ARRAY": 7, None: 8}
    assert {page.encoding for page in pages if page.is_data} == {names[encoding]}


def test_types_of_text(tmp_path: Path) -> None:
    texts = ["a", None, "ü", "a"]
    columns = {
        "string": pa.array(texts), "large": pa.array(texts, pa.large_string()), 
        "binary": pa.array(texts).cast(pa.binary()),
        "dictionary": pa.array(texts).dictionary_encode(), "number": pa.array([1, None, 3, 4]),
        "nothing": pa.nulls(4), "numbers": pa.array([1, None, 3, 1]).dictionary_encode(), "flag": pa.array([True] * 4),
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (table,) = text_batches(tmp_path / "a.parquet", 10, everything)
    assert {name: table[name].to_pylist() for name in ("string", "large", "binary", "dictionary")} == dict.fromkeys(
        ("string", "large", "binary", "dictionary"), texts
    )
    assert table["number"].to_pylist() == ["1", None, "3", "4"] and table["numbers"].to_pylist() == [
        "1",
        None,
        "3",
        "1",
    ]
    assert table["nothing"].to_pylist() == [None] * 4 and table["flag"].to_pylist() == ["true"] * 4


def test_cells_that_are_not_utf8_are_recorded(tmp_path: Path) -> None:
    rows = [
        b"http://a.example/1,plain",
        b"http://a.example/\xff2,broken",
        b"http://a.example/3,\xc3\x28",
        b"http://a.example/4,\xc3\xbc",
    ]
    (tmp_path / "a.csv").write_bytes(b"url,caption\n" + b"\n".join(rows))
    lines = [b'{"url": "%s", "caption": "%s"}' % tuple(row.split(b",")) for row in rows]
    (tmp_path / "b.jsonl").write_bytes(
        b"\n".join([*lines, b'{"url": "http://a.example/5", "uid": 1' + b"0" * 5000 + b"}"])
    )
    cells = [[row.split(b",")[number] for row in rows] for number in (0, 1)]
    pq.write_table(pa.table({"url": cells[0], "caption": cells[1]}), tmp_path / "c.parquet")
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        found = [row.decision for row in LinkRows(tmp_path / name, None, False, [])]
        assert [row.get("rule") for row in found] == [None, "table", "table", None] + ["table"] * (name == "b.jsonl")
        assert "UTF-8" in found[1]["value"] or "utf-8" in found[1]["value"]
        json.dumps(found).encode()  # nothing is left that cannot be written


def test_screening_records_rows_beyond_the_limits(tmp_path: Path) -> None:
    rows = [{"url": url, "caption": "a tree", "consent": "{}"} for url in urls(3)]
    rows[1] |= {"consent": json.dumps({"a": "b" * MAX_CELL})}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (table,) = link_batches(tmp_path / "a.jsonl", 10)
    filtered, _ = LinkRules(LinkRuleSettings()).apply(table)
    assert filtered["rule"].to_pylist() == [None, "table", None]
    assert filtered["value"].to_pylist()[1] == f"consent has {MAX_CELL + 9} bytes, more than {MAX_CELL}"
    assert filtered["url"].to_pylist() == urls(3) and filtered["uid"].null_count == 0


@pytest.mark.parametrize("inside", ['a "" quote', "a quote", 'two """" quotes'])
def test_quotes_stay_balanced_where_a_line_is_cut(inside: str, tmp_path: Path) -> None:
    long = "z" * (2 * MAX_LINE)
    (tmp_path / "a.csv").write_text(
        f'url,caption\nu1,"{long} {inside} {long}"\nu2,{long}\nu3,"two\nlines"\nu4,{long}"a"\n'
    )
    (table,) = link_batches(tmp_path / "a.csv", 10)
    assert table["url"].to_pylist() == ["u1", "u2", "u3", "u4"]
    assert [bool(fault) for fault in table[TOO_LONG].to_pylist()] == [True, True, False, True]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "lines",
    [
        ["u,a lake", 'v,"broken', "w,a tree", "x,a hill"],  # to the end of the file
        ["u,a lake", 'v,"broken', "w,a tree", 'x,"a hill"', "y,a road"],  # to the next quote
        ["u,a lake", 'v,"broken', *(f"w{number},{'a tree ' * 900}" for number in range(400))],  # beyond a block
        ["u,a lake", 'v,"broken', *(f"w{number}," + 'a ""red"" tree' * 900 for number in range(400))],
        ['u,"two' + "\n" + 'lines"', 'v,"broken', "w,a tree"],
    ],
)
def test_an_unclosed_quote_is_named_with_its_line(lines: list[str], end: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(end.join(["url,caption", *lines, ""]).encode())
    number = 4 if "\n" in lines[0] and end != "\r" else 3
    with pytest.raises(UserError, match=rf"a\.csv: the quote that opens a cell in line {number} is not closed"):
        list(link_batches(tmp_path / "a.csv", 10))


def test_quotes_that_open_no_cell_are_letters(tmp_path: Path) -> None:
    captions = ['12" vinyl', '"a ""red"" tree, small"', '""', '"two\nlines, ""one""\n\nmore"', '"a"b', "a tree"]
    rows = "".join(f"u{number},{caption},de\n" for number, caption in enumerate(captions))
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + f'"url",caption,language\n{rows}'.encode())
    (table,) = link_batches(tmp_path / "a.csv", 10)
    assert table["caption"].to_pylist() == [
        *('12" vinyl', 'a "red" tree, small', "", 'two\nlines, "one"\n\nmore', "ab", "a tree"),
    ]
    assert table["url"].to_pylist() == [f"u{number}" for number in range(6)]


def test_tables_that_break_a_limit_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leam_mm.data.parquet_file.MAX_DENSITY", 10)
    pq.write_table(pa.table({f"c{number}": [1] for number in range(10_001)}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text(",".join(["a"] * 10_001) + "\n")
    constant = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int8()), pa.array(["http://a.example/"]))
    pq.write_table(pa.table({"url": constant, "caption": constant}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + (1 << 30).to_bytes(4, "little") + b"PAR1")
    (tmp_path / "e.csv").write_text('url,caption\nu,"' + "a\n" * 4_000_000)
    for name, word in (
        ("a.parquet", "10001 columns, more than 10000"),
        ("b.csv", "more than 10000 columns"),
        ("c.parquet", "it claims 100000 rows in"),
        ("d.parquet", "footer has more than"),
        ("e.csv", "quote that opens a cell in line 2"),
    ):
        with pytest.raises(UserError, match=word) as error:
            list(text_batches(tmp_path / name, 10, everything))
        assert name in str(error.value) and "\n" not in str(error.value)


def test_damaged_parquet_files_are_one_line(tmp_path: Path) -> None:
    import random

    pq.write_table(
        pa.table({"url": urls(50), "caption": ["a", "b"] * 25}), tmp_path / "whole.parquet", data_page_size=64
    )
    whole, generator = (tmp_path / "whole.parquet").read_bytes(), random.Random(0)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(generator.randrange(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.choice([0, 255, 127, 128, generator.randrange(256)])
        (tmp_path / "a.parquet").write_bytes(damaged[: generator.choice([len(whole), generator.randrange(len(whole))])])
        try:
            list(link_batches(tmp_path / "a.parquet", 20))
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_lines_of_csv_gives_all_rows(end: str, tmp_path: Path) -> None:
    lines = [f"http://a.example/{number},{'a red tree ' * 40}" for number in range(5000)]
    (tmp_path / "a.csv").write_bytes(end.join(["url,caption", *lines, ""]).encode())
    assert (tmp_path / "a.csv").stat().st_size > 2 * MAX_LINE
    rows = pa.concat_tables(link_batches(tmp_path / "a.csv", 1000))
    assert rows.num_rows == 5000 and rows["url"].to_pylist()[-1] == "http://a.example/4999"


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("end", ["\n", "\r"])
def test_a_long_cell_of_csv_before_others_is_recorded_alone(quote: str, end: str, tmp_path: Path) -> None:
    long = f"{quote}{'x' * (MAX_LINE + 500)}{quote}"
    lines = ["url,caption,language", "u,a tree,de", f"v,{long},de", "w,a lake,fr", ""]
    (tmp_path / "a.csv").write_bytes(end.join(lines).encode())
    (table,) = link_batches(tmp_path / "a.csv", 10)
    assert table["url"].to_pylist() == ["u", "v", "w"] and table["language"].to_pylist()[::2] == ["de", "fr"]
    assert [reason and reason[:11] for reason in table["too_long"].to_pylist()] == [None, "caption has", None]


def test_a_column_of_bytes_in_lists_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["u"], "caption": [[b"a tree"]]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="the column caption holds values of type binary"):
        list(link_batches(tmp_path / "a.parquet", 10))


def test_folders_with_captions_that_cannot_be_read(tmp_path: Path) -> None:
    for name, caption in (("a", b"fine"), ("b", b"x" * (MAX_CELL + 1)), ("c", b"\xff")):
        (tmp_path / f"{name}.png").write_bytes(b"image")
        (tmp_path / f"{name}.txt").write_bytes(caption)
    rows = [row.decision for row in LinkRows(None, tmp_path, True, [])]
    assert [row.get("rule") for row in rows] == [None, "table", "table"]
    with pytest.raises(UserError, match=r"file:b\.png cannot be used: caption has more than 65536 bytes"):
        folder_links(tmp_path)


def test_lists_with_endless_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * (MAX_LINE + 5))
    (tmp_path / "b.csv").write_text("domain\n" + "a" * (MAX_CELL + 1) + "\n")
    for read in (lambda: DomainList(tmp_path / "a.txt"), lambda: OptOutRegistry(tmp_path / "a.txt")):
        with pytest.raises(UserError, match=f"line 1 has more than {MAX_LINE} characters"):
            read()
    with pytest.raises(UserError, match="an entry cannot be read: domain has 65537 bytes"):
        OptOutRegistry(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("md5\n" + "0" * 31 + "1\n")  # digits alone stay text
    assert len(OptOutRegistry(tmp_path / "c.csv").hashes) == 1

"""Captions in nested columns of parquet files, as pandas, datasets and Spark write them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.links.link_table import link_batches, read_links
from data_tools.work.text_tables import MAX_CELL, TOO_LONG, text_batches
from leam_mm.errors import UserError

URLS = ["http://a.example/1", "http://a.example/2"]
ENTRIES = [{"text": "ein See", "language": "de"}, {"text": "a lake", "language": "en"}]


def write(path: Path, rows: list[Any], kind: pa.DataType | None = None, name: str = "captions") -> Path:
    pq.write_table(pa.table({"url": URLS[: len(rows)], name: pa.array(rows, kind)}), path)
    return path


def texts(table: pa.Table, row: int = 0) -> list[tuple[str, str]]:
    return [(one["language"], one["text"]) for one in json.loads(table["captions"][row].as_py())]


@pytest.mark.parametrize(
    ("rows", "kind", "expected"),
    [
        ([ENTRIES, None], None, [("de", "ein See"), ("en", "a lake")]),
        ([["a lake", "ein See"], []], None, [("und", "a lake"), ("und", "ein See")]),
        ([{"de": "ein See", "en": None}, {"de": None, "en": "a"}], None, [("de", "ein See")]),
        ([{"de": ["ein See", "Wasser"]}, None], None, [("de", "ein See"), ("de", "Wasser")]),
        ([[("de", "ein See")], None], pa.map_(pa.string(), pa.string()), [("de", "ein See")]),
        ([[("de", ["ein See"])], None], pa.map_(pa.string(), pa.list_(pa.string())), [("de", "ein See")]),
        ([ENTRIES[:1], ENTRIES[1:]], pa.large_list(pa.struct([("text", pa.large_string()), ("language", pa.string())])),
         [("de", "ein See")]),
    ],
)  # fmt: skip
def test_captions_of_every_form(
    rows: list[Any], kind: pa.DataType | None, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    table = read_links(write(tmp_path / "a.parquet", rows, kind))
    assert texts(table) == expected


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("name", ["caption", "text"])
def test_a_column_of_lists_with_the_name_of_one_caption(suffix: str, name: str, tmp_path: Path) -> None:
    rows = [["a lake", "ein See"], ["[sic] a lake"]]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        write(path, rows, name=name)
    else:
        path.write_text(
            "".join(json.dumps({"url": url, name: row}) + "\n" for url, row in zip(URLS, rows, strict=True))
        )
    table = read_links(path)
    assert table["caption"].to_pylist() == ["a lake", "[sic] a lake"]
    assert texts(table) == [("und", "a lake"), ("und", "ein See")] and texts(table, 1) == [("und", "[sic] a lake")]


def test_a_text_in_brackets_stays_a_text(tmp_path: Path) -> None:
    table = read_links(write(tmp_path / "a.parquet", ["[A] lake", '["a"'], name="caption"))
    assert table["caption"].to_pylist() == ["[A] lake", '["a"']
    (tmp_path / "a.csv").write_text('url,caption\nhttp://a.example/1,"[""a""]"\n')
    assert read_links(tmp_path / "a.csv")["caption"].to_pylist() == ['["a"]']


def test_a_row_that_is_too_long_is_recorded_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [["x" * (MAX_CELL + 1)], ["a lake"]])
    (table,) = link_batches(tmp_path / "a.parquet", 10)
    assert table[TOO_LONG].to_pylist() == [f"captions has {MAX_CELL + 9} bytes, more than {MAX_CELL}", None]
    assert texts(table, 1) == [("und", "a lake")]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.null()), pa.list_(pa.binary()), pa.struct([]), pa.list_(pa.struct([("a", pa.null())]))]
)
def test_values_without_text_are_refused(kind: pa.DataType, tmp_path: Path) -> None:
    values: list[Any] = [None, None]
    try:
        write(tmp_path / "a.parquet", values, kind)
    except pa.ArrowException:
        pytest.skip("parquet cannot hold the type")
    with pytest.raises(UserError, match="the column captions holds values of type"):
        list(text_batches(tmp_path / "a.parquet", 10, list))


def test_other_columns_may_be_nested(tmp_path: Path) -> None:
    rows = {"url": URLS, "caption": ["a", "b"], "metadata": [{"seed": 1, "tags": ["x"]}, None]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert read_links(tmp_path / "a.parquet")["metadata"].to_pylist() == ['{"seed": 1, "tags": ["x"]}', None]

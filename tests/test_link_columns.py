"""Tables of links as people have them: their columns, delimiters, encodings and forms of captions."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import screen_links
from data_tools.links.link_columns import TableColumns, link_columns
from data_tools.links.link_rows import LinkRows
from data_tools.links.link_table import describe_table, link_batches, read_links, table_parts
from data_tools.samples.caption_forms import captions_fault, normal_captions
from data_tools.samples.sample_record import json_fault
from leam_mm.errors import UserError

A, B = "http://a.example/1,2.jpg", "http://b.example/ü.png"


def rows(path: Path, files: bool = False, **choice: Any) -> list[dict[str, Any]]:
    return [row for batch in link_batches(path, 10, TableColumns(**choice), files) for row in batch.to_pylist()]


def pairs(path: Path, files: bool = False, **choice: Any) -> list[tuple[str, str]]:
    return [(row["url"], row["caption"]) for row in rows(path, files, **choice)]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("URL", "TEXT", "WIDTH"), ("URL", "TEXT")),  # LAION
        (("url", "text", "uid"), ("url", "text")),  # DataComp
        (("url", "caption"), ("url", "caption")),  # img2dataset
        (("filepath", "title"), ("filepath", "title")),  # open_clip
        (("image", "caption"), ("image", "caption")),
        (("file_name", "text"), ("file_name", "text")),  # Hugging Face
        (("image_url", "alt"), ("image_url", "alt")),
        (("url", "file_name", "caption", "title"), ("url", "caption")),
    ],
)
def test_usual_names_of_columns(names: tuple[str, ...], found: tuple[str, str]) -> None:
    columns = link_columns(Path("x.csv"), names, TableColumns())
    assert (columns.url, columns.captions) == (found[0], (("", found[1]),))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("url", "image_url", "text"), "the columns url, image_url may all hold addresses; choose by --url-column"),
        (("url", "caption", "text"), "the columns caption, text may all hold captions; choose by --caption-column"),
        (("adresse", "text"), "no column 'url'.*--url-column"),
        (("url", "titel"), "no column 'caption'.*--caption-column"),
    ],
)
def test_columns_that_only_a_person_can_choose(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        link_columns(Path("x.csv"), names, TableColumns())


def test_columns_of_the_options_come_first_and_must_exist(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'adresse,titel,title,url\n"{A}",ein See,a lake,x\n"{B}",,a tree,y\n')
    found = rows(path, url_column="adresse", caption_column=["de=titel", "en=title"])
    assert [(row["url"], row["caption"]) for row in found] == [(A, "ein See"), (B, "a tree")]
    assert [[(entry["language"], entry["text"]) for entry in json.loads(row["captions"])] for row in found] == [
        [("de", "ein See"), ("en", "a lake")],
        [("en", "a tree")],
    ]
    with pytest.raises(UserError, match=r"--url-column link: .*no such column \(found: adresse, titel"):
        rows(path, url_column="link")
    with pytest.raises(UserError, match="--caption-column text"):
        rows(path, caption_column=["text"])


def test_tables_of_laion_and_datacomp_are_read_as_they_are(tmp_path: Path) -> None:
    laion = {"URL": [A, B], "TEXT": ["a lake", "a tree"], "WIDTH": [3, 4], "HEIGHT": [5, 6], "similarity": [0.3, 0.4]}
    laion |= {"hash": [1, 2], "NSFW": ["UNLIKELY", None], "LICENSE": ["?", "CC-BY-4.0"]}
    pq.write_table(pa.table(laion), tmp_path / "laion.parquet")
    found = rows(tmp_path / "laion.parquet", keep_columns="WIDTH, NSFW")
    assert [row["licence"] for row in found] == [None, "CC-BY-4.0"] and found[0]["url"] == A
    assert json.loads(found[0]["metadata"]) == {"WIDTH": "3", "NSFW": "UNLIKELY"}
    datacomp = {"uid": ["0" * 32], "url": [A], "text": ["a lake"], "face_bboxes": [[[0.1, 0.2]]], "sha256": ["ab" * 32]}
    pq.write_table(pa.table(datacomp), tmp_path / "datacomp.parquet")
    (row,) = rows(tmp_path / "datacomp.parquet")
    assert (row["uid"], row["caption"], json.loads(row["metadata"])) == ("0" * 32, "a lake", {"sha256": "ab" * 32})


def test_columns_that_are_not_carried_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_text(f'url,caption,license,museum\n"{A}",x,CC0-1.0,Lakes\n')
    assert describe_table(tmp_path / "a.csv", TableColumns()).endswith("csv, addresses from url, captions from caption")
    assert "not carried: museum (--keep-columns" in caplog.text
    assert rows(tmp_path / "a.csv")[0]["licence"] == "CC0-1.0"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cc3m.tsv", f'a lake, with trees\t{A}\n"a tree\t{B}\n'),
        ("header.tsv", f'TEXT\tURL\na lake, with trees\t{A}\n"""a tree"\t{B}\n'),
        ("semicolon.csv", f'url;caption\n{A};a lake, with trees\n{B};"""a tree"\n'),
        ("tabs.csv", f'filepath\ttitle\n{A}\ta lake, with trees\n{B}\t"""a tree"\n'),
        ("bare.csv", f'"{A}","a lake, with trees"\n{B},"""a tree"\n'),
        ("a.json", json.dumps([{"url": A, "text": "a lake, with trees"}, {"url": B, "text": '"a tree'}], indent=1)),
        ("b.json", f'{{"url": "{A}", "text": "a lake, with trees"}}\n{{"url": "{B}", "text": "\\"a tree"}}\n'),
        ("c.ndjson", f'{{"url": "{A}", "text": "a lake, with trees"}}\n{{"url": "{B}", "text": "\\"a tree"}}\n'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
def test_texts_of_every_form_give_the_same_table(name: str, text: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * (encoding == "gzip"))
    path.write_bytes(gzip.compress(text.encode()) if encoding == "gzip" else text.encode(encoding))
    assert pairs(path) == [(A, "a lake, with trees"), (B, '"a tree')]


def test_several_columns_without_names_have_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"1\t{A}\ta lake\n2\t{B}\ta tree\n")
    with pytest.raises(UserError, match=r"no column 'caption' \(found: 1, url, 3\)"):
        rows(tmp_path / "a.tsv")
    assert pairs(tmp_path / "a.tsv", caption_column=["3"]) == [(A, "a lake"), (B, "a tree")]


def test_a_list_of_addresses_has_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"# a list\n\n{A}\n  {B}  \n")
    assert pairs(tmp_path / "a.txt") == [(A, None), (B, None)]


def test_a_long_array_is_read_in_pieces(tmp_path: Path) -> None:
    entries = [{"url": f"http://a.example/{number}", "caption": "ü" * 300} for number in range(5000)]
    (tmp_path / "a.json").write_text(json.dumps(entries, ensure_ascii=False))
    assert (tmp_path / "a.json").stat().st_size > 3 << 20
    assert read_links(tmp_path / "a.json").to_pylist() == entries


@pytest.mark.parametrize(
    "text", ['[{"url": "u"} {"url": "v"}]', '[{"url": "u"}, 3]', '[{"url"', "[[1]]", '[{"a": "' + "x" * 4_000_000]
)
def test_damaged_arrays_are_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json cannot be read as json \(entry \d of the array") as error:
        rows(tmp_path / "a.json")
    assert len(str(error.value)) < 400


def test_parts_of_a_folder_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        pq.write_table(pa.table({"url": [f"http://a.example/{number}"], "text": ["x"]}), tmp_path / f"{number}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".0.parquet.crc").write_text("")
    assert [row["url"][-1] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert "3 files of parquet" in describe_table(tmp_path, TableColumns())
    assert LinkRows(tmp_path, None, False, []).survey.rows == 3
    (tmp_path / "x.csv").write_text("url,text\n")
    with pytest.raises(UserError, match="several formats"):
        table_parts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no table"):
        table_parts(tmp_path / "empty")


def test_file_names_are_relative_to_the_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "filepath\ttitle\nimages/ä b.jpg\ta lake\n/srv/c.jpg\ta tree\nhttp://x.example/\tz\n"
    )
    found = [row.fetch for row in LinkRows(tmp_path / "a.csv", None, True, [])]
    assert found == [(tmp_path / "images/ä b.jpg").resolve().as_uri(), "file:///srv/c.jpg", "http://x.example/"]
    refused = [row.decision for row in LinkRows(tmp_path / "a.csv", None, False, [])]
    assert [row.get("rule") for row in refused] == ["scheme", "scheme", None]


FORMS = [
    '[{"text": "a lake", "language": "en"}, {"text": "ein See", "language": "de"}]',
    '{"en": "a lake", "de": "ein See"}',
    '{"en": ["a lake"], "de": ["ein See", ""]}',
]


@pytest.mark.parametrize("form", FORMS)
def test_captions_by_language_in_every_form(form: str) -> None:
    normal = normal_captions(form)
    assert json_fault("captions", normal) is None
    assert [(entry["text"], entry["language"]) for entry in json.loads(normal)] == [("a lake", "en"), ("ein See", "de")]


def test_captions_without_language_take_that_of_the_row() -> None:
    for form in ('["a lake", "a tree"]', '[{"text": "a lake"}, {"text": "a tree", "language": null}]'):
        entries = json.loads(normal_captions(form, "en"))
        assert [(entry["text"], entry["language"]) for entry in entries] == [("a lake", "en"), ("a tree", "en")]
    assert json.loads(normal_captions("a lake"))[0]["language"] == "und"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ('{"first caption": "a lake"}', "the key 'first caption', which is neither text nor a language"),
        ("[3]", "captions holds 3, which is no text"),
        ("['a lake']", "captions is no JSON"),
        ('{"en": {"x": 1}}', "a caption in en that is no text"),
    ],
)
def test_what_is_wrong_with_captions_is_named(form: str, message: str) -> None:
    assert normal_captions(form) == form and message in str(captions_fault(form))
    assert message in str(json_fault("captions", form))


def test_a_screening_that_keeps_nothing_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"url": f"http://a.example/{number}", "captions": {"first caption": "a lake"}} for number in range(20)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [
        "--table",
        str(tmp_path / "a.jsonl"),
        "--output",
        str(tmp_path / "out"),
        "--skip-origins",
        "--processes",
        "1",
    ]
    with pytest.raises(SystemExit) as ended:
        screen_links.main(words)
    said = capsys.readouterr()
    assert ended.value.code == 1 and "0 of 20 links stay" in said.out and "dropped: captions 20" in said.out
    assert "the key 'first caption', which is neither text nor a language" in said.out
    assert "a.jsonl: jsonl, addresses from url, captions from captions" in said.err
    lines = [line | {"captions": {"en": "a lake"}} for line in lines]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    screen_links.main([*words, "--overwrite"])
    assert "20 of 20 links stay" in capsys.readouterr().out


def test_a_caption_for_rows_without_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        'url,text,captions\nhttp://a.example/1,,\nhttp://a.example/2,a,\nhttp://a.example/3,," [""b""]"\n'
    )
    rows = [
        row
        for batch in link_batches(tmp_path / "a.csv", 10, TableColumns(caption_for_all="x"))
        for row in batch.to_pylist()
    ]
    assert [row["caption"] or "" for row in rows] == ["x", "a", ""]
    (tmp_path / "b.csv").write_text("url,size\nhttp://a.example/1,3\n")
    (table,) = link_batches(tmp_path / "b.csv", 10, TableColumns(caption_for_all="x"))
    assert table["caption"].to_pylist() == ["x"]

"""Readers of tables of links, addresses, blocklists, opt-out registries and hash lists."""

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_tools.links.blocklists import DigestList, DomainList, PhraseList, text_words
from data_tools.links.image_folder import folder_links
from data_tools.links.language_vote import vote
from data_tools.links.link_rows import LinkRows
from data_tools.links.link_table import read_links
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.samples import svg_image
from data_tools.samples.sample_record import KINDS, json_fault, sample_record
from data_tools.samples.svg_image import SvgFault, is_svg, rasterise
from data_tools.vetting.hash_lists import read_hashes
from fuzz.hunt import Reader
from fuzz.mutation import damage_bytes, damage_json, damage_table
from leam_mm.data.personal_data import find_personal_data
from leam_mm.errors import UserError

Read = Callable[[bytes], object]
URL = "https://images.example.org:8443/a%20b/c.jpg?x=1&y=%C3%BC#part"
ROWS = {
    "url": [URL, "file:a.png", "http://b.example/ü.jpg"],
    "caption": ["a meadow", "Wiese, grün", ""],
    "captions": ["", json.dumps([{"text": "a", "language": "en"}]), "[]"],
    "licence": ["CC0-1.0", "", "https://creativecommons.org/licenses/by/4.0/"],
    "metadata": ["{}", '{"a": [1, 2.5, null]}', ""],
    "consent": [
        "{}",
        '{"page_rights": [{"kind": "meta:robots", "value": "noai", "source": "x", "reserved": true}]}',
        "",
    ],
}
ADDRESS_WORDS = (
    *(
        b"http://",
        b"https://",
        b"file:",
        b"//",
        b"@",
        b"127.0.0.1",
        b"0x7f.1",
        b"[::1]",
        b"[::ffff:10.0.0.1]",
        b"%2e",
        b"\\",
    ),
    *(
        "ｅｘａｍｐｌｅ．ｏｒｇ",
        "。",
        "xn--",
        "xn--a-ecp.ru",
        "ß",
        "\u200d",
        "a" * 70 + ".de",
        "%00",
        ":99999",
        "?",
        "#",
        "*.",
        "!@",
    ),
)
SVG_WORDS = (
    *(
        b"<svg ",
        b"</svg>",
        b"<!DOCTYPE svg [",
        b"<!ENTITY a 'b'>",
        b"&a;",
        b"xml:base='http://a.example/'",
        b"href='file:///",
    ),
    *(
        b"xlink:href='",
        b"<use href='#a'/>",
        b"<image ",
        b"url(http://a.example)",
        b"width='1e400'",
        b"viewBox='0 0 nan 1'",
    ),
    *(b"encoding='utf-7'", b"<style>@import 'x'</style>", b"<script>", b"<filter id='a'>", b"stdDeviation='1e9'"),
)
WORDS = tuple(word if isinstance(word, bytes) else word.encode() for word in ADDRESS_WORDS)


def as_table() -> pa.Table:
    """Return a table of links."""
    return pa.table({name: pa.array(values, pa.string()) for name, values in ROWS.items()})


def parquet_seeds(folder: Path) -> list[bytes]:
    """Return the table as parquet, in two compressions."""
    contents = []
    for compression in ("zstd", "none"):
        buffer = io.BytesIO()
        pq.write_table(as_table(), buffer, compression=compression, row_group_size=2)
        contents.append(buffer.getvalue())
    return contents


def csv_seeds(folder: Path) -> list[bytes]:
    """Return the table as csv."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(as_table(), buffer)
    return [buffer.getvalue(), b"url,caption\nhttp://a.example/1.jpg,x\n"]


def jsonl_seeds(folder: Path) -> list[bytes]:
    """Return the table as JSON lines."""
    return [b"".join(json.dumps(row).encode() + b"\n" for row in as_table().to_pylist())]


def table(ending: str) -> Callable[[Path], Read]:
    """Return the preparation of a reader of tables."""

    def prepare(folder: Path) -> Read:
        path = folder / f"links{ending}"

        def read(data: bytes) -> None:
            path.write_bytes(data)
            read_links(path)
            for row in LinkRows(path, None, True, ["b.example"]):
                if row.fetch:
                    image = SimpleNamespace(
                        sha256="0", width=1, height=1, original_width=1, original_height=1, transforms=[]
                    )
                    record = sample_record(row.source, row.decision, cast(Any, image), "fuzz", None)
                    json.dumps(record, ensure_ascii=False).encode()

        return read

    return prepare


def folder_table_seeds(folder: Path) -> list[bytes]:
    """Return tables of captions of a folder: two kinds of csv, JSON lines and parquet."""
    rows = [{"file_name": "a.png", "text": "ein See"}, {"file_name": "sub/b.png", "text": "a lake"}]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    csv = b"file_name,text\na.png,ein See\nsub/b.png,a lake\n"
    return [csv, b"url,caption\nfile:a.png,x\n", lines.encode(), buffer.getvalue()]


def folder_table(folder: Path) -> Read:
    """Read the table of captions in a folder of images."""
    images = folder / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (images / name).write_bytes(b"")

    def read(data: bytes) -> None:
        kind = "parquet" if data.startswith(b"PAR1") else "jsonl" if data.lstrip().startswith(b"{") else "csv"
        name = "captions" if data.startswith(b"url") else "metadata"
        path = images / f"{name}.{kind}"
        path.write_bytes(data)
        try:
            folder_links(images)
        finally:
            path.unlink()

    return read


def caption_file(folder: Path) -> Read:
    """Read the caption file beside an image."""
    (folder / "a.png").write_bytes(b"")

    def read(data: bytes) -> None:
        (folder / "a.txt").write_bytes(data)
        folder_links(folder)

    return read


def cell_seeds(folder: Path) -> list[bytes]:
    """Return JSON cells."""
    return [
        json.dumps(value).encode() for value in ([{"text": "a", "language": "en"}], {"page_rights": [{"kind": "x"}]})
    ]


def cell(folder: Path) -> Read:
    """Check JSON cells of a table."""

    def read(data: bytes) -> None:
        for column in KINDS:
            json_fault(column, data.decode("utf-8", "replace"))

    return read


def address_seeds(folder: Path) -> list[bytes]:
    """Return addresses."""
    return [
        text.encode()
        for text in (URL, "file:a.png", "http://127.0.0.1/x", "http://[2001:db8::1]:80/", "http://bücher.example/ä")
    ]


def address(folder: Path) -> Read:
    """Check an address as the downloader does, and look it up in lists."""
    (folder / "domains.txt").write_text("blocked.example\n")
    (folder / "registry.txt").write_text("blocked.example\nhttps://images.example.org/a\n" + "0" * 64 + "\n")
    domains, registry = DomainList(folder / "domains.txt"), OptOutRegistry(folder / "registry.txt")

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        registry.find(text)
        fetch, _, host = check_link(text, folder, True, [])
        if not fetch.isascii() or any(letter.isspace() for letter in fetch):
            raise AssertionError(f"the address to fetch is {fetch!r}")
        domains.find(host)
        registry.find(fetch)

    return read


def text_seeds(folder: Path) -> list[bytes]:
    """Return captions."""
    texts = (
        "A meadow with grey horses, seen from above",
        "Rufen Sie +49 30 123456 an oder max@example.org",
        "IBAN DE89370400440532013000",
    )
    return [text.encode() for text in texts]


def caption(folder: Path) -> Read:
    """Read a caption as screening does: words, language, personal data."""
    (folder / "phrases.txt").write_text("grey horses\nwiese\n")
    phrases = PhraseList(folder / "phrases.txt")
    vote(["a meadow"])  # loads the models, which takes seconds
    find_personal_data("+49 30 123456")

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "replace")[:5000]
        phrases.find(text_words(text))
        vote([text])
        find_personal_data(text)

    return read


def list_seeds(folder: Path) -> list[bytes]:
    """Return lists of the kinds that are read."""
    return [
        b"# comment\nexample.org\n0.0.0.0 ads.example.net\n*.example.com\n",
        b"\n".join((b"0" * 32, b"1" * 40, b"a" * 64, b"")),
        "a phrase\nWörter\n".encode(),
        b"sha256,md5\n" + b"a" * 64 + b"," + b"0" * 32 + b"\n",
    ]


def lists(folder: Path) -> Read:
    """Read a text as each kind of list."""
    readers: list[tuple[str, Callable[[Path], object]]] = [
        ("domains.txt", DomainList),
        ("digests.txt", DigestList),
        ("phrases.txt", PhraseList),
        ("registry.txt", OptOutRegistry),
        ("registry.csv", OptOutRegistry),
        ("hashes.csv", read_hashes),
        ("hashes.sha256", read_hashes),
        ("hashes.pdq", read_hashes),
    ]

    def read(data: bytes) -> None:
        refusal: UserError | None = None
        for name, reader in readers:
            (folder / name).write_bytes(data)
            try:
                reader(folder / name)
            except UserError as error:
                refusal = error
        if refusal:
            raise refusal

    return read


def nested_seeds(folder: Path) -> list[bytes]:
    """Return tables with captions in lists, structs and maps."""
    entries = [{"text": "ein See", "language": "de"}, {"text": "a lake", "language": "en"}]
    columns: list[Any] = [
        pa.array([entries, None]),
        pa.array([["a lake", "ein See"], []]),
        pa.array([{"de": ["ein See"], "en": ["a lake"]}, None]),
        pa.array([[("de", "ein See")], None], pa.map_(pa.string(), pa.string())),
    ]
    contents = []
    for column in columns:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"url": [URL, URL], "captions": column}), buffer)
        contents.append(buffer.getvalue())
    return contents


def drawing_seeds(folder: Path) -> list[bytes]:
    """Return drawings in SVG."""
    body = '<g transform="rotate(5)"><path d="M0 0L9 9" stroke="red"/><text x="1" y="5">ü</text></g>'
    root = f'<svg xmlns="http://www.w3.org/2000/svg" width="9mm" height="8" viewBox="0 0 9 8">{body}</svg>'
    linked = root.replace("<g", '<a href="http://a.example"/><image href="data:image/png;base64,iVBORw0KGgo="/><g')
    declared = f'<?xml version="1.0" encoding="UTF-16"?>{root}'.encode("utf-16")
    return [root.encode(), linked.encode(), declared, b"\xef\xbb\xbf<!-- x -->" + root.encode()]


def drawing(folder: Path) -> Read:
    """Check a drawing; every thirtieth is rendered, too, which takes a process."""

    def read(data: bytes) -> None:
        is_svg(data)
        if zlib.crc32(data) % 30 == 0:
            rasterise(data, 16, 10_000)
        else:
            svg_image._checked(data)
            svg_image._utf8(data)

    return read


def registry_seeds(folder: Path) -> list[bytes]:
    """Return a registry as parquet."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"domain": ["a.example", None], "sha256": ["0" * 64, ""]}), buffer)
    return [buffer.getvalue()]


def registry(folder: Path) -> Read:
    """Read a registry in parquet."""

    def read(data: bytes) -> None:
        (folder / "registry.parquet").write_bytes(data)
        OptOutRegistry(folder / "registry.parquet").find(URL)

    return read


READERS = [
    Reader("table_parquet", parquet_seeds, table(".parquet"), (damage_table, damage_table, damage_bytes)),
    Reader("table_csv", csv_seeds, table(".csv"), words=(b'"', b'""', b"url", b"caption", b"\r", b"\n,", *WORDS)),
    Reader("table_jsonl", jsonl_seeds, table(".jsonl"), (damage_json, damage_bytes), words=WORDS),
    Reader(
        "folder_table",
        folder_table_seeds,
        folder_table,
        (damage_table, damage_json, damage_bytes),
        words=(b"file_name", b"../", b"%2e%2e/", b"file:", b"text", b"captions", b"url"),
    ),
    Reader("caption_file", text_seeds, caption_file),
    Reader("cell", cell_seeds, cell, (damage_json, damage_bytes)),
    Reader("address", address_seeds, address, allowed=(LinkRefused,), words=WORDS),
    Reader(
        "caption", text_seeds, caption, words=(b"+49", b"@", b"www.", b"DE89", "Straße".encode(), "русский".encode())
    ),
    Reader("lists", list_seeds, lists, words=WORDS),
    Reader("table_nested", nested_seeds, table(".parquet"), (damage_table, damage_table, damage_bytes)),
    Reader("svg", drawing_seeds, drawing, allowed=(SvgFault,), words=SVG_WORDS, seconds=5.0),
    Reader("registry", registry_seeds, registry, (damage_table, damage_bytes)),
]

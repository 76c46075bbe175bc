"""Readers of tars that others made: the tar, its file of records, its places, and img2dataset's table beside it."""

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from toys.images import soft_jpeg

from data_tools.indexing.foreign_record import Rights
from data_tools.indexing.img2dataset_rows import failed_rows
from data_tools.indexing.member_captions import CaptionRule, Sighting
from data_tools.indexing.tar_index import IndexRule, TarIndexer
from data_tools.indexing.tar_patterns import Tar
from data_tools.samples.shard_check import check_folder
from data_tools.vetting.read_samples import SampleFault, open_sample
from fuzz.hunt import Reader
from fuzz.mutation import damage_bytes, damage_json, damage_table, damage_tar
from leam_mm.data.shard_index import ShardFolder, read_samples, write_manifest
from leam_mm.data.shard_manifest import ShardEntry
from leam_mm.data.shard_places import parse_places
from leam_mm.files import bytes_sha256

Read = Callable[[bytes], object]
RULE = IndexRule(
    CaptionRule(("txt",), ("caption", "captions"), ("cat", "dog"), "und", "language"), Rights("unknown"), verify=False
)
WORDS = (
    b"path=",
    b"size=",
    b"30 path=a/b.c.jpg\n",
    b"GNU.sparse.map=0,1\n",
    b".jpg",
    b".txt",
    b".json",
    b"../",
    b"0.cls",
)


def tars(folder: Path) -> list[bytes]:
    """Return tars of every form, with long names, json, classes and members in any order."""
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            said = {
                "caption": "x",
                "url": "https://a.example/1.jpg",
                "key": "1",
                "status": "success",
                "sha256": "a" * 64,
            }
            said |= {"error_message": None, "exif": json.dumps({"Image Artist": "me"}), "original_width": 100}
            items = [("a.b/1.jpg", soft_jpeg(1)), ("2.jpg", soft_jpeg(2)), ("a.b/1.json", json.dumps(said).encode())]
            items += [("2.txt", "grün".encode()), ("2.pkl", b"x"), ("3.png", soft_jpeg(3, kind="PNG")), ("3.cls", b"1")]
            if form != tarfile.USTAR_FORMAT:
                items += [("k" * 120 + ".webp", soft_jpeg(4, kind="WEBP")), ("k" * 120 + ".txt", b"long")]
            for name, content in items:
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
        found.append(buffer.getvalue())
    return found


def write_folder(folder: Path, data: bytes) -> bool:
    """Index a tar into a folder; return whether it has a sample."""
    found = TarIndexer(RULE).index(io.BytesIO(data), "0.tar")
    if not found.keys:
        return False
    lines = found.lines(found.keys)
    (folder / "0.tar").write_bytes(data)
    (folder / "0.records.jsonl").write_bytes(lines)
    write_manifest(folder, [ShardEntry("0.tar", found.sha256, found.size, len(found.keys), bytes_sha256(lines))])
    return True


def foreign_tar(folder: Path) -> Read:
    """Index a tar, and hold the result against the contract of a shard folder."""
    indexer = TarIndexer(RULE)

    def read(data: bytes) -> None:
        indexer.look(io.BytesIO(data), "0.tar", Sighting(), 100)
        if write_folder(folder, data):
            faults = check_folder(folder, decode=False)[1].faults
            assert not faults, faults[0]
            assert len({key for key, _ in read_samples(folder)}) == ShardFolder(folder).samples

    return read


def records_seeds(folder: Path) -> list[bytes]:
    """Return files of records."""
    folder.mkdir(exist_ok=True)
    write_folder(folder, tars(folder)[2])
    return [(folder / "0.records.jsonl").read_bytes()]


def records(folder: Path) -> Read:
    """Read a file of records as the loader, check_shards and vetting do."""
    write_folder(folder, tars(folder)[2])
    entry = ShardFolder(folder).shards[0]

    def read(data: bytes) -> None:
        (folder / "0.records.jsonl").write_bytes(data)
        lines = max(1, data.count(b"\n"))
        write_manifest(folder, [ShardEntry("0.tar", entry.sha256, entry.bytes, min(lines, 100), bytes_sha256(data))])
        check_folder(folder, decode=False)
        with ShardFolder(folder).open_shard(0) as shard:
            for row, key in enumerate(shard.keys):
                raw = shard.raw(row)
                shard.is_intact(row, raw)
                with suppress(SampleFault):
                    open_sample(key, raw)

    return read


def places(folder: Path) -> Read:
    """Read tars.json."""

    def read(data: bytes) -> None:
        found = parse_places(data, "tars.json")
        for shard in ("0.tar", "1.tar"):
            found.address(shard, "/a/b"), found.address(shard, "s3://a/b")

    return read


def table_seeds(folder: Path) -> list[bytes]:
    """Return a table of img2dataset."""
    rows = [{"key": f"{n}", "status": "success" if n % 2 else "failed_to_download", "url": f"https://a.example/{n}",
             "caption": "x", "error_message": None, "width": 3} for n in range(4)]  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return [buffer.getvalue()]


def table(folder: Path) -> Read:
    """Read the table of img2dataset beside a tar."""

    def read(data: bytes) -> None:
        (folder / "0.parquet").write_bytes(data)
        failed_rows(Tar(str(folder), "0.tar", 0), "unknown")

    return read


READERS = [
    Reader("foreign_tar", tars, foreign_tar, (damage_tar, damage_tar, damage_bytes), words=WORDS),
    Reader("foreign_records", records_seeds, records, (damage_json, damage_bytes), words=(b'"offset": ', b'"size": ')),
    Reader(
        "foreign_places",
        lambda folder: [b'{"folders": ["../a", "s3://b"], "tars": {"0.tar": [1, "x.tar"]}}'],
        places,
        (damage_json, damage_bytes),
    ),
    Reader("img2dataset_table", table_seeds, table, (damage_table, damage_table, damage_bytes)),
]

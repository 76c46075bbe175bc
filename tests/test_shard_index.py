import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leam_mm.data import tar_members
from leam_mm.data.shard_index import (
    MANIFEST,
    ShardEntry,
    ShardFolder,
    ShardWriter,
    join_shards,
    merkle_root,
    parse_sample,
    read_samples,
)
from leam_mm.errors import UserError


def content(number: int) -> dict[str, bytes]:
    generator = np.random.default_rng(number)
    return {"png": generator.bytes(int(generator.integers(0, 1500))), "json": json.dumps({"n": number}).encode()}


def write(folder: Path, count: int = 7, samples_per_shard: int = 3) -> Path:
    with ShardWriter(folder, samples_per_shard) as writer:
        for number in range(count):
            writer.write(f"{number:05d}", content(number))
    return folder


def test_samples_come_back_in_order(tmp_path: Path) -> None:
    folder = ShardFolder(write(tmp_path / "a"))
    assert [entry.samples for entry in folder.shards] == [3, 3, 1] and folder.samples == 7
    assert list(read_samples(folder.path)) == [(f"{number:05d}", content(number)) for number in range(7)]


def test_python_tarfile_reads_the_same(tmp_path: Path) -> None:
    folder = ShardFolder(write(tmp_path / "a"))
    found = {}
    for number in range(3):
        with tarfile.open(folder.tar(number)) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert found == {f"{n:05d}.{extension}": raw for n in range(7) for extension, raw in content(n).items()}


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in a.iterdir()} == {
        path.name: path.read_bytes() for path in b.iterdir()
    }
    assert ShardFolder(a).merkle_root == ShardFolder(b).merkle_root
    assert ShardFolder(a).merkle_root != ShardFolder(write(tmp_path / "c", 6)).merkle_root


def test_manifest_and_index_hold_the_true_digests(tmp_path: Path) -> None:
    folder = ShardFolder(write(tmp_path / "a"))
    for number, entry in enumerate(folder.shards):
        raw, index = folder.tar(number).read_bytes(), folder.index(number)
        assert (hashlib.sha256(raw).hexdigest(), len(raw)) == (entry.sha256, entry.bytes)
        for offset, size, digest in zip(index.offset, index.size, index.sha256, strict=True):
            assert hashlib.sha256(raw[offset : offset + size]).hexdigest() == digest
        assert raw[int(index.offset[-1] + index.size[-1]) :] == b"\0" * 1024


def test_merkle_root_follows_rfc_6962() -> None:
    def leaf(entry: ShardEntry) -> bytes:
        return hashlib.sha256(b"\0" + bytes.fromhex(entry.sha256)).digest()

    def node(a: bytes, b: bytes) -> bytes:
        return hashlib.sha256(b"\1" + a + b).digest()

    entries = [ShardEntry(f"{n}.tar", hashlib.sha256(bytes([n])).hexdigest(), 1, 1) for n in range(5)]
    a, b, c, d, e = map(leaf, entries)
    assert merkle_root(entries) == node(node(node(a, b), node(c, d)), e).hex()
    assert merkle_root(entries[:1]) == a.hex()
    assert merkle_root(entries[:2]) != merkle_root(entries[1::-1])


def test_failed_writing_leaves_nothing_and_keeps_the_old_folder(tmp_path: Path) -> None:
    before = ShardFolder(write(tmp_path / "a")).merkle_root
    with pytest.raises(RuntimeError, match="halfway"), ShardWriter(tmp_path / "a", 2) as writer:
        for number in range(5):
            writer.write(f"x{number}", content(number))
        raise RuntimeError("halfway")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert ShardFolder(tmp_path / "a").merkle_root == before
    write(tmp_path / "a", 2)
    assert ShardFolder(tmp_path / "a").samples == 2 and [path.name for path in tmp_path.iterdir()] == ["a"]


def test_resumed_writing_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a", 3, resume=True) as writer:
        for number in range(5):
            writer.write(f"{number:05d}", content(number))
        raise RuntimeError
    (tmp_path / "a.partial/ledger.parquet.tmp-1-0123abcd").touch()  # of a killed writer
    with pytest.raises(UserError, match="not 2: continue with the old number"):
        ShardWriter(tmp_path / "a", 2, resume=True)
    with ShardWriter(tmp_path / "a", 3, resume=True) as writer:
        assert writer.finished == 3
        for number in range(writer.finished, 7):
            writer.write(f"{number:05d}", content(number))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()
    }


def test_run_killed_just_before_the_end_is_finished(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    write(tmp_path / "a").rename(tmp_path / "a.partial")
    with ShardWriter(tmp_path / "a", 3, resume=True) as writer:
        assert writer.finished == 6
        writer.write("00006", content(6))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()
    }


@pytest.mark.parametrize("key", ["", "a/b", "a.b", "../x", "k" * 81, "ö" * 41])
def test_keys_that_break_the_tar_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sample key"), ShardWriter(tmp_path / "a", 2) as writer:
        writer.write(key, content(0))
    assert not list(tmp_path.iterdir())


def test_empty_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no sample"), ShardWriter(tmp_path / "a", 2):
        pass
    with pytest.raises(UserError, match="at least 1"):
        ShardWriter(tmp_path / "a", 0)
    assert not list(tmp_path.iterdir())


def member(name: str, body: bytes, size: int | None = None) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(body) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + body + b"\0" * (-len(body) % 512)


@pytest.mark.parametrize("size", [513, 10**12, -512, -1024])
def test_lying_sizes_end_in_an_error(size: int) -> None:
    with pytest.raises(UserError, match="longer than its sample"):
        parse_sample(member("k.png", b"x" * 512) + member("k.json", b"y" * 512, size))


def test_broken_headers_end_in_an_error() -> None:
    raw = bytearray(member("k.png", b"x"))
    raw[0] ^= 1
    with pytest.raises(UserError, match="broken tar header at byte 0"):
        parse_sample(bytes(raw))
    assert parse_sample(member("deep/er/k.caption_state.npy", b"z")) == {"caption_state.npy": b"z"}


def entry_line(**changes: object) -> str:
    values = {"shard": "00000.tar", "sha256": "0" * 64, "bytes": 2048, "samples": 1}
    return json.dumps(values | changes)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("{broken", "not a shard entry"),
        ("[1]", "not a shard entry"),
        ('{"shard": "00000.tar"}', "not a shard entry"),
        (entry_line(shard=5), "not a shard entry"),
        (entry_line(sha256="xy"), "not a shard entry"),
        (entry_line(samples=-1), "not a shard entry"),
        (entry_line(bytes=None), "not a shard entry"),
        (entry_line(shard="../00000.tar"), "leaves the folder"),
        (entry_line(shard="/etc/x.tar"), "leaves the folder"),
        (entry_line(shard="ledger.parquet"), "leaves the folder"),
        ("", "names no sample"),
    ],
)
def test_hostile_manifests_are_refused(line: str, word: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(line + "\n")
    with pytest.raises(UserError, match=word):
        ShardFolder(tmp_path)


def test_folder_without_manifest_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="download_shards"):
        ShardFolder(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = ShardFolder(write(tmp_path / "a"))
    tar = folder.path / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"00001\.tar has \d+ bytes, the manifest says"):
        folder.tar(1)
    tar.unlink()
    with pytest.raises(UserError, match=r"00001\.tar is missing"):
        folder.tar(1)
    index = folder.path / "00000.index.parquet"
    index.write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="no readable index"):
        folder.index(0)
    index.unlink()
    with pytest.raises(UserError, match="missing"):
        folder.index(0)


@pytest.mark.parametrize(
    ("column", "values", "word"),
    [
        ("offset", [-512, 0, 0], "no range of a tar"),
        ("size", [512, 512, -1], "no range of a tar"),
        ("size", [512, None, 512], "no range of a tar"),
        ("size", [512, 512, 10**9], "beyond the end"),
        ("offset", None, "missing"),
    ],
)
def test_hostile_indexes_are_refused(column: str, values: list | None, word: str, tmp_path: Path) -> None:
    folder = ShardFolder(write(tmp_path / "a"))
    path = folder.path / "00000.index.parquet"
    table = pq.read_table(io.BytesIO(path.read_bytes())).drop_columns([column])
    if values is not None:
        table = table.append_column(column, pa.array(values, pa.int64()))
    pq.write_table(table, path)
    with pytest.raises(UserError, match=word):
        folder.index(0)


def test_headers_are_read_as_tarfile_reads_them() -> None:
    """Headers of other writers, or with a changed byte, are parsed as tarfile parses them."""

    def by_tarfile(block: bytes) -> tuple[str, int, bool] | type[Exception]:
        try:
            found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            return type(error)
        return found.name, found.size, found.isreg()

    def by_hand(block: bytes) -> tuple[str, int, bool] | type[Exception]:
        try:
            return tar_members.member_header(block)
        except tarfile.HeaderError as error:
            return type(error)

    whole = [
        tar_members.tar_member(name, bytes(size))[:512] for name, size in (("a.png", 0), ("k" * 80 + ".json", 70_000))
    ]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for name, kind, size in (("grün.png", b"0", 9), ("d", b"5", 0), ("x.jpg", b"\0", 3), ("s", b"2", 0)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, size
            whole.append(entry.tobuf(form, "utf-8")[:512])
    generator = np.random.default_rng(0)
    for block in whole:
        assert by_hand(block) == by_tarfile(block)
        for _ in range(200):
            changed = bytearray(block)
            changed[generator.integers(512)] = generator.choice([0, 32, 47, 48, 49, 57, 128, 255])
            field = changed[:148] + b" " * 8 + changed[156:]
            changed[148:156] = b"%06o\0 " % sum(field) if generator.random() < 0.8 else changed[148:156]
            assert by_hand(bytes(changed)) == by_tarfile(bytes(changed)), changed


def test_joining_folders_of_one_shard_can_be_repeated(tmp_path: Path) -> None:
    for number in range(3):
        with ShardWriter(tmp_path / f"job{number}", 4) as writer:
            for row in range(2 + number):
                writer.write(f"{number}{row}", {"txt": b"x" * row})
    parts = [tmp_path / f"job{number}" for number in range(3)]
    whole = ShardFolder(parts[0]).tar(0).read_bytes()
    (tmp_path / "all").mkdir()
    os.replace(ShardFolder(parts[0]).tar(0), tmp_path / "all" / "00000.tar")  # a run killed after its first step
    for _ in range(2):
        join_shards(parts, tmp_path / "all")
        joined = ShardFolder(tmp_path / "all")
        assert [entry.samples for entry in joined.shards] == [2, 3, 4] and joined.tar(0).read_bytes() == whole
        assert [key for key, _ in read_samples(tmp_path / "all")] == [f"{n}{r}" for n in range(3) for r in range(2 + n)]
    joined.tar(1).unlink()
    with pytest.raises(UserError, match=r"00001\.tar was written and is missing"):
        join_shards(parts, tmp_path / "all")

"""data_tools/index_shards.py: tars of others become shard folders, and all programs read them."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset
from toys.foreign_tars import (
    captions_of,
    faults_of,
    index,
    original_keys,
    pair,
    records_of,
    shard_writer,
    write_tar,
)
from toys.images import soft_jpeg
from toys.shards import first_batch
from toys.vetting import file_digests, read_ledger

from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.data.shard_manifest import ShardEntry, merkle_root
from leam_mm.errors import UserError


class Trap:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def shard_writer_json(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=10, verbose=0) as writer:
        for number in range(30):
            record = {"caption": f"caption {number}", "height": 1, "width": 1}
            writer.write({"__key__": f"{number:06d}", "jpg": soft_jpeg(number), "json": record})
    return folder


def not_adjacent(folder: Path) -> Path:
    pairs = [pair(str(number), number) for number in range(10)]
    write_tar(folder / "0.tar", [items[0] for items in pairs] + [items[1] for items in reversed(pairs)])
    return folder


def dots(folder: Path) -> Path:
    write_tar(folder / "0.tar", [item for n in range(10) for item in pair(f"train.v1/{n:04d}", n)])
    return folder


def pickles(folder: Path) -> Path:
    import pickle

    trap = pickle.dumps(Trap(folder / "PWNED"))
    items = [[*pair(f"{n:04d}", n), *((f"{n:04d}.{end}", trap) for end in ("pyd", "pkl", "pth"))] for n in range(10)]
    write_tar(folder / "0.tar", [item for several in items for item in several])
    return folder


def classes(folder: Path) -> Path:
    items = [[(f"{n:04d}.jpg", soft_jpeg(n)), (f"{n:04d}.cls", str(n % 3).encode())] for n in range(10)]
    write_tar(folder / "0.tar", [item for several in items for item in several])
    (folder / "names.txt").write_text("cat\ndog\nbird\n")
    return folder


CASES = (shard_writer, shard_writer_json, not_adjacent, dots, pickles, classes)


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_six_kinds_of_tars_are_indexed_checked_and_read_in_batches(make: object, tmp_path: Path) -> None:
    folder = make(tmp_path / "tars")  # type: ignore[operator]
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    options = ["--class-names", folder / "names.txt"] if make is classes else []
    index(folder, *options)
    assert faults_of(folder) == []
    images = [soft_jpeg(n) for n in range(30 if len(before) > 1 else 10)]
    assert sorted(members["jpg"] for _, members in read_samples(folder)) == sorted(images)
    caption = {"cat", "dog", "bird"} if make is classes else {f"caption {n}" for n in range(len(images))}
    assert set(captions_of(folder).values()) == caption
    batch = first_batch(folder, batch_size=8, seed=3, workers=0)
    assert batch["image"].shape[0] == 8 and set(batch["caption"]) <= caption
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert not (folder / "PWNED").exists()


def test_what_is_recognised_is_said_before_the_work_and_counted_after(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    index(shard_writer(tmp_path / "sw"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("tars of samples, 3 tars from train-000000.tar to train-000007.tar, ")
    assert "5 numbers missing (train-000001.tar" in said[0] and said[0].endswith("captions from .txt")
    assert "30 samples in 3 shards" in said[1]
    index(pickles(tmp_path / "pkl"), basis="unknown")
    said = capsys.readouterr().out
    assert "members that are not used: .pyd 10, .pkl 10, .pth 10" in said and "legal basis is unknown" in said


def test_patterns_name_the_tars_and_gaps_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shard_writer(tmp_path / "sw")
    for number, pattern in enumerate(("train-{000000..000009}.tar", "train-*.tar", "train-{000000,000002,000007}.tar")):
        index(folder / pattern, "--output", tmp_path / f"out{number}")
        first = capsys.readouterr().out.splitlines()[0]
        assert "3 tars" in first and ("7 numbers missing" in first if number == 0 else "5 numbers" in first)
    roots = {ShardFolder(tmp_path / f"out{number}").merkle_root for number in range(3)}
    assert len(roots) == 1
    with pytest.raises(UserError, match="names no tar"):
        index(folder / "other-*.tar")
    with pytest.raises(UserError, match="more than 1000000 tars"):
        index(folder / "{0..99999999999}.tar")


def test_an_index_elsewhere_refers_to_the_tars_and_moves_with_them(tmp_path: Path) -> None:
    folder = shard_writer(tmp_path / "a/sw")
    index(folder, "--output", tmp_path / "a/out")
    assert not list(folder.glob("*.parquet")) and faults_of(tmp_path / "a/out") == []
    (tmp_path / "a").rename(tmp_path / "b")
    assert faults_of(tmp_path / "b/out") == []
    shutil.rmtree(tmp_path / "b/sw")
    with pytest.raises(UserError, match="missing"):
        list(read_samples(tmp_path / "b/out"))


def test_tars_of_several_folders_with_equal_names(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"part{number}/0.tar", [item for n in range(3) for item in pair(f"k{n}", 3 * number + n)])
    with pytest.raises(UserError, match="2 folders: give --output"):
        index(tmp_path / "part0", tmp_path / "part1")
    index(tmp_path / "part0", tmp_path / "part1", "--output", tmp_path / "out")
    out = ShardFolder(tmp_path / "out")
    assert [entry.shard for entry in out.shards] == ["part0-0.tar", "part1-0.tar"]
    # A key that occurs before in another tar gets an ending; its own is kept in the record.
    assert list(captions_of(tmp_path / "out")) == ["k0", "k1", "k2", "k0~2", "k1~2", "k2~2"]
    assert original_keys(tmp_path / "out") == ["k0", "k1", "k2"] * 2 and faults_of(tmp_path / "out") == []
    assert [row["key"] for row in read_ledger(tmp_path / "out")] == list(captions_of(tmp_path / "out"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_kind(tmp_path: Path, form: int) -> None:
    names = [
        "235342 Track 2.0 (Clean)",
        "./a/b.c/0001",
        "UPPER.Case",
        "übung/größe",
        "._hidden/x",
        "long/" * 18 + "name",
    ]
    names += [] if form == tarfile.USTAR_FORMAT else ["k" * 180, "deep/" * 40 + "x" * 120]
    names += ["long/" * 18 + "name", "/absolute/0001", "../../escape", "a\nb"]
    write_tar(tmp_path / "t/0.tar", [item for n, name in enumerate(names) for item in pair(name, n)], form)
    index(tmp_path / "t")
    keys = list(captions_of(tmp_path / "t"))
    assert len(keys) == len(names) == len(set(keys)) and faults_of(tmp_path / "t") == []
    assert all(len(key.encode()) <= 80 and key.isprintable() and not set(key) & set("/.\\") for key in keys)
    assert original_keys(tmp_path / "t") == [name.removeprefix("./") for name in names]
    assert not (tmp_path / "escape.jpg").exists() and not Path("/absolute").exists()


def test_hidden_files_and_those_of_macos_are_no_samples(tmp_path: Path) -> None:
    items = [*pair("0"), ("._0.jpg", b"\0\5\x16\7"), (".x.jpg", soft_jpeg(1)), *pair("__MACOSX/0", 2)]
    write_tar(tmp_path / "0.tar", items)
    index(tmp_path / "0.tar")
    assert list(captions_of(tmp_path)) == ["0"]


def test_names_that_occur_again_and_images_beside_images(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mask = ("0001.seg.png", soft_jpeg(9, kind="PNG"))
    items = [*pair("0001", 1), mask, *pair("0001", 2), ("0002.jpg", soft_jpeg(3)), ("0002.png", mask[1])]
    write_tar(tmp_path / "0.tar", [*items, ("0002.txt", b"third"), ("0003.jpg", soft_jpeg(4))])
    index(tmp_path / "0.tar")
    assert captions_of(tmp_path) == {"0001": "caption 1", "0001~2": "caption 2", "0002": "third"}
    assert [set(members) for _, members in read_samples(tmp_path)] == [{"jpg", "json"}] * 3
    said = capsys.readouterr().out
    assert "left out: no caption 1" in said and "keys that occur again in their tar 1" in said
    assert ".seg.png 1" in said and ".png 1" in said
    last = read_ledger(tmp_path)[-1]
    assert (last["key"], last["rule"], last["kept"]) == ("0003", "no caption", False)


def test_links_devices_and_sparse_files_have_no_content(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    odd = []
    for kind, name in ((tarfile.SYMTYPE, "1.jpg"), (tarfile.LNKTYPE, "2.jpg"), (tarfile.CHRTYPE, "3.jpg"),
                       (tarfile.DIRTYPE, "4.jpg"), (tarfile.FIFOTYPE, "5.jpg")):  # fmt: skip
        header = tarfile.TarInfo(name)
        header.type, header.linkname, header.size = kind, "/etc/passwd", 0
        odd.append(header)
    write_tar(tmp_path / "0.tar", [*pair("0"), *odd, *((f"{n}.txt", b"c") for n in range(1, 6)), *pair("6", 6)])
    index(tmp_path / "0.tar")
    assert list(captions_of(tmp_path)) == ["0", "6"]
    said = capsys.readouterr().out
    assert "links, folders, devices and sparse files 5" in said and "no image 5" in said


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_tars_of_gnu_tar_with_sparse_files(tmp_path: Path) -> None:
    with open(tmp_path / "hole.jpg", "wb") as file:
        file.truncate(1 << 20)
    for name, content in pair("0"):
        (tmp_path / name).write_bytes(content)
    for number, form in enumerate(("gnu", "posix")):
        tar = tmp_path / f"{number}/0.tar"
        tar.parent.mkdir()
        names = ["hole.jpg", "0.jpg", "0.txt"]
        subprocess.run(["tar", "-S", f"--format={form}", "-cf", tar, *names], cwd=tmp_path, check=True)
        index(tar)
        assert captions_of(tar.parent) == {"0": "caption 0"} and faults_of(tar.parent) == []


def test_truncated_tars_keep_the_samples_before_the_cut(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    items = [item for n in range(8) for item in pair(f"{n:04d}", n)]
    whole = write_tar(tmp_path / "whole/0.tar", items).read_bytes()
    for name, content in (("1", whole[:9000]), ("2", whole[:512]), ("3", b""), ("4", whole[:10240] + b"\1" * 9000)):
        (tmp_path / f"whole/{name}.tar").write_bytes(content)
    index(tmp_path / "whole")
    said = capsys.readouterr().out
    assert "damaged: 4 of 5 tars: 1.tar is cut in" in said and said.count("damaged:") == 1
    assert "3.tar is empty" in said and "4.tar has a damaged header" in said
    folder = ShardFolder(tmp_path / "whole")
    assert [entry.shard for entry in folder.shards] == ["0.tar", "1.tar", "4.tar"] and faults_of(folder.path) == []
    assert folder.shards[1].samples == 2


def test_compressed_tars_are_refused_with_the_fix(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", pair("0"))
    (tmp_path / "z").mkdir()
    for name in ("0.tar.gz", "named.tar"):
        (tmp_path / "z" / name).write_bytes(gzip.compress(tar.read_bytes()))
        with pytest.raises(UserError, match=r"compressed.*gunzip"):
            index(tmp_path / "z" / name)
    assert sorted(path.name for path in (tmp_path / "z").iterdir()) == ["0.tar.gz", "named.tar"]


def test_images_that_the_loader_cannot_read_are_left_out_with_the_reason(tmp_path: Path) -> None:
    broken = soft_jpeg(1)[:-300]
    items = [("0.jpg", b""), ("1.jpg", b"GIF89a" + bytes(40)), ("2.jpg", b"<html>"), ("3.gif", b"GIF89a" + bytes(40))]
    items += [("4.jpg", broken), ("5.jpeg", soft_jpeg(5, kind="PNG")), ("6.JPG", soft_jpeg(6))]
    write_tar(tmp_path / "0.tar", [item for n, each in enumerate(items) for item in (each, (f"{n}.txt", b"c"))])
    index(tmp_path / "0.tar", "--output", tmp_path / "out")
    reasons = {row["key"]: row["reason"] for row in read_ledger(tmp_path / "out") if not row["kept"]}
    assert reasons == {"0": "empty image", "1": "image in a format that is not read: gif",
                       "2": "image in a format that is not read: text",
                       "3": "image in a format that is not read: gif"}  # fmt: skip
    # Without --verify a damaged image stays, and the check of the folder finds it, as for our own shards.
    assert [set(members) - {"json"} for _, members in read_samples(tmp_path / "out")] == [{"jpg"}, {"png"}, {"jpg"}]
    assert len(faults_of(tmp_path / "out")) == 1 and "sample 4" in faults_of(tmp_path / "out")[0]
    index(tmp_path / "0.tar", "--output", tmp_path / "verified", "--verify")
    assert faults_of(tmp_path / "verified") == [] and list(captions_of(tmp_path / "verified")) == ["5", "6"]


def test_captions_of_every_kind(tmp_path: Path) -> None:
    texts = ["plain", "\ufeffmarked", "grün"]
    encoded = [texts[0].encode(), texts[1].encode(), texts[2].encode("latin-1"), "weit".encode("utf-16")]
    items = [item for n, raw in enumerate(encoded) for item in (pair(str(n), n)[0], (f"{n}.txt", raw))]
    write_tar(tmp_path / "txt/0.tar", items)
    index(tmp_path / "txt/0.tar", "--language", "DE")
    assert list(captions_of(tmp_path / "txt").values()) == ["plain", "marked", "grün", "weit"]
    assert json.loads(next(read_samples(tmp_path / "txt"))[1]["json"])["captions"][0]["language"] == "de"
    fields = {"alt": "an alt", "long": ["first", "second", ""], "by": {"de": "eins", "fr": ["un", "une"]}, "L": "it"}
    items = [(("k.jpg"), soft_jpeg(1)), ("k.json", json.dumps(fields).encode()), ("k.alt.txt", b"member")]
    write_tar(tmp_path / "json/0.tar", items)
    index(tmp_path / "json/0.tar", "--caption-field", "alt", "long", "by", "--caption-member", "alt.txt",
          "--language-field", "L")  # fmt: skip
    (_, members), *_ = read_samples(tmp_path / "json")
    found = [(each["text"], each["language"]) for each in json.loads(members["json"])["captions"]]
    assert found == [("member", "it"), ("an alt", "it"), ("first", "it"), ("second", "it"), ("eins", "de"),
                     ("un", "fr"), ("une", "fr")]  # fmt: skip
    with pytest.raises(UserError, match=r"no captions recognised among the members .*\.jpg"):
        write_tar(tmp_path / "none/0.tar", [("k.jpg", soft_jpeg(1)), ("k.npy", b"x")])
        index(tmp_path / "none/0.tar")
    with pytest.raises(UserError, match="--class-names"):
        index(classes(tmp_path / "cls"))


def test_the_legal_basis_is_asked_for(tmp_path: Path) -> None:
    from data_tools.index_shards import main

    write_tar(tmp_path / "0.tar", pair("0"))
    with pytest.raises(UserError, match=r"legal.basis"):
        main([str(tmp_path / "0.tar")])
    with pytest.raises(UserError, match="unknown"):
        index(tmp_path / "0.tar", basis="fair_use")


def test_sources_and_licences(tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(
        "sources:\n  - {domain: museum.example, basis: public_domain, licence: CC0-1.0}\n"
    )
    urls = ["https://museum.example/a.jpg", "https://else.example/b.jpg"]
    items = [item for n, url in enumerate(urls) for item in
             (*pair(str(n), n), (f"{n}.json", json.dumps({"url": url, "license": "mine"}).encode()))]  # fmt: skip
    write_tar(tmp_path / "t/0.tar", items)
    index(tmp_path / "t", "--sources", tmp_path / "sources.yaml", basis="art4_general")
    records = [line["record"] for line in records_of(tmp_path / "t")]
    assert [(each["legal_basis"], each["licence"], each["domain"]) for each in records] == [
        ("public_domain", "CC0-1.0", "museum.example"),
        ("art4_general", "mine", "else.example"),
    ]


def test_the_merkle_root_covers_captions_and_old_roots_stay(tmp_path: Path) -> None:
    write_tar(tmp_path / "t/0.tar", [*pair("0"), *pair("1", 1)])
    index(tmp_path / "t", "--output", tmp_path / "a")
    index(tmp_path / "t", "--output", tmp_path / "b", "--language", "de")
    assert ShardFolder(tmp_path / "a").merkle_root != ShardFolder(tmp_path / "b").merkle_root
    file = tmp_path / "a/0.records.jsonl"
    file.write_bytes(file.read_bytes().replace(b"caption 1", b"caption 9"))
    assert any("0.records.jsonl" in fault for fault in faults_of(tmp_path / "a"))
    entries = [ShardEntry(f"{n}.tar", hashlib.sha256(bytes([n])).hexdigest(), 512, 1) for n in range(3)]
    assert merkle_root(entries) == "d1f13800048f5909d4043fc0c152f6643280cba608b672715e56ce159a20629f"


def test_the_number_of_workers_changes_no_byte(tmp_path: Path) -> None:
    tars = shard_writer(tmp_path / "tars")
    for workers in (1, 2):
        index(tars, "--output", tmp_path / str(workers), "--workers", workers)
    assert file_digests(tmp_path / "1") == file_digests(tmp_path / "2")


def test_files_that_a_killed_run_left_unfinished_are_removed(tmp_path: Path) -> None:
    """Only those of this program: others in the folder belong to the user."""
    tars = shard_writer(tmp_path / "tars")
    for name in ("train-000000.records.jsonl", "ledger.parquet", "README.md", "notes.txt"):
        (tars / f"{name}.tmp-1-00000000").touch()
    index(tars)
    assert [path.name for path in tars.glob("*.tmp-*")] == ["notes.txt.tmp-1-00000000"]

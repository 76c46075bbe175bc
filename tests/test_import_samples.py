"""MDS folders and parquet files with images become shard folders."""

import gzip
import hashlib
import io
import json
import pickle
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.mds import write_mds

from data_tools.import_samples import main
from data_tools.importing import sample_import
from data_tools.importing.mds_folder import MdsFolder
from leam_mm.data.ledger import LEDGER
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError


def picture(number: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(number).randint(0, 255, (24, 20, 3)).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


COLUMNS: dict[str, tuple[str, int | None]] = {"caption": ("str", None), "image": ("jpeg", None), "n": ("int", 8)}


def mds(folder: Path, packed: bool = False, count: int = 4, **further: tuple[str, bytes]) -> Path:
    samples = [
        {"caption": f"Bild {n}".encode(), "image": picture(n), "n": n.to_bytes(8, "little")}
        | {name: value for name, (_, value) in further.items()}
        for n in range(count)
    ]  # fmt: skip
    columns = COLUMNS | {name: (code, None) for name, (code, _) in further.items()}
    return write_mds(folder, columns, samples, packed)


def run(source: Path, output: Path, *options: str) -> list[tuple[dict[str, bytes], dict[str, Any]]]:
    main([str(source), "--output", str(output), "--legal-basis", "unknown", "--processes", "0", *options])
    return [(members, json.loads(members["json"])) for _, members in read_samples(output)]


def ledger(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / LEDGER).to_pylist()


def edit_index(folder: Path, change: Any) -> Path:
    index = json.loads((folder / "index.json").read_text())
    change(index["shards"][0])
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_mds_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = run(mds(tmp_path / "mds"), tmp_path / "shards", "--language", "de", "--licence", "CC0-1.0")
    assert [members["jpg"] for members, _ in samples] == [picture(n) for n in range(4)]
    record = samples[1][1]
    assert record["captions"] == [
        {"text": "Bild 1", "language": "de", "source": "caption", "machine_translated": False}
    ]
    assert (record["licence"], record["legal_basis"]) == ("CC0-1.0", "unknown")
    assert record["metadata"]["place"] == "shard.00000.mds/1"
    printed = capsys.readouterr().out
    assert "MosaicML MDS, 4 rows in 1 files, images from image, captions from caption" in printed.splitlines()[0]
    assert "legal basis is unknown" in printed
    assert [row["kept"] for row in ledger(tmp_path / "shards")] == [True] * 4


def test_compressed_mds_gives_the_same_bytes(tmp_path: Path) -> None:
    run(mds(tmp_path / "mds"), tmp_path / "a")
    run(mds(tmp_path / "packed", packed=True), tmp_path / "b")
    assert ShardFolder(tmp_path / "a").merkle_root == ShardFolder(tmp_path / "b").merkle_root


def test_pickles_are_never_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    samples = run(mds(tmp_path / "mds", p=("pkl", pickle.dumps(Harm()))), tmp_path / "shards")
    assert len(samples) == 4 and not (tmp_path / "harm").exists()
    assert "column 'p' is left out: pickle" in capsys.readouterr().out
    with pytest.raises(UserError, match="pickle"):
        main(
            [str(tmp_path / "mds"), "--output", str(tmp_path / "x"), "--legal-basis", "unknown", "--image-column", "p"]
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard["raw_data"].update(basename="../shard.00000.mds"),
        lambda shard: shard["raw_data"].update(basename="/etc/passwd"),
        lambda shard: shard.update(samples=1 << 40),
        lambda shard: shard.update(samples=-1),
        lambda shard: shard.update(samples=900_000_000, raw_data=shard["raw_data"] | {"bytes": 4_000_000_000}),
        lambda shard: shard.update(samples=True),
        lambda shard: shard.update(column_sizes=[None, -5, 8]),
        lambda shard: shard.update(column_names=["caption", "caption", "n"]),
        lambda shard: shard.update(format="csv"),
        lambda shard: shard.pop("raw_data"),
        lambda shard: shard.update(column_names=None),
    ],
)
def test_hostile_index_is_one_line(tmp_path: Path, change: Any) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        MdsFolder(edit_index(mds(tmp_path / "mds"), change))


def test_offsets_outside_of_the_file_are_in_the_ledger(tmp_path: Path) -> None:
    folder = mds(tmp_path / "mds")
    content = bytearray((folder / "shard.00000.mds").read_bytes())
    content[8:12] = (1 << 31).to_bytes(4, "little")
    (folder / "shard.00000.mds").write_bytes(content)
    rows = list(MdsFolder(folder).rows({"image", "caption"}, 0, tmp_path, 1 << 20))
    assert len(rows) == 4 and all("offsets lie outside" in row.fault for row in rows)


def test_sizes_that_do_not_fit_leave_out_one_sample(tmp_path: Path) -> None:
    folder = mds(tmp_path / "mds")
    content = bytearray((folder / "shard.00000.mds").read_bytes())
    at = int.from_bytes(content[8:12], "little")  # of the second sample
    content[at : at + 4] = (0xFFFFFFFF).to_bytes(4, "little")
    (folder / "shard.00000.mds").write_bytes(content)
    samples = run(folder, tmp_path / "shards")
    assert [record["captions"][0]["text"] for _, record in samples] == ["Bild 0", "Bild 2", "Bild 3"]
    fate = ledger(tmp_path / "shards")[1]
    assert not fate["kept"] and fate["rule"] in ("source", "caption")


def test_compression_bomb_ends_at_the_stated_size(tmp_path: Path) -> None:
    folder = mds(tmp_path / "mds", packed=True)
    (folder / "shard.00000.mds.gz").write_bytes(gzip.compress(bytes(50_000_000)))
    rows = list(MdsFolder(folder).rows({"image"}, 0, tmp_path, 1 << 20))
    assert len(rows) == 4 and all("unpacks to more" in row.fault for row in rows)
    assert not list(tmp_path.glob("*.unpacked*"))


def hub(folder: Path, count: int = 4, **further: list[Any]) -> Path:
    image = pa.array([{"bytes": picture(n, "PNG"), "path": f"{n}.png"} for n in range(count)],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    folder.mkdir()
    table = pa.table({"image": image, "text": [f"a photo {n}" for n in range(count)], **further})
    for part in range(2):
        pq.write_table(table.slice(part * count // 2, count // 2), folder / f"train-{part:05d}-of-00002.parquet")
    return folder


def test_hugging_face_parquet_becomes_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = run(hub(tmp_path / "hub"), tmp_path / "shards")
    assert [members["png"] for members, _ in samples] == [picture(n, "PNG") for n in range(4)]
    assert [record["captions"][0]["text"] for _, record in samples] == [f"a photo {n}" for n in range(4)]
    assert samples[2][1]["metadata"]["place"] == "train-00001-of-00002.parquet/0"
    assert "Hugging Face parquet, 4 rows in 2 files" in capsys.readouterr().out


def test_several_captions_lists_addresses_and_licences(tmp_path: Path) -> None:
    further = {"de": ["ein Foto"] * 4, "fr": [["une photo", "une image"]] * 4, "license": ["CC-BY-4.0"] * 4,
               "url": ["https://museum.example/1.png", "http://127.0.0.1/x", "no address", None]}  # fmt: skip
    folder = hub(tmp_path / "hub", **further)
    options = ("--caption-column", "de=de", "fr=fr", "text")
    samples = run(folder, tmp_path / "shards", *options)
    captions = [(entry["text"], entry["language"]) for entry in samples[0][1]["captions"]]
    assert captions == [("ein Foto", "de"), ("une photo", "fr"), ("une image", "fr"), ("a photo 0", "und")]
    records = [record for _, record in samples]
    assert [record["url"].partition(":")[0] for record in records] == ["https", "file", "file", "file"]
    assert records[1]["metadata"]["url"] == "http://127.0.0.1/x"
    assert records[0]["domain"] == "museum.example" and records[0]["licence"] == "CC-BY-4.0"


def test_damaged_images_and_missing_captions_are_in_the_ledger(tmp_path: Path) -> None:
    image = pa.array([{"bytes": picture(0), "path": None}, {"bytes": b"none", "path": None},
                      {"bytes": None, "path": "x.png"}, {"bytes": picture(3), "path": None}],
                     pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    pq.write_table(pa.table({"image": image, "text": ["a", "b", "c", ""]}), tmp_path / "x.parquet")
    run(tmp_path / "x.parquet", tmp_path / "shards")
    fates = ledger(tmp_path / "shards")
    assert [fate["kept"] for fate in fates] == [True, False, False, False]
    assert fates[2]["rule"] == "source" and fates[3]["rule"] == "caption"


def test_withdrawn_addresses_do_not_come_back(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub", url=[f"https://museum.example/{n}.png" for n in range(4)])
    lists = tmp_path / "old.blocklists"
    lists.mkdir()
    (lists / "url_sha256.txt").write_text(hashlib.sha256(b"//museum.example/2.png").hexdigest() + "\n")
    run(folder, tmp_path / "shards")
    assert [fate["kept"] for fate in ledger(tmp_path / "shards")] == [True, True, False, True]


def test_killed_run_continues_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_import, "ROWS", 3)
    whole = run(mds(tmp_path / "mds", count=8), tmp_path / "whole")
    write_part, parts = sample_import._write_part, []

    def killed(rows: Any, part: int, *rest: Any) -> int:
        parts.append(part)
        if part == 2 and parts == [0, 1, 2]:
            raise KeyboardInterrupt
        return write_part(rows, part, *rest)

    monkeypatch.setattr(sample_import, "_write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "mds", tmp_path / "again")
    assert run(tmp_path / "mds", tmp_path / "again") == whole
    assert parts == [0, 1, 2, 2]
    assert not (tmp_path / "again.work").exists()


def test_parquet_of_more_rows_than_bytes_is_refused(tmp_path: Path) -> None:
    """Each row would be one of the ledger."""
    images = pa.array([None] * 900_000, pa.binary())
    pq.write_table(pa.table({"image": images, "text": pa.nulls(900_000, pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match="claims 900000 rows in"):
        run(tmp_path / "x.parquet", tmp_path / "shards")


def test_nested_columns_of_parquet_have_limits(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"image": [{"bytes": bytes(300_000_000), "path": ""}], "text": ["a"]}),
        tmp_path / "x.parquet",
        compression="zstd",
    )
    with pytest.raises(UserError, match=r"no sample|only 0"):
        run(tmp_path / "x.parquet", tmp_path / "shards")


def test_errors_name_the_columns(tmp_path: Path) -> None:
    folder = hub(tmp_path / "hub")
    with pytest.raises(UserError, match=r"--caption-column 'none'.*'image' .image., 'text' .text."):
        run(folder, tmp_path / "shards", "--caption-column", "none")
    with pytest.raises(UserError, match="--legal-basis"):
        main([str(folder), "--output", str(tmp_path / "x"), "--legal-basis", "mine"])


@pytest.mark.skipif(find_spec("streaming") is None, reason="needs mosaicml-streaming")
@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
def test_folders_of_the_real_writer(tmp_path: Path, compression: str | None) -> None:
    from streaming import MDSWriter

    columns = {"caption": "str", "image": "bytes", "n": "int", "p": "pkl"}
    with MDSWriter(out=str(tmp_path / "mds"), columns=columns, compression=compression, size_limit=4000) as writer:
        for n in range(6):
            writer.write({"caption": f"Bild {n}", "image": picture(n), "n": n, "p": {1: 2}})
    samples = run(tmp_path / "mds", tmp_path / "shards")
    assert [members["jpg"] for members, _ in samples] == [picture(n) for n in range(6)]


@pytest.mark.skipif(find_spec("streaming") is None, reason="needs mosaicml-streaming")
def test_small_writer_equals_the_real_one(tmp_path: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path / "real"), columns={name: code for name, (code, _) in COLUMNS.items()}) as writer:
        for n in range(4):
            writer.write({"caption": f"Bild {n}", "image": picture(n), "n": n})
    mds(tmp_path / "own")
    for name in ("shard.00000.mds", "index.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "real" / name).read_bytes()


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs Hugging Face datasets")
def test_parquet_of_the_real_library(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {
        "image": [{"bytes": picture(n), "path": None} for n in range(3)],
        "caption": [f"a photo {n}" for n in range(3)],
    }
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(str(tmp_path / "hub" / "train.parquet"))
    samples = run(tmp_path / "hub", tmp_path / "shards")
    assert [members["jpg"] for members, _ in samples] == [picture(n) for n in range(3)]

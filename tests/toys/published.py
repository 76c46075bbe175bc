"""Shards in the form that download_shards writes, folders derived from them, and the parts of a running download."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.network.image_fetch import FetchSetting
from data_tools.withdraw_samples import main
from leam_mm.data.keep_list import write_keep_list
from leam_mm.data.ledger import LEDGER, LedgerWriter, link_uid
from leam_mm.data.shard_index import ShardFolder, ShardWriter, read_samples
from toys.images import encoded_image, soft_image


def record_of(number: int, content: bytes) -> dict:
    """Record of a downloaded image, with a host of five and a page of three."""
    host = f"img.site{number % 5}.example"
    url, caption = f"https://{host}/{number}.png", f"Picture number {number} of a lake"
    return {
        "captions": [{"text": caption, "language": "en", "source": "alt", "machine_translated": False}],
        "uid": link_uid(url, None, caption),
        "url": url,
        "page_url": f"https://pages{number % 3}.example/{number}",
        "domain": host,
        "licence": "CC0-1.0",
        "legal_basis": "public_domain",
        "crawler": "leam_mm",
        "sha256": hashlib.sha256(content).hexdigest(),
        "pdq": None,
        "width": 80,
        "height": 80,
        "consent": {},
        "metadata": {},
        "transforms": [],
    }


def write_published(folder: Path, samples: int = 23, per_shard: int = 5) -> Path:
    """Shards with a ledger."""
    rows = []
    with ShardWriter(folder, per_shard) as writer:
        for number in range(samples):
            content = encoded_image(soft_image(number))
            record = record_of(number, content)
            writer.write(f"{number:07d}", {"png": content, "json": json.dumps(record).encode()})
            rows.append(
                {name: record.get(name) for name in ("uid", "url", "domain", "sha256", "licence", "legal_basis")}
                | {"key": f"{number:07d}", "kept": True, "rule": "kept", "evidence": {"url": record["url"]}}
            )
        with LedgerWriter(writer.partial / LEDGER, "download") as ledger:
            ledger.write(rows)
    return folder


def keys_of(folder: Path) -> list[str]:
    """Keys of all samples, in order."""
    return [key for key, _ in read_samples(folder)]


def derived_from(folder: Path, output: Path) -> tuple[Path, Path]:
    """Write a keep-list of these shards, and their latents in buckets of two shapes."""
    source = ShardFolder(folder)
    kept = [(number, row, key) for number in range(len(source.shards)) for row, key in
            enumerate(source.index(number).keys) if row != 1]  # fmt: skip
    (output / "kept").mkdir()
    columns = zip(*kept, strict=True)
    table = pa.table(dict(zip(("shard", "row", "key"), map(list, columns), strict=True)))
    write_keep_list(output / "kept", "../shards", source.merkle_root, table)
    listed = []
    for shape, rest in (("8x16", 0), ("16x8", 1)):
        samples = [key for key in keys_of(folder) if int(key) % 2 == rest]
        with ShardWriter(output / "latents" / shape, 4) as writer:
            for key in samples:
                json_bytes = json.dumps({"captions": [{"text": key, "language": "en"}]}).encode()
                writer.write(key, {"latent.npy": key.encode(), "json": json_bytes})
        height, width = map(int, shape.split("x"))
        listed.append({"folder": shape, "height": height, "width": width, "samples": len(samples)})
    (output / "latents/buckets.json").write_text(json.dumps({"buckets": listed}))
    (output / "latents/encoding.json").write_text(json.dumps({"shards": source.merkle_root}))
    return output / "kept", output / "latents"


def withdraw(*args: object) -> None:
    """Call withdraw_samples in this process."""
    main([str(arg) for arg in args])


ROWS = [0, 2, 3, 5, 8, 9, 11]  # rows of the link table that are fetched


def write_part(raw: Path, part: int, rows: list[int], **changes: object) -> None:
    """Write one part as a download worker does: its rows in order of arrival."""
    arrived = np.random.default_rng(part).permutation(rows)
    cells = [
        {
            "row": int(row),
            "rule": "",
            "value": "",
            "reason": "",
            "fetched_at": FETCHED_AT,
            "response": '{"final_url": "http://a.example/"}',
            "visit": '{"seconds": 0.1}',
            "sha256": hashlib.sha256(part_image(row)).hexdigest(),
            "content": part_image(row),
        }
        | changes
        for row in arrived
    ]
    pq.write_table(pa.Table.from_pylist(cells, FETCHED), part_file(raw, part))


def parts_of(rows: list[int]) -> list[list[int]]:
    """Rows of each part."""
    return [rows[start : start + ROWS_PER_PART] for start in range(0, len(rows), ROWS_PER_PART)]


ROWS_PER_PART = 3


FETCHED_AT = "2026-11-01T12:00:00+00:00"


def part_image(row: int) -> bytes:
    """A PNG that shows the number of its row as a colour."""
    return encoded_image(Image.new("RGB", (4, 4), (row, 0, 0)))


@pytest.fixture()
def fetch_setting(tmp_path: Path) -> FetchSetting:
    """Settings of a download of small parts."""
    (tmp_path / "raw").mkdir()
    return FetchSetting(str(tmp_path / "links"), str(tmp_path / "raw"), "Agent", "", rows_per_part=ROWS_PER_PART)

"""Readers of shards that strangers built: tar, index, manifest, records, arrays, keep-lists, buckets, ledgers."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from toys.shards import complete_sample, latent_members, npy_bytes, small_sample, write_samples, write_toy_buckets

from data_tools.samples.shard_check import Finding, check_folder, keep_list_faults, sample_fault
from data_tools.vetting.read_samples import SampleFault, open_sample
from data_tools.withdrawal.sample_lookup import build_index
from fuzz.hunt import Reader
from fuzz.mutation import damage_bytes, damage_json, damage_table, damage_tar, wrapped
from leam_mm.data.aspect_buckets import BUCKETS
from leam_mm.data.bucket_order import read_buckets
from leam_mm.data.image_decoding import ImageDecoding, image_member
from leam_mm.data.keep_list import KEEP, PLACE, SCHEMA, write_keep_list
from leam_mm.data.latents_module import LatentDecoding
from leam_mm.data.ledger import LedgerWriter
from leam_mm.data.pairs_module import PairDecoding
from leam_mm.data.sample_order import sample_generator
from leam_mm.data.shard_index import MANIFEST, ShardFolder, parse_sample, read_samples, walk_sample
from leam_mm.data.tombstones import TOMBSTONES, withdrawn_keys
from leam_mm.documents.dataset_statistics import Tally
from leam_mm.documents.decision_flow import account, numbers, read_flow

Read = Callable[[bytes], object]
RECORD_WORDS = tuple(
    json.dumps(name).encode() for name in ("captions", "text", "language", "source", "length", "lengths")
)


def exhaust(found: Any) -> int:
    """Read an iterator to its end."""
    return sum(1 for _ in found)


def shard_seeds(name: str) -> Callable[[Path], list[bytes]]:
    """Return the function that returns a file of the shards that the readers read, and of others."""

    def seeds(folder: Path) -> list[bytes]:
        samples = [complete_sample(), small_sample(2)]
        parts = [write_samples(folder / "a", samples), write_samples(folder / "b", [latent_members(1)])]
        return [path.read_bytes() for part in parts for path in sorted(part.glob(name))]

    return seeds


def shard_file(name: str) -> Callable[[Path], Read]:
    """Return the preparation of a reader that replaces one file of a shard folder and reads all of it."""

    def prepare(folder: Path) -> Read:
        write_samples(folder / "shards", [complete_sample(), small_sample(2)])

        def read(data: bytes) -> None:
            (folder / "shards" / name).write_bytes(data)
            for _, members in read_samples(folder / "shards"):
                members.get("json")

        return read

    return prepare


def checked_folder(folder: Path) -> Read:
    """Read a tar as check_shards, the loader and the search index do, with an index that fits it."""
    shards = write_samples(folder / "shards", [complete_sample(), small_sample(2)])
    opened = ShardFolder(shards)
    index = opened.index(0)

    def read(data: bytes) -> None:
        ranges = [data[at : at + size] for at, size in zip(index.offset, index.size, strict=True)]
        finding = Finding()
        for key, raw in zip(index.keys, ranges, strict=True):
            if raw:
                members = parse_sample(raw)
                sample_fault(members, False, finding)
                exhaust(walk_sample(raw))
                with suppress(SampleFault):
                    open_sample(key, raw)

    return read


def whole_folder(folder: Path) -> Read:
    """Read a manifest as all programs that open a shard folder do."""
    shards = write_samples(folder / "shards", [complete_sample(), small_sample(2)])

    def read(data: bytes) -> None:
        (shards / MANIFEST).write_bytes(data)
        opened, _ = check_folder(shards, decode=False)
        len(opened.merkle_root), opened.samples

    return read


def record_seeds(folder: Path) -> list[bytes]:
    """Return records of images and latents."""
    return [
        sample["json"]
        for sample in (complete_sample(), small_sample(1, consent={"page": [{"kind": "x"}]}), latent_members(2))
    ]


def record(folder: Path) -> Read:
    """Read the json of a sample as check, statistics, vetting, search and both loaders do."""
    latent, plain = latent_members(2), small_sample(1)
    decode_pair, decode_latent = PairDecoding(ImageDecoding(16)), LatentDecoding(0)
    flow = read_flow([])

    def read(data: bytes) -> None:
        members, kept = plain | {"json": data}, latent | {"json": data}
        sample_fault(members, False, Finding())
        sample_fault(kept, False, Finding())
        attempts: list[Callable[[], object]] = [
            lambda: Tally(flow).add("folder", "0" * 64, "key", members),
            lambda: decode_pair("key", members, 0),
            lambda: decode_latent("key", kept, 0),
        ]
        refusal: BaseException | None = None
        for attempt in attempts:
            try:
                attempt()
            except RECORD.allowed as error:
                refusal = error
        if refusal is not None:
            raise refusal

    return read


def searched_record(folder: Path) -> Read:
    """Read the json of a sample as the programs of withdrawals do."""
    from data_tools.withdrawal.sample_selector import Selection, Selector

    plain = small_sample(1)
    texts = {"url": "http://a.example/x.png", "domain": "a.example", "uid": "0" * 32, "caption": "a"}
    selection = Selection(Selector(kind, text) for kind, text in texts.items())

    def read(data: bytes) -> None:
        selection.match(plain | {"json": data})

    return read


def searched_folder(folder: Path) -> Read:
    """Build the search index of one sample."""
    place = folder / "shards"

    def read(data: bytes) -> None:
        import shutil

        for name in ("shards", "shards.search"):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_samples(place, [small_sample(1) | {"json": data}])
        build_index([place], [], folder / "shards.search")

    return read


def array_seeds(folder: Path) -> list[bytes]:
    """Return arrays as numpy writes them."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    return [npy_bytes(values), npy_bytes(values.astype(np.float16).T), npy_bytes(values.astype(np.uint16))]


def array(folder: Path) -> Read:
    """Read an array member as the loader of latents and check_shards do."""
    members = latent_members(2)
    decode = LatentDecoding(0)

    def read(data: bytes) -> None:
        for name in ("latent.npy", "latent_log_variance.npy", "caption_state.npy", "image_feature.npy"):
            sample_fault(members | {name: data}, False, Finding())
        decode("key", members | {"latent.npy": data, "latent_log_variance.npy": data}, 0)
        decode("key", members | {"caption_state.npy": data}, 0)
        decode("key", members | {"image_feature.npy": data}, 0)

    return read


def _npy_header(data: bytes) -> bytes:
    return data[10 : 10 + int.from_bytes(data[8:10], "little")]


def _with_npy_header(data: bytes, header: bytes) -> bytes:
    return data[:8] + len(header).to_bytes(4, "little")[:2] + header + data[10 + len(_npy_header(data)) :]


def keep_seeds(folder: Path) -> list[bytes]:
    """Return keep.parquet and keep.json, one after the other."""
    table = pa.table({"shard": [0, 0], "row": [0, 1], "key": ["000000", "000001"]}, SCHEMA)
    folder.mkdir(exist_ok=True)
    shards = write_samples(folder / "shards", [small_sample(1), small_sample(2)])
    write_keep_list(folder, "../shards", ShardFolder(shards).merkle_root, table)
    return [(folder / KEEP).read_bytes(), (folder / PLACE).read_bytes()]


def keep_list(folder: Path) -> Read:
    """Read a shard folder through a keep-list."""
    shards = write_samples(folder / "shards", [small_sample(1), small_sample(2)])
    table = pa.table({"shard": [0, 0], "row": [0, 1], "key": ["000000", "000001"]}, SCHEMA)
    kept = folder / "kept"
    kept.mkdir()

    def read(data: bytes) -> None:
        write_keep_list(kept, "../shards", ShardFolder(shards).merkle_root, table)
        (kept / (KEEP if data.startswith(b"PAR1") else PLACE)).write_bytes(data)
        opened = ShardFolder(kept)
        opened.index(0)
        keep_list_faults(opened)

    return read


def bucket_seeds(folder: Path) -> list[bytes]:
    """Return buckets.json."""
    return [(write_toy_buckets(folder / "buckets", {(16, 16): 1, (8, 24): 1}) / BUCKETS).read_bytes()]


def buckets(folder: Path) -> Read:
    """Read buckets.json."""

    def read(data: bytes) -> None:
        (folder / BUCKETS).write_bytes(data)
        read_buckets(folder)

    return read


def tombstone_seeds(folder: Path) -> list[bytes]:
    """Return tombstones."""
    stones = [
        {"withdrawal": 1, "key": f"{n:06d}", "shard": "a/00000.tar", "uid": None, "salted": False} for n in range(3)
    ]
    return [b"".join(json.dumps(stone).encode() + b"\n" for stone in stones)]


def tombstones(folder: Path) -> Read:
    """Read tombstones.jsonl."""

    def read(data: bytes) -> None:
        (folder / TOMBSTONES).write_bytes(data)
        withdrawn_keys(folder)

    return read


def ledger_seeds(folder: Path) -> list[bytes]:
    """Return a ledger."""
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = [
        {"uid": f"{n:032x}", "key": f"{n:07d}", "rule": "kept", "kept": True} for n in range(3)
    ]
    rows += [
        {"uid": None, "key": "x", "rule": "pixels", "kept": False, "fetched_at": "2026-01-01T00:00:00", "bytes": 3}
    ]
    contents = []
    for stage in ("screen_links", "download_shards"):
        with LedgerWriter(folder / "ledger.parquet", stage) as writer:
            writer.write(rows)
        contents.append((folder / "ledger.parquet").read_bytes())
    return contents


def ledger(folder: Path) -> Read:
    """Read a ledger as the description of a data set does."""

    def read(data: bytes) -> None:
        (folder / "ledger.parquet").write_bytes(data)
        flow = read_flow([folder / "ledger.parquet"])
        account(flow, 3, numbers(next(iter(flow.stages.values())).kept_ids) if flow.stages else np.zeros(0, np.uint64))

    return read


def image_seeds(folder: Path) -> list[bytes]:
    """Return image files."""
    return [image_member(small_sample(1)), image_member(complete_sample())]


def loaded_image(folder: Path) -> Read:
    """Decode an image as training and evaluation do."""
    decodings = (ImageDecoding(16), ImageDecoding(16, crop_scale=(0.5, 1.0), shift=0.1, colour_jitter=0.2))

    def read(data: bytes) -> None:
        for decode in decodings:
            decode(data, sample_generator(0, 0, "crop"))

    return read


JSON = (damage_json, damage_json, damage_bytes)
TABLE = (damage_table, damage_table, damage_bytes)
NPY = (wrapped(_npy_header, _with_npy_header, damage_bytes), damage_bytes)
RECORD = Reader("record", record_seeds, record, JSON, words=RECORD_WORDS)
READERS = [
    Reader("manifest", shard_seeds(MANIFEST), whole_folder, JSON),
    Reader("index", shard_seeds("*.index.parquet"), shard_file("00000.index.parquet"), TABLE),
    Reader("tar", shard_seeds("*.tar"), checked_folder, (damage_tar, damage_bytes)),
    RECORD,
    Reader("searched_record", record_seeds, searched_record, JSON, words=RECORD_WORDS),
    Reader("searched_folder", record_seeds, searched_folder, JSON, words=RECORD_WORDS),
    Reader(
        "array",
        array_seeds,
        array,
        NPY,
        words=(b"'descr'", b"'|O'", b"'<f4'", b"(1,)", b"-1,", b"True", b"'<U9'", b"'<M8[s]'"),
    ),
    Reader("keep_list", keep_seeds, keep_list, (damage_table, damage_json, damage_bytes)),
    Reader("buckets", bucket_seeds, buckets, JSON),
    Reader("tombstones", tombstone_seeds, tombstones, JSON),
    Reader("ledger", ledger_seeds, ledger, TABLE),
    Reader("loaded_image", image_seeds, loaded_image),
]

"""Shards to vet, hostile samples, and calls of vet_shards."""

import hashlib
import json
import struct
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from data_tools.vet_shards import main
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample
from leam_mm.data.ledger import LEDGER
from leam_mm.data.shard_index import BLOCK, index_name
from toys.images import encoded_image, soft_jpeg
from toys.shards import small_sample


def tar_member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A raw tar member of any type and name."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = len(content), kind, link
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few kilobytes whose header and data are of a huge image."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1_000_000), 9)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(body)) + n + body + struct.pack(">I", zlib.crc32(n + body)) for n, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def text_bomb() -> bytes:
    """A PNG with a compressed text chunk of 200 MB."""
    good = soft_jpeg(1, kind="PNG")
    body = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return good[:33] + chunk + good[33:]


def _sized(size: bytes) -> bytes:
    """A tar header that is valid except for its size field."""
    block = bytearray(tar_member("K.jpg", b""))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def hostile_samples() -> dict[str, tuple[bytes, str]]:
    """Raw bytes of a sample by its fault, with the value that the ledger must show."""
    record, image = small_sample(1)["json"], soft_jpeg(1)
    json_of = json.loads(record)

    def pair(kind: str, content: bytes, text: bytes = record) -> bytes:
        return tar_member(f"K.{kind}", content) + tar_member("K.json", text)

    def changed(**changes: Any) -> bytes:
        return pair("jpg", image, json.dumps(json_of | changes).encode())

    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    found = {
        "parent path": (tar_member("../../K.jpg", image) + tar_member("K.json", record), "member"),
        "absolute path": (tar_member("/etc/K.jpg", image) + tar_member("K.json", record), "member"),
        "other name": (tar_member("L.jpg", image) + tar_member("K.json", record), "member"),
        "symbolic link": (
            tar_member("K.jpg", b"", tarfile.SYMTYPE, "/etc/passwd") + tar_member("K.json", record),
            "member",
        ),
        "hard link": (tar_member("K.jpg", b"", tarfile.LNKTYPE, "../x") + tar_member("K.json", record), "member"),
        "device": (tar_member("K.jpg", b"", tarfile.CHRTYPE) + tar_member("K.json", record), "member"),
        "sparse": (tar_member("K.jpg", image, tarfile.GNUTYPE_SPARSE) + tar_member("K.json", record), "member"),
        "fifo": (tar_member("K.jpg", b"", tarfile.FIFOTYPE) + tar_member("K.json", record), "member"),
        "long name": (tar_member("K" * 60_000 + ".jpg", image) + tar_member("K.json", record), "member"),
        "twice": (pair("jpg", image) + tar_member("K.jpg", image), "member"),
        "json twice": (pair("jpg", image) + tar_member("K.json", b"{}"), "member"),
        "further sample": (pair("jpg", image) + tar_member("L.jpg", image) + tar_member("L.json", record), "member"),
        "no header": (b"\xff" * 2048, "tar"),
        "negative size": (_sized(b"-0000000001\0") + tar_member("K.json", record), "tar"),
        "endless size": (_sized(b"\x80" + b"\xff" * 11) + tar_member("K.json", record), "tar"),
        "no json": (tar_member("K.jpg", image), "json"),
        "broken json": (pair("jpg", image, record[:-9]), "json"),
        "deep json": (pair("jpg", image, b"[" * 200_000), "json"),
        "large json": (pair("jpg", image, b'{"a": "' + b"x" * 5_000_000 + b'"}'), "json"),
        "huge number": (pair("jpg", image, b'{"a": ' + b"9" * 100_000 + b"}"), "json"),
        "not a number": (changed(clip=float("nan")), "json"),
        "half a pair": (changed(captions=[{"text": "a \ud800 horse", "language": "en"}]), "json"),
        "latin-1": (pair("jpg", image, b'{"captions": "\xe9"}'), "json"),
        "no captions": (changed(captions=[]), "captions"),
        "captions of numbers": (changed(captions=[1, 2]), "captions"),
        "caption of a list": (changed(captions=[{"text": ["a"], "language": "en"}]), "captions"),
        "empty caption": (changed(captions=[{"text": "  ", "language": "en"}]), "captions"),
        "endless caption": (changed(captions=[{"text": "a " * 60_000, "language": "en"}]), "captions"),
        "captions without end": (changed(captions=[{"text": "a", "language": "en"}] * 1001), "captions"),
        "no image": (tar_member("K.json", record), "image"),
        "two images": (pair("jpg", image) + tar_member("K.png", soft_jpeg(1, kind="PNG")), "image"),
        "empty image": (pair("jpg", b""), "image"),
        "cut image": (pair("jpg", image[: len(image) // 2]), "image"),
        "cut png": (pair("png", soft_jpeg(1, kind="PNG")[:-20]), "image"),
        "html": (pair("jpg", b"<html><script>alert(1)</script></html>"), "image"),
        "svg": (pair("png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "image"),
        "gif": (pair("jpg", soft_jpeg(1, kind="GIF")), "image"),
        "postscript": (pair("jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run"), "image"),
        "bomb": (pair("png", bomb()), "image"),
        "large bomb": (pair("png", bomb(10_000)), "image"),
        "text bomb": (pair("png", text_bomb()), "image"),
        "polyglot": (pair("jpg", b"PK\x03\x04" + image), "image"),
        "noise": (pair("jpg", np.random.default_rng(0).bytes(3000)), "image"),
    }
    return found


def write_hostile(folder: Path, samples: list[bytes], keys: list[str] | None = None) -> Path:
    """Shards of raw byte ranges whose index and manifest claim that they are correct."""
    folder.mkdir(parents=True)
    tar = b"".join(samples) + bytes(2 * BLOCK)
    size = np.array([len(raw) for raw in samples])
    digests = [hashlib.sha256(raw).hexdigest() for raw in samples]
    columns = {"key": keys or ["K"] * len(samples), "offset": np.cumsum(size) - size, "size": size, "sha256": digests}
    (folder / "00000.tar").write_bytes(tar)
    pq.write_table(pa.table(columns), folder / index_name("00000.tar"))
    line = {"shard": "00000.tar", "sha256": hashlib.sha256(tar).hexdigest(), "bytes": len(tar), "samples": len(samples)}
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def write_rules(path: Path, *wanted: type | tuple[type, dict[str, Any]]) -> Path:
    """A YAML of rules, each a class or a class with its arguments."""
    pairs = [each if isinstance(each, tuple) else (each, {}) for each in wanted]
    listed = [{"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": given} for kind, given in pairs]
    path.write_text(yaml.safe_dump({"rules": listed}))
    return path


def vet(shards: Path, listed: Path, output: Path, *words: str) -> Path:
    """Call vet_shards in this process."""
    main(
        [
            "--shards",
            str(shards),
            "--rules",
            str(listed),
            "--output",
            str(output),
            "--processes",
            "1",
            "--trust",
            "toys",
            *words,
        ]
    )
    return output


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Rows of the ledger."""
    return pq.read_table(folder / LEDGER).to_pylist()


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file except the timings."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixel_sample(pixels: np.ndarray, key: str = "k", kind: str = "PNG", **settings: Any) -> Sample:
    """A sample of an image, (H, W, 3) uint8, without captions."""
    extension = "jpg" if kind == "JPEG" else kind.lower()
    content = encoded_image(Image.fromarray(pixels), kind, **settings)
    record = {"captions": [], "transforms": [], "sha256": hashlib.sha256(content).hexdigest()}
    return Sample(key, record, extension, content)


def resolve(rule: DatasetRule, samples: list[Sample], against: Collection[str] = ()) -> dict[str, Finding]:
    """Findings of a rule by key; the keys in ``against`` are of another data set."""
    records = [
        {"width": each.pixels.shape[1], "height": each.pixels.shape[0], "against": each.key in against}
        for each in samples
    ]
    measured = np.concatenate([rule.measure(samples[:1]), rule.measure(samples[1:])])
    keys = [each.key for each in samples]
    return dict(zip(keys, rule.resolve(keys, records, measured), strict=True))

"""How long "was this picture used?" takes on a simulated data set of ten million rows, and in how much memory.

Digests and perceptual hashes of the rows are random, as those of unrelated pictures are; among them lie real pictures
of a small shard folder. Asked are a file that was re-encoded, digests, addresses, domains and captions, each in a
process that goes on asking, with the index in the system's cache and without; and the whole command line. Right answers
come from comparing every row (``same_work``).
"""

import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow as pa
from PIL import Image
from rich.table import Table

from data_tools.withdrawal.sample_lookup import look_up
from data_tools.withdrawal.sample_selector import normal_url, read_image
from data_tools.withdrawal.search_index import BATCH, KINDS, ROW_SCHEMA, SearchIndex, digest_of, write_index
from leam_mm.data.perceptual_hash import pdq
from leam_mm.data.shard_index import ShardFolder, ShardWriter
from leam_mm.errors import run

ROOT = Path(__file__).resolve().parent.parent.parent
PLANTED = 5
MIB = 2**20


def picture(seed: int) -> Image.Image:
    """A smooth picture with edges."""
    coarse = np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 160), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def write_folder(folder: Path) -> ShardFolder:
    """The real samples."""
    with ShardWriter(folder, PLANTED) as writer:
        for number in range(PLANTED):
            record = {"captions": [{"text": f"picture {number}", "language": "en"}], "url": address(number)}
            writer.write(str(number), {"png": encoded(picture(number), "PNG"), "json": json.dumps(record).encode()})
    return ShardFolder(folder)


def address(number: int) -> str:
    """Of a row's picture; ten thousand domains."""
    return f"https://images.site{number % 10_000}.example/{number}.png"


def simulate(index: Path, folder: ShardFolder, rows: int) -> list[np.ndarray]:
    """Write an index of so many rows; gives the PDQ hashes of all of them."""
    generator = np.random.default_rng(0)
    about = [{"name": folder.path.name, "merkle_root": folder.merkle_root, "samples": rows}]
    places = {rows // (PLANTED + 1) * (number + 1): number for number in range(PLANTED)}
    codes = []
    with write_index(index, about) as writer:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            filed = {kind: generator.integers(0, 256, (count, 16), dtype=np.uint8) for kind in KINDS}
            code = generator.integers(0, 256, (count, 32), dtype=np.uint8)
            names = [f"{row:08d}" for row in range(start, start + count)]
            filed["domain"] = np.frombuffer(
                b"".join(digest_of(f"site{row % 10_000}.example") for row in range(start, start + count)), np.uint8
            ).reshape(count, 16)
            for place in range(start, start + count):
                if place in places:
                    number, at = places[place], place - start
                    content = encoded(picture(number), "PNG")
                    names[at] = str(number)
                    code[at] = pdq(np.asarray(picture(number)))[0]
                    filed["sha256"][at] = np.frombuffer(hashlib.sha256(content).digest()[:16], np.uint8)
                    filed["url"][at] = np.frombuffer(digest_of(normal_url(address(number))), np.uint8)
                    filed["caption"][at] = np.frombuffer(digest_of(f"picture {number}"), np.uint8)
            columns = [[folder.path.name] * count, names, names, [address(row) for row in range(start, start + count)]]
            columns += [[True] * count, [None] * count]
            shown = pa.RecordBatch.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, ROW_SCHEMA, strict=True)], schema=ROW_SCHEMA
            )
            writer.add_rows(shown, filed, code)
            codes.append(code)
    return codes


def forget(index: Path) -> None:
    """Have the system drop the index from its cache, so that the next question reads the disk."""
    for path in index.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def compare(index: SearchIndex, codes: list[np.ndarray], file: Path) -> dict[str, Any]:
    """Hold the answer on a picture against the comparison of all rows, at a radius at which strangers match, too."""
    hashes, radius = read_image(file).hashes, 86
    expected: set[tuple[int, int]] = set()
    for number, code in enumerate(codes):
        words = code.view(np.uint64)  # the order of the bytes does not matter to the number of bits
        near = np.min([np.bitwise_count(words ^ each.view(np.uint64)).sum(1, np.int32) for each in hashes], axis=0)
        expected |= {(int(near[row]), number * BATCH + int(row)) for row in np.flatnonzero(near <= radius)}
    differing = len(expected ^ set(index.near(hashes, radius)))
    return measure.require_same(f"rows within {radius} bits of a picture ({len(expected)})", differing, 0)


def whole_command(folder: Path, file: Path) -> tuple[float, float, int]:
    """Seconds of check_shards --contains from start to end, processor seconds, and its largest memory in bytes."""
    # The child tells its own peak: the system's count for a child begins with the memory of its parent.
    code = (
        "import sys; from data_tools.check_shards import main; main(sys.argv[1:]); "
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].split()[1])"
    )
    begin, used = time.perf_counter(), measure.cpu_seconds()
    command = [sys.executable, "-c", code, str(folder), "--contains", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begin
    assert "used: sample 2" in done.stdout, done.stdout
    return seconds, measure.cpu_seconds() - used, int(done.stdout.split()[-1]) * 1024


@measure.benchmark(
    repeats=5,
    rows=(10_000_000, "simulated"),
    place=(Path, "folder on the disk to be measured (default: a temporary one)"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Simulate, ask, write the result."""
    with tempfile.TemporaryDirectory(dir=settings.place) as temporary:
        folder, index = Path(temporary) / "shards", Path(temporary) / "shards.search"
        source, file = write_folder(folder), Path(temporary) / "copy.jpg"
        file.write_bytes(encoded(picture(2).resize((120, 120)), "JPEG", quality=85))
        begin = time.perf_counter()
        codes = simulate(index, source, settings.rows)
        built = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in index.iterdir())
        opened = SearchIndex(index)
        same = [compare(opened, codes, file)]
        del codes
        digest = hashlib.sha256(encoded(picture(3), "PNG")).hexdigest()
        questions = [("image", str(file), "2"), ("sha256", digest, "3"), ("url", address(1), "1")]
        questions += [("caption", "Picture  4", "4"), ("domain", "site77.example", None)]
        asked: dict[str, dict[str, float]] = {}
        for kind, value, key in questions:
            seconds: dict[str, list[float]] = {"cached": [], "from disk": []}
            for _ in range(settings.repeats):
                for state, times in seconds.items():
                    if state == "from disk":
                        del opened
                        forget(index)
                    opened = SearchIndex(index)
                    answer = look_up(opened, kind, value)
                    times.append(answer.seconds)
                    right = answer.rows[0]["key"] == key if key else answer.count == settings.rows // 10_000
                    same.append(measure.require_same(f"the answer on {kind}", 0 if right else 1, 0))
            asked[kind] = {state: statistics.median(times) for state, times in seconds.items()}
        whole = [whole_command(folder, file) for _ in range(settings.repeats)]
    table = Table(
        "question", "ms, cached", "ms, from disk", title=f"{settings.rows:,} rows, {size / MIB:,.0f} MiB of index"
    )
    for kind, times in asked.items():
        table.add_row(kind, f"{1e3 * times['cached']:.1f}", f"{1e3 * times['from disk']:.1f}")
    command, memory = statistics.median(each[0] for each in whole), max(each[2] for each in whole)
    processor = statistics.median(each[1] for each in whole)
    message = (
        f"check_shards --contains: {command:.2f} s from start to end ({processor:.2f} s of processor), "
        f"{memory / MIB:,.0f} MiB at most"
    )
    content = {
        "rows": settings.rows,
        "index_bytes": size,
        "build_seconds": built,
        "seconds": asked,
        "command_seconds": [each[0] for each in whole],
        "command_cpu_seconds": [each[1] for each in whole],
        "command_rss_bytes": memory,
        "builder_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "same_work": list({entry["compared"]: entry for entry in same}.values()),
        "notes": "from disk: after posix_fadvise(DONTNEED); rss counts mapped pages of the index, too",
    }
    return [measure.write_result(content, settings, table, message=message)]


if __name__ == "__main__":
    run(main)

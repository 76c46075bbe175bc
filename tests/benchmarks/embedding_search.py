"""Time a search among many embeddings, with the recall of its ten best against an exact scan.

Embeddings are drawn around 20,000 centres with noise of 0.7 in each value, and scaled to length 1; queries are drawn
alike. The peer is the exact scan of the same float16 rows, mapped from the disk.
"""

import statistics
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from leam_mm.errors import UserError, run
from leam_mm.inference.embedding_index import EXACT, ROWS, EmbeddingIndex
from leam_mm.inference.embedding_table import SCHEMA, EmbeddingTable, TableFacts

CENTRES, NOISE, CHUNK, COUNT = 20_000, 0.7, 100_000, 10


def draw(centres: np.ndarray, generator: np.random.Generator, count: int) -> np.ndarray:
    """Embeddings around random centres, (count, D) float32 of length 1."""
    around = centres[generator.integers(0, len(centres), count)]
    around = around + NOISE * generator.normal(size=around.shape).astype(np.float32)
    return around / np.linalg.norm(around, axis=1, keepdims=True)


def write_table(path: Path, centres: np.ndarray, generator: np.random.Generator, rows: int) -> None:
    """Write a table as python -m leam_mm.embed does, in chunks."""
    size = centres.shape[1]
    facts = TableFacts("drawn", "0" * 64, "image", size, "float16", "drawn", rows, CHUNK)
    schema = SCHEMA.with_metadata(facts.metadata)
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            values = pa.py_buffer(draw(centres, generator, count).astype("<f2").tobytes())
            ends = pa.py_buffer((np.arange(count + 1, dtype=np.int32) * 2 * size).tobytes())
            embedding = pa.Array.from_buffers(pa.binary(), count, [None, ends, values])
            keys, empty = pa.array([f"{start + n:09d}" for n in range(count)]), pa.array([""] * count)
            writer.write_table(pa.table([keys, empty, empty, empty, embedding], schema=schema))


def exact_scan(rows: np.ndarray, query: np.ndarray) -> set[int]:
    """Compare every row."""
    best: list[tuple[float, int]] = []
    for start in range(0, len(rows), CHUNK):
        cosine = rows[start : start + CHUNK].astype(np.float32) @ query
        best += [(float(cosine[n]), start + int(n)) for n in np.argpartition(-cosine, COUNT)[:COUNT]]
    return {row for _, row in sorted(best, reverse=True)[:COUNT]}


@measure.benchmark(20, rows=(1_000_000, "rows of the table"), size=(64, "values of an embedding"))
def main(settings: measure.Settings) -> list[Path]:
    """Write a table, build its index, and search it."""
    if settings.rows <= EXACT:
        raise UserError(f"--rows {settings.rows}: tables of up to {EXACT} rows have no index; give more")
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(CENTRES, settings.size)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, centres, generator, settings.rows)
        start = time.perf_counter()
        index = EmbeddingIndex(EmbeddingTable.open(path))
        built = time.perf_counter() - start
        rows = np.memmap(index.folder / ROWS, dtype="<f2", mode="r", shape=(settings.rows, settings.size))
        ours: list[float] = []
        peer: list[float] = []
        hits = 0
        for query in draw(centres, generator, settings.repeats):
            start = time.perf_counter()
            found = index.search(query, COUNT)
            index.lines([row for row, _ in found])
            middle = time.perf_counter()
            hits += len({row for row, _ in found} & exact_scan(rows, query))
            ours.append(middle - start)
            peer.append(time.perf_counter() - middle)
        size = sum(file.stat().st_size for file in index.folder.iterdir())
    recall = hits / (COUNT * settings.repeats)
    table = Table("", "ms, median", "ms, most", title=f"{settings.rows:,} rows of {settings.size} values")
    for name, times in (("search and read the lines", ours), ("exact scan", peer)):
        table.add_row(name, f"{1e3 * statistics.median(times):.1f}", f"{1e3 * max(times):.1f}")
    content = {
        "rows": settings.rows, "size": settings.size, "build_seconds": built, "index_bytes": size, "seconds": ours,
        "exact_seconds": peer, "recall_of_10": recall,
        "same_work": [measure.require_same("nine of ten nearest rows", max(0.0, 0.9 - recall), 0)],
    }  # fmt: skip
    message = f"recall of the ten best {recall:.3f}; index built in {built:.1f} s"
    return [measure.write_result(content, settings, table, message=message)]


if __name__ == "__main__":
    run(main)

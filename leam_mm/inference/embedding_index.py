"""Nearest embeddings of a table: exact for small tables; large ones have an index beside them that is built once.

In a large table a compact code of each row gives candidates, which are compared again by their float16 values, mapped
from the disk. The codes are 4-bit product quantization (Jegou et al. 2011; fast scan, Andre et al. 1704.07355) up to
MOST_QUANTIZED values, RaBitQ (Gao and Long 2405.12497) beyond.
"""

import shutil
from dataclasses import asdict

import faiss
import numpy as np
import pyarrow as pa

from leam_mm.errors import UserError
from leam_mm.files import atomic_folder, write_json
from leam_mm.inference.embedding_table import TEXTS, EmbeddingTable
from leam_mm.json_text import parse_object

EXACT = 200_000  # rows that are compared without an index
MOST_QUANTIZED = 256
CANDIDATES = 1000  # at least; rows that are compared again
TRAINING = 100_000  # rows that a code is fitted to
CODES, ROWS, LINES, STATE = "codes.faiss", "rows.f2", "rows.arrow", "index.json"
Found = list[tuple[int, float]]  # row and cosine, the nearest first


class EmbeddingIndex:
    """Searches a table.

    Args:
        table: The table.
        exact: Compare every row, whatever their number.
    """

    def __init__(self, table: EmbeddingTable, exact: bool = False) -> None:
        """Open the index, and build it if it is missing or older than the table."""
        self.table, self.folder = table, table.path.with_name(table.path.name + ".index")
        self.exact = exact or table.rows <= EXACT
        if self.exact:
            self._rows = np.concatenate([np.empty((0, table.facts.size), np.float32), *table.batches()])
            return
        if not self.is_current():
            self.build()
        self._codes = faiss.read_index(str(self.folder / CODES), faiss.IO_FLAG_MMAP_IFC)
        shape = (table.rows, table.facts.size)
        self._mapped = np.memmap(self.folder / ROWS, dtype="<f2", mode="r", shape=shape)

    def _state(self) -> dict[str, object]:
        """Return what the index was built from."""
        status = self.table.path.stat()
        return {
            **asdict(self.table.facts),
            "rows": self.table.rows,
            "bytes": status.st_size,
            "time": status.st_mtime_ns,
        }

    def is_current(self) -> bool:
        """Return whether the index beside the table was built from it."""
        try:
            return parse_object((self.folder / STATE).read_bytes()) == self._state()
        except (OSError, ValueError):
            return False

    def build(self) -> None:
        """Write codes, float16 rows and texts into the folder of the index."""
        size, count = self.table.facts.size, self.table.rows
        with atomic_folder(self.folder) as temporary:
            values = np.memmap(temporary / ROWS, dtype="<f2", mode="w+", shape=(count, size))
            start = 0
            for batch in self.table.batches():
                values[start : start + len(batch)] = batch
                start += len(batch)
            values.flush()
            codes = build_codes(values)
            faiss.write_index(codes, str(temporary / CODES))
            schema = pa.schema([(name, pa.string()) for name in TEXTS])
            with pa.OSFile(str(temporary / LINES), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for lines in self.table.text_batches():
                    writer.write_batch(lines.cast(schema))
            write_json(temporary / STATE, self._state())

    def search(self, query: np.ndarray, count: int) -> Found:
        """Return the rows nearest to an embedding.

        Args:
            query: (D,) of length 1.
            count: Most rows to return.
        """
        count = min(count, self.table.rows)
        if not count:
            return []
        if self.exact:
            cosine = self._rows @ query
            best = np.argpartition(-cosine, count - 1)[:count]
            cosine = cosine[best]
        else:
            wanted = min(self.table.rows, max(CANDIDATES, 20 * count))
            _, near = self._codes.search(query[None].astype(np.float32), wanted)
            best = np.sort(near[0][near[0] >= 0])  # in the order of the disk
            cosine = self._mapped[best].astype(np.float32) @ query
        order = np.lexsort((best, -cosine))[:count]
        return [(int(best[place]), float(cosine[place])) for place in order]

    def lines(self, rows: list[int]) -> list[dict[str, str]]:
        """Return key, text, url and sha256 of rows."""
        if self.exact:
            return self.table.texts(rows)
        found = []
        with pa.memory_map(str(self.folder / LINES)) as file:
            reader = pa.ipc.open_file(file)
            starts = np.cumsum([0, *(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))])
            for row in rows:
                number = int(np.searchsorted(starts, row, side="right")) - 1
                line = reader.get_batch(number).slice(row - int(starts[number]), 1).to_pylist()[0]
                found.append({name: line[name] or "" for name in TEXTS})
        return found

    def remove(self) -> None:
        """Delete the index; the next search builds it again."""
        shutil.rmtree(self.folder, ignore_errors=True)


def build_codes(values: np.ndarray) -> faiss.Index:
    """Return compact codes of unit vectors.

    Args:
        values: (N, D) float16.
    """
    size, count = values.shape[1], len(values)
    kind = f"PQ{size // 2}x4fs" if size <= MOST_QUANTIZED and size % 2 == 0 else "RaBitQfs"
    codes = faiss.index_factory(size, kind, faiss.METRIC_INNER_PRODUCT)
    chosen = np.linspace(0, count - 1, min(count, TRAINING)).astype(np.int64)
    codes.train(values[chosen].astype(np.float32))
    for start in range(0, count, TRAINING):
        codes.add(values[start : start + TRAINING].astype(np.float32))
    if codes.ntotal != count:
        raise UserError(f"faiss holds {codes.ntotal} of {count} rows: build the index again")
    return codes

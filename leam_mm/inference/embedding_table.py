"""Embeddings in a parquet file: one row for each image or text, with key, address, caption and digest.

A long run writes parts and joins them at the end. Parts that are there are not computed again: a killed run continues,
and several processes share the work. Columns: key, text, url, sha256, embedding (D values of float16 or float32 as
bytes, little-endian). The metadata of the file names the encoder, its digest, and what was embedded.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.errors import UserError
from leam_mm.files import atomic_write, write_json, write_text
from leam_mm.inference.embedded_items import Item, Items
from leam_mm.inference.embedder import Embedder
from leam_mm.json_text import parse_object

FORMAT = "leam_mm embeddings 1"
TEXTS = ("key", "text", "url", "sha256")
SCHEMA = pa.schema([*((name, pa.string()) for name in TEXTS), ("embedding", pa.binary())])
FAULTS = ".faults.jsonl"
WAIT = 600  # seconds without a new part after which another process counts as dead
MAX_SIZE = 1 << 14  # values of an embedding
DTYPES = {"float16": "<f2", "float32": "<f4"}


@dataclass(frozen=True)
class TableFacts:
    """What decides the content of a table.

    Args:
        encoder: Address of the encoder, as it was given.
        encoder_sha256: Digest of its weights.
        kind: image or text.
        size: D, values of an embedding.
        dtype: float16 or float32.
        identity: Digest of what was embedded.
        items: Number of images or texts, unreadable ones included.
        part: Items in each part of the work folder.
    """

    encoder: str
    encoder_sha256: str
    kind: str
    size: int
    dtype: str
    identity: str
    items: int
    part: int

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the parquet file."""
        return {"leam_mm": json.dumps({"format": FORMAT, **asdict(self)})}


class TableWriter:
    """Embeds items into a table, one part after the other; see the module for resuming.

    Args:
        items: What to embed.
        embedder: The encoder.
        facts: What decides the content.
        output: The parquet file.
        batch_size: Items at a time.
        threads: Threads that decode images.
    """

    def __init__(
        self, items: Items, embedder: Embedder, facts: TableFacts, output: Path, batch_size: int, threads: int
    ) -> None:
        """See the class for the arguments."""
        self.items, self.embedder, self.facts, self.output = items, embedder, facts, output
        self.batch_size, self.threads = batch_size, threads
        self.parts = output.with_name(output.name + ".parts")

    @property
    def count(self) -> int:
        """Number of parts."""
        return -(-self.facts.items // self.facts.part)

    def start(self) -> None:
        """Make the work folder, or check that it is one of the same settings.

        Raises:
            UserError: It was started with other settings.
        """
        settings, file = asdict(self.facts), self.parts / "settings.json"
        if file.is_file():
            if parse_object(file.read_bytes()) != settings:
                raise UserError(
                    f"{self.parts} was started with another encoder, input or type: delete it, and start anew"
                )
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)

    def write_parts(self, rank: int, ranks: int, advance: Callable[[int], object]) -> None:
        """Compute the parts of one of several processes; ``advance`` is called with the items of each part."""
        with ThreadPoolExecutor(self.threads) as pool:
            for number in range(rank, self.count, ranks):
                first = number * self.facts.part
                last = min(first + self.facts.part, self.facts.items)
                if not self._part(number).is_file():
                    self._write_part(number, list(self.items.part(first, last)), pool)
                advance(last - first)

    def _part(self, number: int) -> Path:
        return self.parts / f"{number:06d}.parquet"

    def _write_part(self, number: int, items: list[Item], pool: ThreadPoolExecutor) -> None:
        rows: list[dict[str, Any]] = []
        faults = [{"key": item.key, "fault": item.fault} for item in items if item.fault]
        sound = [item for item in items if not item.fault]
        for start in range(0, len(sound), self.batch_size):
            batch = sound[start : start + self.batch_size]
            if self.facts.kind == "image":
                decoded = list(pool.map(self._pixels, batch))
                faults += [
                    {"key": i.key, "fault": d} for i, d in zip(batch, decoded, strict=True) if isinstance(d, str)
                ]
                batch = [item for item, pixels in zip(batch, decoded, strict=True) if not isinstance(pixels, str)]
                pixels = [pixels for pixels in decoded if not isinstance(pixels, str)]
                embedding = self.embedder.embed_pixels(pixels) if pixels else np.empty((0, self.facts.size))
            else:
                embedding = self.embedder.embed_texts([item.text for item in batch], self.batch_size)
            values = embedding.astype(DTYPES[self.facts.dtype])
            rows += [
                {"key": item.key, "text": item.text, "url": item.url, "sha256": item.sha256, "embedding": row.tobytes()}
                for item, row in zip(batch, values, strict=True)
            ]
        # The part counts as finished with its parquet file, so faults are written first.
        if faults:
            lines = [json.dumps(fault, ensure_ascii=False) for fault in faults]
            write_text(self.parts / f"{number:06d}{FAULTS}", "\n".join(lines) + "\n")
        with atomic_write(self._part(number)) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")

    def _pixels(self, item: Item) -> np.ndarray | str:
        """Return the pixels of an image, or why it cannot be decoded."""
        try:
            return self.items.pixels(item, self.embedder.image_size)
        except UserError as error:
            return str(error)

    def join(self) -> tuple[int, int]:
        """Wait for the parts of all processes, join them, and return the numbers of rows and of faults.

        Raises:
            UserError: Another process has written no part for ten minutes.
        """
        missing, since = self.count, time.monotonic()
        while (left := sum(not self._part(number).is_file() for number in range(self.count))) > 0:
            if left < missing:
                missing, since = left, time.monotonic()
            if time.monotonic() - since > WAIT:
                raise UserError(
                    f"{left} of {self.count} parts in {self.parts} are missing: start the same command again"
                )
            time.sleep(0.2)
        rows, faults = 0, []
        schema = SCHEMA.with_metadata(self.facts.metadata)
        with atomic_write(self.output) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for number in range(self.count):
                with open_parquet(self._part(number)) as part:
                    table = part.read(SCHEMA.names).cast(schema)
                rows += table.num_rows
                writer.write_table(table)
                broken = self.parts / f"{number:06d}{FAULTS}"
                faults += broken.read_text(encoding="utf-8").splitlines() if broken.is_file() else []
        report = self.output.with_name(self.output.name + FAULTS)
        if faults:
            write_text(report, "\n".join(faults) + "\n")
        else:
            report.unlink(missing_ok=True)
        shutil.rmtree(self.parts)
        return rows, len(faults)


@dataclass
class EmbeddingTable:
    """A table of embeddings, opened for reading.

    Args:
        path: The parquet file.
        facts: What its metadata say.
        rows: Number of rows.
    """

    path: Path
    facts: TableFacts
    rows: int

    @classmethod
    def open(cls, path: Path | str) -> "EmbeddingTable":
        """Open a table.

        Raises:
            UserError: It is missing, damaged, or no table of embeddings.
        """
        try:
            with open_parquet(Path(path)) as file:
                content = parse_object((file.schema.metadata or {})[b"leam_mm"])
                if content.pop("format", None) != FORMAT:
                    raise ValueError(f"it is not of the format {FORMAT}")
                facts, rows = TableFacts(**content), file.rows
            for field, kind in TableFacts.__annotations__.items():
                if type(getattr(facts, field)) is not kind:
                    raise ValueError(f"{field} is no {kind.__name__}")
            if facts.dtype not in DTYPES or not 1 <= facts.size <= MAX_SIZE:
                raise ValueError(f"its type is {facts.dtype} and its size {facts.size}")
        except (*ERRORS, TypeError) as error:
            reason = "it states no encoder" if isinstance(error, KeyError) else error_reason(error)
            raise UserError(
                f"{path} is no table of embeddings ({reason}): write it with python -m leam_mm.embed"
            ) from None
        return cls(Path(path), facts, rows)

    def batches(self, rows: int = 1 << 16) -> Iterator[np.ndarray]:
        """Yield the embeddings in order: (B, D) float32.

        Raises:
            UserError: The file is damaged.
        """
        width = self.facts.size * np.dtype(DTYPES[self.facts.dtype]).itemsize
        for batch in self._columns(["embedding"], rows):
            values = batch.column(0).to_pylist()
            if any(value is None or len(value) != width for value in values):
                raise UserError(f"{self.path}: a row is no embedding of {self.facts.size} values; write it again")
            flat = np.frombuffer(b"".join(values), DTYPES[self.facts.dtype]).astype(np.float32)
            yield flat.reshape(len(values), self.facts.size)

    def texts(self, rows: Sequence[int]) -> list[dict[str, str]]:
        """Return key, text, url and sha256 of some rows, in the given order."""
        wanted, start = sorted(set(rows)), 0
        found: dict[int, dict[str, str]] = {}
        for batch in self._columns(list(TEXTS), 1 << 16):
            stop = start + batch.num_rows
            own = [row for row in wanted if start <= row < stop]
            if own:
                picked = batch.take(pa.array([row - start for row in own])).to_pylist()
                found |= {
                    row: {name: line[name] or "" for name in TEXTS} for row, line in zip(own, picked, strict=True)
                }
            start = stop
        return [found[row] for row in rows]

    def text_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield key, text, url and sha256 of all rows in order."""
        return self._columns(list(TEXTS), 1 << 16)

    def _columns(self, names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        try:
            with open_parquet(self.path) as file:
                yield from file.batches(rows, names)
        except ERRORS as error:
            raise UserError(f"{self.path} is damaged ({error_reason(error)}): write it again") from None

"""Read folders of MosaicML Streaming: ``index.json`` and ``shard.NNNNN.mds``, plain or compressed with zstd or gzip.

A shard begins with the number of its samples and their offsets, all uint32. A sample begins with the sizes of those
columns that have no fixed one. Sizes and offsets come from strangers and are compared with the file. Values of
``pkl``, which would run code, and of arrays are never decoded. Format: https://docs.mosaicml.com/projects/streaming
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from data_tools.importing.sample_source import BYTES, IMAGE, NUMBER, OTHER, TEXT, SourceRow
from leam_mm.errors import UserError
from leam_mm.files import atomic_write
from leam_mm.json_text import parse_json, parse_object

INDEX = "index.json"
KINDS = {
    **dict.fromkeys(("jpeg", "png", "jpegarray", "jpeg_array"), IMAGE), "bytes": BYTES,
    **dict.fromkeys(("str", "json"), TEXT), "int": NUMBER,
}  # fmt: skip
REFUSED = {"pkl": "pickle runs code, and is never decoded"}
CODECS = {"zstd": "zstd", "gz": "gzip"}
MAX_INDEX = 1 << 28  # bytes of index.json
MAX_COLUMNS = 1000
MAX_FURTHER = 1 << 24  # bytes of a sample beside its image
FEW_SAMPLES, DENSITY = 1000, 250  # samples that a missing shard may claim, and for each byte of a packed one
MAX_SHARD = 1 << 32  # bytes; offsets are uint32


class MdsFolder:
    """A folder of MDS shards; see ``SampleSource``.

    Args:
        folder: The folder with ``index.json``.

    Raises:
        UserError: The index is damaged, or describes something that is not read.
    """

    name = "MosaicML MDS"

    def __init__(self, folder: Path) -> None:
        """Read the index; see the class for the arguments."""
        self.folder = folder
        path = folder / INDEX
        try:
            if path.stat().st_size > MAX_INDEX:
                raise ValueError(f"it has more than {MAX_INDEX} bytes")
            found = parse_object(path.read_bytes())["shards"]
            self._shards = [_Shard(folder, entry) for entry in found]
            if not self._shards:
                raise ValueError("it names no shard")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} cannot be used ({reason[:200]}): give a folder that MDSWriter wrote") from None
        encodings = {name: code for shard in self._shards for name, code in shard.encodings.items()}
        self.columns = {name: KINDS.get(code, OTHER) for name, code in encodings.items()}
        self.unread = {
            name: REFUSED.get(code, f"the encoding {code[:40]} is not read")
            for name, code in encodings.items() if code not in KINDS
        }  # fmt: skip
        self.count = sum(shard.samples for shard in self._shards)
        self.identity = [[shard.stored, shard.bytes, shard.samples, list(shard.encodings)] for shard in self._shards]

    def rows(self, columns: Collection[str], start: int, scratch: Path, max_bytes: int) -> Iterator[SourceRow]:
        """Yield the rows from a number on; see ``SampleSource``."""
        before = 0
        for shard in self._shards:
            first = max(0, start - before)
            if first < shard.samples:
                yield from shard.rows(columns, first, scratch, max_bytes)
            before += shard.samples


class _Shard:
    """One entry of the index, checked."""

    def __init__(self, folder: Path, entry: dict[str, Any]) -> None:
        if entry["format"] != "mds" or entry["version"] != 2:
            raise ValueError(f"a shard has the format {entry['format']!r:.40}, version {entry['version']!r:.20}")
        names, codes, sizes = (entry[name] for name in ("column_names", "column_encodings", "column_sizes"))
        if not len(names) == len(codes) == len(sizes) == len(set(names)) or not 0 < len(names) <= MAX_COLUMNS:
            raise ValueError("names, encodings and sizes of columns differ in number")
        if not all(isinstance(word, str) and word.isprintable() for word in [*names, *codes]):
            raise ValueError("the name or encoding of a column is no text")
        if not all(size is None or (type(size) is int and 0 <= size < MAX_SHARD) for size in sizes):
            raise ValueError("the size of a column is not a whole number of bytes")
        self.encodings: dict[str, str] = dict(zip(names, codes, strict=True))
        self.sizes: list[int | None] = sizes
        self.samples, self.bytes = entry["samples"], entry["raw_data"]["bytes"]
        if type(self.samples) is not int or type(self.bytes) is not int or not 0 <= self.bytes < MAX_SHARD:
            raise ValueError("a number of samples or bytes is none")
        if not 0 <= self.samples <= self.bytes // 4:
            raise ValueError(f"a shard of {self.bytes} bytes claims {self.samples} samples")
        self.name, packed = entry["raw_data"]["basename"], entry.get("zip_data")
        self.stored = packed["basename"] if packed else self.name
        codec = str(entry.get("compression") or "").partition(":")[0]
        if packed and codec not in CODECS:
            raise ValueError(f"the compression {codec[:40]!r} is not read; zstd and gz are")
        self.codec = CODECS[codec] if packed else None
        for name in (self.name, self.stored):
            if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,150}", name):
                raise ValueError(f"the file name {name!r:.80} leads out of the folder")
        self.path = folder / self.stored
        if not self.path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{self.stored} is a link that leads out of the folder")
        size = self.path.stat().st_size if self.path.is_file() else 0
        if self.samples > FEW_SAMPLES + size * (DENSITY if packed else 1):  # each of them would be a row of the ledger
            raise ValueError(f"{self.stored} has {size} bytes, and claims {self.samples} samples")

    def rows(self, columns: Collection[str], first: int, scratch: Path, max_bytes: int) -> Iterator[SourceRow]:
        """Yield the rows of the shard from a number on; a damaged shard gives rows with a fault."""
        path, numbers = self.path, range(first, self.samples)
        unpacked = scratch / f"{self.stored}.unpacked" if self.codec else None
        try:
            if unpacked is not None:
                self._unpack(unpacked)
                path = unpacked
            with path.open("rb") as file:
                offsets = self._offsets(file)
                for number in numbers:
                    place, begin, end = f"{self.name}/{number}", int(offsets[number]), int(offsets[number + 1])
                    if end - begin > max_bytes + MAX_FURTHER:
                        yield SourceRow(place, {}, f"the sample has {end - begin} bytes")
                        continue
                    file.seek(begin)
                    try:
                        yield SourceRow(place, self._cells(file.read(end - begin), columns))
                    except ValueError as error:
                        yield SourceRow(place, {}, str(error)[:200])
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            for number in numbers:
                yield SourceRow(f"{self.name}/{number}", {}, f"{self.stored}: {reason}"[:200])
        finally:
            if unpacked is not None:
                unpacked.unlink(missing_ok=True)

    def _unpack(self, target: Path) -> None:
        left = self.bytes
        with (
            atomic_write(target) as temporary,
            pa.input_stream(str(self.path), compression=self.codec) as packed,
            temporary.open("wb") as file,
        ):
            while block := packed.read(min(1 << 20, left + 1)):
                left -= len(block)
                if left < 0:
                    raise ValueError(f"it unpacks to more than the {self.bytes} bytes that the index says")
                file.write(block)

    def _offsets(self, file: BinaryIO) -> np.ndarray:
        """Return the offsets of all samples, and the end of the last one."""
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(4)
        if size != self.bytes or len(head) < 4 or int.from_bytes(head, "little") != self.samples:
            raise ValueError(f"its {size} bytes are not the {self.samples} samples that the index says")
        offsets = np.frombuffer(file.read(4 * (self.samples + 1)), "<u4").astype(np.int64)
        if len(offsets) != self.samples + 1 or (np.diff(offsets) < 0).any() or offsets[-1] > size:
            raise ValueError("its offsets lie outside of the file")
        return offsets

    def _cells(self, raw: bytes, columns: Collection[str]) -> dict[str, Any]:
        position, lengths = 0, []
        for size in self.sizes:
            lengths.append(size if size else int.from_bytes(raw[position : position + 4], "little"))
            position += 0 if size else 4
        if position + sum(lengths) != len(raw):
            raise ValueError("the sizes of its columns do not fit into the sample")
        cells = {}
        for (name, code), length in zip(self.encodings.items(), lengths, strict=True):
            if name in columns and code in KINDS:
                cells[name] = _value(code, raw[position : position + length])
            position += length
        return cells


def _value(code: str, raw: bytes) -> Any:
    if code == "str":
        return raw.decode("utf-8", "replace")
    if code == "json":
        return parse_json(raw)
    return int.from_bytes(raw, "little", signed=True) if code == "int" else raw

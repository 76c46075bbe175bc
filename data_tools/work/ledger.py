"""The ledger: one parquet format in which every program says what it looked at and what became of each link or sample.

A row is one decision. A program writes its rows in the order of its input, beside what it made, and names itself in
``stage``; ``uid`` follows a link through all of them, ``key`` exists from the first shards on.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.errors import UserError

LEDGER = "ledger.parquet"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uid", "key", "url", "domain", "stage", "rule", "value")]
    + [("kept", pa.bool_()), ("reason", pa.string()), ("evidence", pa.string())]
    + [("fetched_at", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
    + [("width", pa.int32()), ("height", pa.int32())]
    + [(name, pa.string()) for name in ("licence", "legal_basis", "language")]
)
ROWS = 10_000  # in a row group: what a writer holds in memory


def link_uid(url: str | None, page_url: str | None, caption: str | None) -> str:
    """Name a link for good: 32 hex digits of the SHA-256 of address, page and caption."""
    digest = hashlib.sha256()
    for text in (url, page_url, caption):
        raw = (text or "").encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:32]


def evidence_text(evidence: dict[str, Any] | None) -> str | None:
    """Evidence as it stands in the ledger: JSON with sorted keys, or nothing."""
    return json.dumps(evidence, ensure_ascii=False, sort_keys=True) if evidence else None


class LedgerWriter:
    """Writes rows beside the place and renames at the end, so that a ledger is whole or not there.

    Args:
        path: The parquet file.
        stage: Name of the program that decides, put into each row.
    """

    def __init__(self, path: Path, stage: str) -> None:
        """Open the file beside its place."""
        self.path, self.stage = path, stage
        self._temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        self._waiting: list[dict[str, Any]] = []
        self._file = pq.ParquetWriter(self._temporary, SCHEMA, compression="zstd")

    def __enter__(self) -> "LedgerWriter":
        """Return itself."""
        return self

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append decisions; ``evidence`` may be a dictionary, columns that are missing stay empty."""
        for row in rows:
            known = {name: row.get(name) for name in SCHEMA.names} | {"stage": self.stage}
            if isinstance(known["evidence"], dict):
                known["evidence"] = evidence_text(known["evidence"])
            self._waiting.append(known)
            if len(self._waiting) == ROWS:
                self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Append many decisions at once, as a row group of their own; columns that are missing stay empty."""
        if self._waiting:
            self._flush()
        columns = {name: table[name] if name in table.column_names else None for name in SCHEMA.names}
        columns["stage"] = pa.array([self.stage] * table.num_rows)
        filled = [pa.nulls(table.num_rows) if column is None else column for column in columns.values()]
        self._file.write_table(pa.table(filled, SCHEMA.names).cast(SCHEMA))

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._waiting, SCHEMA))
        self._waiting = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or leave nothing behind after an error."""
        try:
            if kind is None:
                if self._waiting:
                    self._flush()
                self._file.close()
                os.replace(self._temporary, self.path)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def read_ledger(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a ledger some thousand rows at a time.

    Raises:
        UserError: It is missing, or no ledger.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or SCHEMA.names if name not in file.schema_arrow.names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}: it is no ledger of these programs")
            yield from file.iter_batches(ROWS, columns=list(columns or SCHEMA.names))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): build it again") from None

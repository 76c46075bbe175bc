"""The ledger: the parquet format in which every program records its decision on each link or sample.

A row is one decision. A program writes its rows in the order of its input, beside its output, and names itself in
``stage``. ``uid`` identifies a link in all ledgers, ``key`` a sample in shards.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.errors import UserError
from leam_mm.files import atomic_write

LEDGER = "ledger.parquet"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("uid", "key", "url", "domain", "stage", "rule", "value")]
    + [("kept", pa.bool_()), ("reason", pa.string()), ("evidence", pa.string())]
    + [("fetched_at", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
    + [("width", pa.int32()), ("height", pa.int32())]
    + [(name, pa.string()) for name in ("licence", "legal_basis", "language")]
)
WITHDRAWAL, WITHDRAWN = "withdraw_samples", "withdrawn"  # stage of its own rows, and rule of the rows that it changes
ROWS = 10_000  # in a row group, which a writer holds in memory


def link_uid(url: str | None, page_url: str | None, caption: str | None) -> str:
    """Return the permanent identifier of a link: 32 hex digits of the SHA-256 of address, page and caption."""
    digest = hashlib.sha256()
    for text in (url, page_url, caption):
        raw = (text or "").encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:32]


def evidence_text(evidence: dict[str, Any] | None) -> str | None:
    """Return evidence in the form of the ledger: JSON with sorted keys, or None."""
    return json.dumps(evidence, ensure_ascii=False, sort_keys=True) if evidence else None


class LedgerWriter(AbstractContextManager["LedgerWriter"]):
    """Context manager that writes a ledger; the file appears at the end of the block unless there was an error.

    Args:
        path: The parquet file.
        stage: Name of the program that decides; written into each row.
    """

    def __init__(self, path: Path, stage: str) -> None:
        """See the class for the arguments."""
        self.path, self.stage = path, stage
        self._waiting: list[dict[str, Any]] = []
        self._opened = self._open()

    @contextmanager
    def _open(self) -> "Iterator[LedgerWriter]":
        with (
            atomic_write(self.path) as temporary,
            pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as self._file,
        ):
            yield self
            self._flush()

    def __enter__(self) -> "LedgerWriter":
        """Open the file."""
        return self._opened.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        """Finish the file, or remove it after an error."""
        return self._opened.__exit__(*error)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append decisions; ``evidence`` may be a dictionary, and missing columns stay empty."""
        for row in rows:
            cells = {name: row.get(name) for name in SCHEMA.names} | {"stage": self.stage}
            if isinstance(cells["evidence"], dict):
                cells["evidence"] = evidence_text(cells["evidence"])
            self._waiting.append(cells)
            if len(self._waiting) == ROWS:
                self._flush()

    def write_table(self, table: pa.Table) -> None:
        """Append a table of decisions as a row group; missing columns stay empty."""
        self._flush()
        columns = {name: table[name] if name in table.column_names else None for name in SCHEMA.names}
        columns["stage"] = pa.array([self.stage] * table.num_rows)
        filled = [pa.nulls(table.num_rows) if column is None else column for column in columns.values()]
        self._file.write_table(pa.table(filled, SCHEMA.names).cast(SCHEMA))

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.Table.from_pylist(self._waiting, SCHEMA))
            self._waiting = []


def read_ledger(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a ledger, ``ROWS`` rows at a time.

    Raises:
        UserError: The file is missing, or not a ledger.
    """
    try:
        with open_parquet(path) as file:
            missing = [name for name in columns or SCHEMA.names if name not in file.schema.names]
            if missing:
                raise UserError(f"{path} has no column {missing[0]!r}: give a ledger of these programs")
            wanted = pa.schema([SCHEMA.field(name) for name in columns or SCHEMA.names])
            for batch in file.batches(ROWS, wanted.names):
                # A name that occurs twice, values of another type, and text that is not in UTF-8 end here.
                batch = batch.cast(wanted)
                batch.validate(full=True)
                yield batch
    except ERRORS as error:
        raise UserError(f"{path} cannot be read ({error_reason(error)}): build it again") from None

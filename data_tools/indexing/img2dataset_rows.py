"""Rows of img2dataset's own table beside a tar (``00000.parquet``): the links that it could not store."""

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from data_tools.indexing.foreign_record import MAX_FIELD
from data_tools.indexing.tar_patterns import Tar, open_address
from data_tools.network.link_address import host_of
from data_tools.work.text_tables import text_batches
from leam_mm.data.ledger import link_uid
from leam_mm.errors import UserError

WANTED = ("key", "status")
COLUMNS = (*WANTED, "url", "caption", "error_message")
ROWS = 10_000
MAX_TABLE = 1 << 31  # bytes


def table_name(tar: str) -> str:
    """Return the name of img2dataset's table beside a tar."""
    return tar.removesuffix(".tar") + ".parquet"


def failed_rows(tar: Tar, legal_basis: str) -> tuple[list[dict[str, Any]], int, str | None]:
    """Return ledger rows of the links that img2dataset could not store, and the number of those that it stored.

    Args:
        tar: The tar.
        legal_basis: As the user states.

    Returns:
        The rows, the number of stored links, and what is wrong with the table, or None. Without a table, or with one
        of another program, there are none.
    """
    address = tar.address.removesuffix(".tar") + ".parquet"
    try:
        if not tar.remote:
            return _rows(Path(address), legal_basis) if Path(address).is_file() else ([], 0, None)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / "table.parquet"
            try:
                with open_address(address) as source, open(copy, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except FileNotFoundError:
                return [], 0, None
            return _rows(copy, legal_basis)
    except (UserError, OSError) as error:
        return [], 0, f"{table_name(tar.name)} cannot be read ({str(error)[:200]})"


def _rows(path: Path, legal_basis: str) -> tuple[list[dict[str, Any]], int, str | None]:
    rows, stored = [], 0
    if path.stat().st_size > MAX_TABLE:
        return [], 0, f"{path.name} has more than {MAX_TABLE} bytes"

    def choose(columns: Collection[str]) -> list[str]:
        return [name for name in COLUMNS if name in columns] if {*WANTED} <= {*columns} else []

    for batch in text_batches(path, ROWS, choose):
        if not {*WANTED} <= {*batch.column_names}:
            return [], 0, None
        for row in batch.to_pylist():
            if row["status"] == "success":
                stored += 1
                continue
            url = (row.get("url") or "")[:MAX_FIELD] or None
            why = (row.get("error_message") or row["status"] or "no reason is given")[:MAX_FIELD]
            rows.append(
                {"uid": link_uid(url, None, row.get("caption")), "key": row["key"], "url": url}
                | {"domain": host_of(url) or None, "rule": "img2dataset", "value": row["status"], "kept": False}
                | {"reason": why, "legal_basis": legal_basis}
            )
    return rows, stored, None

"""When a sample was collected: from its record, or from the ledger beside the shards."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leam_mm.data.ledger import LEDGER
from leam_mm.data.parquet_file import ERRORS, open_parquet
from leam_mm.data.shard_index import ShardFolder

ROWS = 1 << 16


def ledger_dates(folder: ShardFolder, keys: Collection[str] | None = None) -> dict[str, str]:
    """Return the time of the request of each sample, by its key; empty without a ledger that records it.

    Args:
        folder: Shard folder or keep-list; the ledger lies beside the tars.
        keys: Keys that are wanted; None takes all.
    """
    path = Path(folder.location) / LEDGER
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    try:
        with open_parquet(path) as file:
            for batch in file.batches(ROWS, ["key", "fetched_at"]):
                for key, time in zip(*(batch.column(name).to_pylist() for name in ("key", "fetched_at")), strict=True):
                    if isinstance(key, str) and isinstance(time, str) and (keys is None or key in keys):
                        found[key] = time
    except ERRORS:
        return {}
    return found


def collection_date(record: Mapping[str, Any], ledger: str | None) -> datetime | None:
    """Return when a sample was collected; None where nothing states a time with year, month and day.

    Args:
        record: Its json: ``fetched_at``, or that of the page in its ``consent``.
        ledger: Time in the ledger, or None.
    """
    consent = record.get("consent")
    page = consent.get("page") if isinstance(consent, dict) else None
    archived = page.get("fetched_at") if isinstance(page, dict) else None
    for text in (record.get("fetched_at"), archived, ledger):
        try:
            found = datetime.fromisoformat(text) if isinstance(text, str) else None
        except ValueError:
            continue
        if found is not None:
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None

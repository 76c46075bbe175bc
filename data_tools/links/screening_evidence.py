"""Evidence that screen_links leaves beside a table, bound to this very table by digests.

summary.json holds the SHA-256 of links.parquet and origins.jsonl. Evidence whose digests differ belongs to another
table and is ignored: the origins are then asked again, and the table's ``legal_basis`` is a claim. The digests bind;
they do not prove who screened. A folder that a stranger screened is to be screened again.
"""

import json
import logging
from pathlib import Path
from typing import Any

from leam_mm.files import file_sha256

log = logging.getLogger(__name__)
SUMMARY, ORIGINS = "summary.json", "origins.jsonl"


def file_digests(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of those files of a folder that exist."""
    return {name: file_sha256(folder / name) for name in names if (folder / name).is_file()}


def screened_origins(table: Path) -> Path | None:
    """Return the file of the origins that screen_links asked about this very table, or None; one log line says why.

    Args:
        table: The table of links.
    """
    origins, summary = table.with_name(ORIGINS), table.with_name(SUMMARY)
    if not (origins.is_file() and table.is_file()):
        return None
    if _recorded(summary) == file_digests(table.parent, (table.name, ORIGINS)):
        return origins
    log.warning("%s is ignored: %s does not bind it to %s; all origins are asked", origins, SUMMARY, table.name)
    return None


def _recorded(summary: Path) -> dict[str, Any]:
    try:
        digests = json.loads(summary.read_text("utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return digests if isinstance(digests, dict) else {}

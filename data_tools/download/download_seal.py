"""The settings that decide the bytes of a download, and the seal that records them in the finished folder."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_tools.network.image_fetch import FetchSetting
from data_tools.work.work_folder import compare_settings
from leam_mm.data.ledger import LEDGER, read_ledger
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

SEAL = "download.json"
# These decide where, how fast and how often is fetched, but not which bytes are accepted.
WITHOUT_EFFECT = (
    *("links", "output", "processes", "threads", "timeout", "retries", "rows_per_part", "distributor", "cluster"),
    *("connections_per_host", "delay_per_host", "crawl_delay", "spare_private", "longest_wait", "allow_proxy"),
)


def fetch_identity(setting: FetchSetting, digest: str) -> dict[str, Any]:
    """Return all that decides which bytes are accepted.

    Args:
        setting: Settings of the fetching processes.
        digest: Digest of the table of links.
    """
    decisive = {name: value for name, value in asdict(setting).items() if name not in WITHOUT_EFFECT}
    return decisive | {"table": digest, "registries": [file_sha256(Path(path)) for path in setting.registries]}


def write_seal(folder: Path, identity: dict[str, Any]) -> None:
    """Record in a finished folder what decided its bytes."""
    (folder / SEAL).write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")


def finished_rows(output: Path, identity: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the ledger rows of a finished folder, after a check of its seal.

    Raises:
        UserError: The folder does not exist, or was made with other settings or from another table.
    """
    try:
        old = json.loads((output / SEAL).read_text())
    except (OSError, ValueError):
        raise UserError(
            f"{output} is not a finished download with a {SEAL}: run without --retry-failed first"
        ) from None
    compare_settings(old, identity, output, "give the settings and the table of the first run, or download anew")
    for batch in read_ledger(output / LEDGER):
        yield from batch.to_pylist()

"""The folder in which a download works, and the seal on what it made: other settings never go on with either."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_tools.network.image_fetch import FetchSetting
from data_tools.work.ledger import LEDGER, read_ledger
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

SEAL = "download.json"
# What decides how fast, where and how patiently is fetched, but not what may be.
FREE = (
    *("links", "output", "processes", "threads", "timeout", "retries", "rows_per_part", "distributor", "cluster"),
    *("connections_per_host", "delay_per_host", "crawl_delay", "spare_private", "longest_wait"),
)


def fetch_identity(setting: FetchSetting, digest: str) -> dict[str, Any]:
    """All that decides which bytes may come, with the digests of the table and of opt-out registries."""
    known = {key: value for key, value in asdict(setting).items() if key not in FREE}
    return known | {"table": digest, "registries": [file_sha256(Path(path)) for path in setting.registries]}


def compare(old: dict[str, Any], new: dict[str, Any], where: Path, cure: str) -> None:
    """Refuse to go on with other settings.

    Raises:
        UserError: A value differs.
    """
    for key, value in new.items():
        if old.get(key) != value:
            raise UserError(f"{where} was begun with another {key} ({old.get(key)!r}, now {value!r}): {cure}")


@contextmanager
def working(work: Path, identity: dict[str, Any], part_size: int, piece: tuple[int, int]) -> Iterator[int]:
    """Create the work folder, or go on in it if the settings are the same; locked for as long as this lasts.

    Args:
        work: The folder.
        identity: Of `fetch_identity`.
        part_size: Links in a part, for a new folder.
        piece: Number of this job and how many there are; jobs of one array share the folder.

    Yields:
        Links in a part, as the first run has set it.
    """
    work.mkdir(parents=True, exist_ok=True)
    alone = piece == (0, 1)
    with open(work / "lock", "w") as whole, open(work / f"lock.{piece[0]}", "w") as own:
        _lock(whole, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, work)
        _lock(own, fcntl.LOCK_EX, work)
        record = work / "fingerprint.json"
        if not record.exists():
            temporary = work / f"fingerprint.json.tmp-{os.getpid()}-{piece[0]}"
            temporary.write_text(json.dumps(identity | {"rows_per_part": part_size}))
            with suppress(FileExistsError):
                os.link(temporary, record)  # of several that begin at once, one is first
            temporary.unlink()
        old = json.loads(record.read_text())
        part_size = old.pop("rows_per_part")
        compare(old, identity, work, "start with the old settings, or delete that folder to fetch anew")
        yield part_size


def _lock(file: Any, kind: int, work: Path) -> None:
    for attempt in range(10):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == 9:
                raise UserError(f"{work} is in use by another run: wait for it, or choose another --output") from None
            time.sleep(0.5)


def write_seal(folder: Path, identity: dict[str, Any]) -> None:
    """Say in a finished folder what decided its bytes."""
    (folder / SEAL).write_text(json.dumps(identity, indent=1, sort_keys=True) + "\n")


def finished_rows(output: Path, identity: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The ledger of a finished folder, row by row, after a look at its seal.

    Raises:
        UserError: There is no such folder, or it was made with other settings or of another table.
    """
    try:
        old = json.loads((output / SEAL).read_text())
    except (OSError, ValueError):
        raise UserError(f"{output} is no finished download with a {SEAL}: run without --retry-failed first") from None
    compare(old, identity, output, "give the settings and the table of the first run, or download anew")
    for batch in read_ledger(output / LEDGER):
        yield from batch.to_pylist()

"""Read fetched parts in the order of the table, and check and repair their images in several processes.

An image that takes too long to decode, or crashes its process, is left out; all others are kept.
"""

import itertools
import json
import logging
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.download.fetched_part import part_progress
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.legal_basis import basis_of
from data_tools.rights.reservations import decide
from data_tools.samples.image_repair import ImageFault, ImageRule, RepairedImage, repair_image
from data_tools.work.workers import WorkerDied, WorkerPool
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
IN_PROCESS = 400  # below this many images, starting processes costs more than it saves
DECODE_SECONDS = 60.0  # for one image; a photograph takes 0.01 s
CRASHES = 20  # images of one part that crash a process; above, the cause is elsewhere
MEMORY_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")  # memory addresses in messages of libraries


@dataclass(frozen=True)
class Fetched:
    """Result of one link: an image, or the rule and reason of its refusal.

    Args:
        image: Image to store.
        fetched_at: Time of the request, ISO 8601.
        bytes: Size of the fetched file.
        sha256: Digest of the fetched file.
        rule: Rule that refused it.
        value: Value on which the rule decided.
        reason: The refusal in words.
        response: Evidence that a second visit would find again.
        visit: Evidence of this visit only: seconds, attempts.
    """

    image: RepairedImage | None
    fetched_at: str
    bytes: int | None = None
    sha256: str | None = None
    rule: str = ""
    value: str = ""
    reason: str = ""
    response: dict[str, Any] = field(default_factory=dict)
    visit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _PartJob:
    """One fetched part.

    Args:
        path: File of the part.
        rule: Requirements of images.
        crashed: Rows whose image crashed a process.
        note: File for the number of the current row, read when this process has crashed.
    """

    path: Path
    rule: ImageRule
    crashed: frozenset[int] = frozenset()
    note: Path | None = None


def _repair_part(_: None, job: _PartJob) -> list[tuple[int, Fetched]]:
    """Read a part, one row group at a time, and repair its images; sorted by row."""
    found = []
    with pq.ParquetFile(job.path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, FETCHED.names).to_pylist():
                if job.note:
                    job.note.write_text(str(row["row"]))
                if row["row"] in job.crashed:
                    row |= {"rule": "crash", "value": row["sha256"], "content": None}
                    row["reason"] = "decoding it brought a process down"
                found.append((row["row"], _check_row(row, job.rule)))
    return sorted(found, key=lambda pair: pair[0])


def _repair_crashing_part(path: Path, rule: ImageRule) -> list[tuple[int, Fetched]]:
    """Repair the images of a part that crashed its process: find the images that did it, and leave them out.

    Raises:
        UserError: The images are not the cause.
    """
    crashed: set[int] = set()
    note = path.with_name(f"{path.name}.decoding")
    while len(crashed) <= CRASHES:
        note.write_text("")
        try:
            with WorkerPool[None](1, isolated=True) as pool:
                ((_, rows),) = pool.run(_repair_part, [_PartJob(path, rule, frozenset(crashed), note)])
            note.unlink()
            return rows
        except WorkerDied:
            row = note.read_text()
        if not row or int(row) in crashed:
            break
        log.warning("the image of row %s crashed the process that decoded it and is left out", row)
        crashed.add(int(row))
    raise UserError(f"decoding {path} crashes its process: check memory limits, then start again")


def _check_row(row: dict[str, Any], rule: ImageRule) -> Fetched:
    content, evidence = row["content"], {name: json.loads(row[name] or "{}") for name in ("response", "visit")}
    fetched_at, digest = row["fetched_at"], row["sha256"]
    if content is None:
        size = evidence["response"].get("bytes")
        return Fetched(None, fetched_at, size, None, row["rule"], row["value"], row["reason"], **evidence)

    def refused(rule: str, value: str, reason: str) -> Fetched:
        return Fetched(None, fetched_at, len(content), digest, rule, value, reason, **evidence)

    try:
        with _TimeLimit(DECODE_SECONDS):
            image = repair_image(content, rule)
    except ImageFault as fault:
        return refused(fault.rule, fault.value, MEMORY_ADDRESS.sub("", fault.reason))
    if image.sha256 != digest:
        return refused("sha256", image.sha256, "bytes changed since the download")
    if signals := rights_in_file(content):  # of the original file, because a repair may remove manifest and metadata
        evidence["response"].setdefault("signals", []).extend(asdict(signal) for signal in signals)
        if forbids := decide(signals, basis_of(row["legal_basis"])):
            value = f"{forbids.kind}: {forbids.value}"
            return refused("reservation", value, f"in the file, {value}")
    return Fetched(image, fetched_at, len(content), image.sha256, **evidence)


class _TimeLimit:
    """Give up an image that takes too long to decode."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds if threading.current_thread() is threading.main_thread() else 0.0

    def __enter__(self) -> None:
        if self.seconds:
            self._before = signal.signal(signal.SIGALRM, self._over)
            signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def _over(self, *_: object) -> None:
        raise ImageFault("seconds", f"{self.seconds:g}", f"decoding took longer than {self.seconds:g} s")

    def __exit__(self, *_: object) -> None:
        if self.seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)


def repaired_rows(
    raw: Path, expected: Iterator[int], count: int, size: int, rule: ImageRule, processes: int
) -> Iterator[tuple[int, Fetched]]:
    """Yield all fetched rows in the order of the table; several processes decode, a few parts ahead.

    Args:
        raw: Folder of the fetched parts.
        expected: Rows of the table that were fetched, in order.
        count: Number of fetched rows.
        size: Number of rows in a part.
        rule: Requirements of images.
        processes: Number of processes that decode.

    Raises:
        UserError: A row is missing, or decoding crashes its process whatever image is left out.
    """
    parts = [part_file(raw, part) for part in range(-(-count // size))]
    with part_progress() as progress:
        bar = progress.add_task("write", total=count)
        for path, rows in _repaired_parts(parts, rule, processes if count >= IN_PROCESS else 0):
            if [number for number, _ in rows] != list(itertools.islice(expected, size)):
                raise UserError(f"{path} does not hold the expected rows: delete {raw.parent} and start again")
            progress.update(bar, advance=len(rows))
            yield from rows


def _repaired_parts(
    parts: list[Path], rule: ImageRule, processes: int
) -> Iterator[tuple[Path, list[tuple[int, Fetched]]]]:
    """Yield each part with its rows; 0 processes decode in this one."""
    position = 0
    while position < len(parts):
        jobs = [_PartJob(path, rule) for path in parts[position:]]
        try:
            with WorkerPool[None](max(1, processes), isolated=processes > 0) as pool:
                for job, rows in pool.run(_repair_part, jobs, ahead=processes + 1):
                    position += 1
                    yield job.path, rows
        except WorkerDied:
            yield parts[position], _repair_crashing_part(parts[position], rule)
            position += 1

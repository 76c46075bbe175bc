"""Read fetched parts again in the table's order, and mend their images in several processes.

An image that keeps its decoder busy for too long, or brings its process down, costs itself and nothing else.
"""

import itertools
import json
import logging
import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.download.fetched_part import part_progress
from data_tools.download.image_request import basis_of
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.reservations import decide
from data_tools.samples.image_repair import ImageFault, ImageRule, RepairedImage, repair_image
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
IN_PROCESS = 400  # below this many images, starting processes costs more than it saves
DECODE_SECONDS = 60.0  # for one image; a photograph takes a hundredth of one
CRASHES = 20  # images of one part that bring a process down, after which it is not taken for their fault
NOWHERE = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")  # addresses in memory, which libraries' messages hold


@dataclass(frozen=True)
class Fetched:
    """What became of one link: an image, or the rule and reason why not.

    Args:
        image: As it will be stored.
        fetched_at: ISO 8601.
        bytes: As they came.
        sha256: Of them.
        rule: That refused it.
        value: What that rule looked at.
        reason: In words.
        response: What the server said and would say again.
        visit: What belongs to this visit alone: seconds, attempts.
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


def _repair_part(
    path: Path, rule: ImageRule, crashed: frozenset[int] = frozenset(), note: Path | None = None
) -> list[tuple[int, Fetched]]:
    """Read one raw part, some rows at a time, and mend its images; sorted by row.

    Args:
        path: The part.
        rule: What an image must be.
        crashed: Rows whose image has brought a process down.
        note: File that tells which row is at work, for those who find this process dead.
    """
    found = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, FETCHED.names).to_pylist():
                if note:
                    note.write_text(str(row["row"]))
                if row["row"] in crashed:
                    row |= {"rule": "crash", "value": row["sha256"], "content": None}
                    row["reason"] = "decoding it brought a process down"
                found.append((row["row"], _judge(row, rule)))
    return sorted(found, key=lambda pair: pair[0])


def _careful_part(path: Path, rule: ImageRule) -> list[tuple[int, Fetched]]:
    """Mend the images of a part that brought its process down: find out which, and leave those out.

    Raises:
        UserError: It is not the images' fault.
    """
    crashed: set[int] = set()
    note = path.with_name(f"{path.name}.decoding")
    while len(crashed) <= CRASHES:
        note.write_text("")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                rows = pool.submit(_repair_part, path, rule, frozenset(crashed), note).result()
                note.unlink()
                return rows
            except BrokenProcessPool:
                row = note.read_text()
        if not row or int(row) in crashed:
            break
        log.warning("the image of row %s brought its decoding process down and is left out", row)
        crashed.add(int(row))
    raise UserError(f"decoding {path} brought a process down: look for memory limits, then start again") from None


def _judge(row: dict[str, Any], rule: ImageRule) -> Fetched:
    raw, evidence = row["content"], {name: json.loads(row[name] or "{}") for name in ("response", "visit")}
    moment = row["fetched_at"]
    if raw is None:
        size = evidence["response"].get("bytes")
        return Fetched(None, moment, size, None, row["rule"], row["value"], row["reason"], **evidence)
    try:
        with _TimeLimit(DECODE_SECONDS):
            image = repair_image(raw, rule)
    except ImageFault as fault:
        reason = NOWHERE.sub("", fault.reason)
        return Fetched(None, moment, len(raw), row["sha256"], fault.rule, fault.value, reason, **evidence)
    if image.sha256 != row["sha256"]:
        reason = "bytes changed since the download"
        return Fetched(None, moment, len(raw), row["sha256"], "sha256", image.sha256, reason, **evidence)
    if signals := rights_in_file(raw):  # asked here, because mending an image may take its manifest and metadata away
        evidence["response"].setdefault("signals", []).extend(asdict(signal) for signal in signals)
        if forbids := decide(signals, basis_of(row["legal_basis"])):
            told = f"{forbids.kind}: {forbids.value}"
            return Fetched(
                None, moment, len(raw), row["sha256"], "reservation", told, f"in the file, {told}", **evidence
            )
    return Fetched(image, moment, len(raw), image.sha256, **evidence)


class _TimeLimit:
    """Give up an image that keeps its decoder busy for too long."""

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
    """Give all fetched rows in the table's order; decoding runs in several processes, a few parts ahead.

    Args:
        raw: Folder of the raw parts.
        expected: Rows of the table that were fetched, in order.
        count: How many they are.
        size: Of them in each part.
        rule: What an image must be.
        processes: That decode.

    Raises:
        UserError: A row is missing, or decoding brings its process down, whatever image is left out.
    """
    parts = [part_file(raw, part) for part in range(-(-count // size))]
    with part_progress() as progress:
        bar = progress.add_task("write", total=count)
        for path, rows in _repaired_parts(parts, rule, processes if count >= IN_PROCESS else 0):
            if [number for number, _ in rows] != list(itertools.islice(expected, size)):
                raise UserError(f"{path} does not hold the rows it should: delete {raw.parent} and start again")
            progress.update(bar, advance=len(rows))
            yield from rows


def _repaired_parts(
    parts: list[Path], rule: ImageRule, processes: int
) -> Iterator[tuple[Path, list[tuple[int, Fetched]]]]:
    if not processes:
        for path in parts:
            yield path, _repair_part(path, rule)
        return
    position = 0
    while position < len(parts):
        try:
            for path, rows in _pooled_parts(parts[position:], rule, processes):
                position += 1
                yield path, rows
        except BrokenProcessPool:
            yield parts[position], _careful_part(parts[position], rule)
            position += 1


def _pooled_parts(
    parts: list[Path], rule: ImageRule, processes: int
) -> Iterator[tuple[Path, list[tuple[int, Fetched]]]]:
    # Spawned, because forking a process that has threads (the progress bar, pyarrow) may hang.
    context = multiprocessing.get_context("spawn")
    # The keyboard's interrupt is for the program alone, which then ends its workers.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=signal.signal, initargs=quiet) as pool:
        waiting: list[tuple[Path, Future[list[tuple[int, Fetched]]]]] = []
        coming = iter(parts)
        try:
            while True:
                for path in itertools.islice(coming, processes + 1 - len(waiting)):
                    waiting.append((path, pool.submit(_repair_part, path, rule)))
                if not waiting:
                    return
                path, future = waiting.pop(0)
                yield path, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

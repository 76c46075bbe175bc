"""The raw parts of a download: have them fetched, see that every row came back, read them in the table's order."""

import itertools
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.download_worker import FETCHED, LINKS, part_file
from data_tools.file_rights import rights_in_file
from data_tools.image_fetch import FetchSetting
from data_tools.image_repair import ImageFault, ImageRule, RepairedImage, repair_image
from data_tools.image_request import basis_of
from data_tools.reservations import decide
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
NOWHERE = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")  # addresses in memory, which libraries' messages hold
Link = tuple[int, str, str | None]  # row of the table, address, legal basis
IN_PROCESS = 400  # below this many images, starting processes costs more than it saves
DECODE_SECONDS = 60.0  # for one image; a photograph takes a hundredth of one
ATTEMPTS = 3  # of the whole fetching, for parts that do not come back
PATIENCE = 60.0  # seconds without any news, beyond what one link may take, after which the fetching is ended


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


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _missing_parts(raw: Path, rows: int, part_size: int) -> list[int]:
    """Parts that are not there with the right number of rows; what is left of them is removed, so they are redone."""
    missing = []
    for part in range(-(-rows // part_size)):
        path = part_file(raw, part)
        try:
            found = pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):
            found = -1
        if found != min(part_size, rows - part * part_size):
            path.unlink(missing_ok=True)
            missing.append(part)
    return missing


def fetch_parts(
    work: Path, setting: FetchSetting, links: Callable[[], Iterator[Link]], count: int, piece: tuple[int, int] = (0, 1)
) -> None:
    """Fetch all links into the raw folder; parts that an earlier run finished are kept.

    Args:
        work: The work folder.
        setting: Settings of the fetching processes.
        links: Walks over the links: row number, address and legal basis.
        count: How many they are.
        piece: Number of this job and how many there are; it fetches every n-th part.

    Raises:
        UserError: Not every row came back in three runs.
    """
    raw, size = Path(setting.output), setting.rows_per_part
    raw.mkdir(exist_ok=True)
    journal = work / f"img2dataset.{piece[0]}.log"

    def missing() -> list[int]:
        if piece != (0, 1):  # others may be writing theirs: look, but do not touch
            mine = range(piece[0], -(-count // size), piece[1])
            return [part for part in mine if not part_file(raw, part).exists()]
        return _missing_parts(raw, count, size)

    parts, code = missing(), 0
    for attempt in range(ATTEMPTS):
        if not parts:
            return
        if attempt:
            log.warning("%d parts did not come back whole and are fetched again; see %s", len(parts), journal)
        rows = _write_links(Path(setting.links), size, links(), set(parts))
        code = _run_child(setting, count, rows, journal)
        parts = missing()
    if parts:
        raise UserError(
            f"img2dataset (exit code {code}) did not bring back {len(parts)} parts of {size} "
            f"rows, the first is {parts[0]:05d}: read {journal}, mend the cause, and start the same command again"
        )


def _write_links(folder: Path, size: int, links: Iterator[Link], parts: set[int]) -> int:
    """Write a file of links for each part, for img2dataset reads a whole file at once; how many links they are."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    count = 0
    for part in itertools.count():
        group = list(itertools.islice(links, size))
        if not group:
            return count
        if part in parts:
            rows, urls, bases = zip(*group, strict=True)
            cells = {"part": [part] * len(rows), "row": rows, "url": urls, "legal_basis": bases}
            pq.write_table(pa.table(cells, LINKS), folder / f"{part:05d}.parquet")
            count += len(rows)
    raise AssertionError("itertools.count ends never")


def _run_child(setting: FetchSetting, total: int, waiting: int, journal: Path) -> int:
    """Run data_tools.distributors with a progress bar; its chatter goes to the journal. A long silence ends it."""
    counts = Path(setting.links + ".progress")
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir()
    scratch = Path(setting.links + ".img2dataset")
    shutil.rmtree(scratch, ignore_errors=True)
    sheet = Path(setting.links + ".setting")
    setting.save(sheet)
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # One thread per process for the number crunchers that img2dataset imports: it never crunches here.
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data_tools.distributors", str(sheet.resolve()), str(scratch.resolve())]
    # A link may wait for its host before each attempt; a host may ask for longest_wait.
    silence = (setting.image_seconds + setting.longest_wait) * (setting.retries + 1) + PATIENCE
    with open(journal, "ab") as chatter, _progress() as progress:
        child = subprocess.Popen(
            command, stdout=chatter, stderr=chatter, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            bar = progress.add_task("fetch", total=total, completed=total - waiting)
            known, news = -1, time.monotonic()
            while child.poll() is None:
                time.sleep(0.05)
                answers = sum(int(file.read_text() or 0) for file in counts.iterdir())
                progress.update(bar, completed=total - waiting + min(answers, waiting))
                if answers != known:
                    known, news = answers, time.monotonic()
                elif time.monotonic() - news > silence:
                    log.warning("nothing has come back for %.0f s: the fetching is ended and begun again", silence)
                    break
            else:
                progress.update(bar, completed=total)
            return child.poll() or 0
        finally:
            _end(child)
            shutil.rmtree(scratch, ignore_errors=True)


def _end(child: subprocess.Popen) -> None:
    """End a process and all that it started."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # workers that hang; those that work have left with it
    child.wait()


def _repair_part(path: Path, rule: ImageRule) -> list[tuple[int, Fetched]]:
    """Read one raw part, some rows at a time, and mend its images; sorted by row."""
    found = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, FETCHED.names).to_pylist():
                found.append((row["row"], _judge(row, rule)))
    return sorted(found, key=lambda pair: pair[0])


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
        UserError: A row is missing, or an image brought a decoding process down.
    """
    parts = [part_file(raw, part) for part in range(-(-count // size))]
    with _progress() as progress:
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
        except BrokenProcessPool:
            raise UserError(
                f"decoding {path} brought a process down: look for memory limits, then start again"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

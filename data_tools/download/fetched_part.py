"""Fetch the parts of a download by img2dataset's distributors, and check that every row was fetched."""

import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.download.download_worker import LINKS, part_file
from data_tools.network.image_fetch import FetchSetting
from leam_mm.data.parquet_file import own_parquet
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
Link = tuple[int, str, str | None]  # row of the table, address, legal basis
ATTEMPTS = 3  # runs of the distributor, for parts that are missing afterwards
PATIENCE = 60.0  # seconds without progress, beyond the limit of one link, after which a run is ended


def part_progress() -> Progress:
    """Return a progress bar."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _missing_parts(raw: Path, rows: int, part_size: int) -> list[int]:
    """Return the parts without the right number of rows, and remove their files."""
    missing = []
    for part in range(-(-rows // part_size)):
        path = part_file(raw, part)
        try:
            with own_parquet(path) as file:
                found = file.metadata.num_rows
        except (OSError, pa.ArrowException):
            found = -1
        if found != min(part_size, rows - part * part_size):
            path.unlink(missing_ok=True)
            missing.append(part)
    return missing


def fetch_parts(
    work: Path, setting: FetchSetting, links: Callable[[], Iterator[Link]], count: int, piece: tuple[int, int] = (0, 1)
) -> None:
    """Fetch all links into the raw folder; parts of an earlier run are kept.

    Args:
        work: The work folder.
        setting: Settings of the fetching processes.
        links: Returns an iterator over the links: row number, address and legal basis.
        count: Number of links.
        piece: Number of this job and number of jobs; a job fetches every n-th part.

    Raises:
        UserError: Rows are still missing after three runs.
    """
    raw, size = Path(setting.output), setting.rows_per_part
    raw.mkdir(exist_ok=True)
    journal = work / f"img2dataset.{piece[0]}.log"

    def missing() -> list[int]:
        if piece != (0, 1):  # other jobs may be writing their parts: remove nothing
            own = range(piece[0], -(-count // size), piece[1])
            return [part for part in own if not part_file(raw, part).exists()]
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
            f"rows, the first is {parts[0]:05d}: read {journal}, fix the cause, and start the same command again"
        )


def _write_links(folder: Path, size: int, links: Iterator[Link], parts: set[int]) -> int:
    """Write one file per part, because img2dataset reads whole files; return the number of links."""
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
    raise AssertionError("itertools.count never ends")


def _run_child(setting: FetchSetting, total: int, waiting: int, journal: Path) -> int:
    """Run the distributor with a progress bar, its output in the journal; end it if it makes no progress."""
    counts = Path(setting.links + ".progress")
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir()
    scratch = Path(setting.links + ".img2dataset")
    shutil.rmtree(scratch, ignore_errors=True)
    options = Path(setting.links + ".setting")
    setting.save(options)
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # One thread per process for the numerical libraries that img2dataset imports: they compute nothing here.
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data_tools.download.distributors", str(options.resolve()), str(scratch.resolve())]
    # A link may wait for its host before each attempt; a host may ask for longest_wait.
    silence = (setting.image_seconds + setting.longest_wait) * (setting.retries + 1) + PATIENCE
    with open(journal, "ab") as output, part_progress() as progress:
        child = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            bar = progress.add_task("fetch", total=total, completed=total - waiting)
            before, changed = -1, time.monotonic()
            while child.poll() is None:
                time.sleep(0.05)
                answers = sum(int(file.read_text() or 0) for file in counts.iterdir())
                progress.update(bar, completed=total - waiting + min(answers, waiting))
                if answers != before:
                    before, changed = answers, time.monotonic()
                elif time.monotonic() - changed > silence:
                    log.warning("no progress for %.0f s: the distributor is ended and started again", silence)
                    break
            else:
                progress.update(bar, completed=total)
            return child.poll() or 0
        finally:
            _end(child)
            shutil.rmtree(scratch, ignore_errors=True)


def _end(child: subprocess.Popen) -> None:
    """End a process and all processes that it started."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # workers that hang; the others ended with it
    child.wait()

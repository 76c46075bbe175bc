"""The raw parts of a download: have them fetched by img2dataset's distributors, and see that every row came back."""

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
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
Link = tuple[int, str, str | None]  # row of the table, address, legal basis
ATTEMPTS = 3  # of the whole fetching, for parts that do not come back
PATIENCE = 60.0  # seconds without any news, beyond what one link may take, after which the fetching is ended


def part_progress() -> Progress:
    """The bar of the programs that walk over parts."""
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
    """Run distributors with a progress bar; its chatter goes to the journal. A long silence ends it."""
    counts = Path(setting.links + ".progress")
    shutil.rmtree(counts, ignore_errors=True)
    counts.mkdir()
    scratch = Path(setting.links + ".img2dataset")
    shutil.rmtree(scratch, ignore_errors=True)
    sheet = Path(setting.links + ".setting")
    setting.save(sheet)
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # One thread per process for the number crunchers that img2dataset imports: it never crunches here.
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data_tools.download.distributors", str(sheet.resolve()), str(scratch.resolve())]
    # A link may wait for its host before each attempt; a host may ask for longest_wait.
    silence = (setting.image_seconds + setting.longest_wait) * (setting.retries + 1) + PATIENCE
    with open(journal, "ab") as chatter, part_progress() as progress:
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

"""img2dataset's raw parts: have them fetched, make sure every row came back, read them again in the table's order."""

import itertools
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_tools.image_fetch import FetchSetting
from data_tools.image_repair import ImageFault, ImageRule, RepairedImage, repair_image
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
IN_PROCESS = 400  # below this many images, starting processes costs more than it saves


@dataclass(frozen=True)
class Fetched:
    """What became of one link: an image, or the rule and reason why not."""

    image: RepairedImage | None
    fetched_at: str
    bytes: int | None = None
    sha256: str | None = None
    rule: str = ""
    value: str = ""
    reason: str = ""


def _progress() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _part_files(raw: Path, part: int) -> tuple[Path, Path]:
    return raw / f"{part:05d}.parquet", raw / f"{part:05d}_stats.json"


def _missing_parts(raw: Path, rows: int, part_size: int) -> list[int]:
    """Parts that are not there with the right number of rows; what is left of them is removed, so they are redone."""
    missing = []
    for part in range(-(-rows // part_size)):
        table, stats = _part_files(raw, part)
        try:
            json.loads(stats.read_text())
            found = pq.read_metadata(table).num_rows
        except (OSError, ValueError, pa.ArrowException):
            found = -1
        if found != min(part_size, rows - part * part_size):
            table.unlink(missing_ok=True)
            stats.unlink(missing_ok=True)
            missing.append(part)
    return missing


def fetch_parts(work: Path, setting: FetchSetting, links: list[tuple[int, str]]) -> None:
    """Fetch all links into the raw folder; parts that an earlier run finished are kept.

    Args:
        work: The work folder.
        setting: Settings of the fetching processes.
        links: Row number and address of each link.

    Raises:
        UserError: img2dataset failed, or did not bring every row back, in two runs.
    """
    raw = Path(setting.output)
    raw.mkdir(exist_ok=True)
    temporary = work / "links.parquet.tmp"
    numbers, addresses = zip(*links, strict=True)
    pq.write_table(pa.table({"row": pa.array(numbers, pa.int64()), "url": pa.array(addresses, pa.string())}), temporary)
    os.replace(temporary, setting.links)
    setting.save(work / "fetch.setting")
    journal = work / "img2dataset.log"
    missing = _missing_parts(raw, len(links), setting.rows_per_part)
    for attempt in range(2):
        if not missing:
            return
        if attempt:
            log.warning("%d parts did not come back whole and are fetched again; see %s", len(missing), journal)
        code = _run_child(work, setting, len(links), min(len(links), len(missing) * setting.rows_per_part), journal)
        missing = _missing_parts(raw, len(links), setting.rows_per_part)
    if missing:
        raise UserError(
            f"img2dataset (exit code {code}) did not bring back {len(missing)} parts of {setting.rows_per_part} "
            f"rows, the first is {missing[0]:05d}: read {journal}, mend the cause, and start the same command again"
        )


def _run_child(work: Path, setting: FetchSetting, total: int, waiting: int, journal: Path) -> int:
    """Run data_tools.image_fetch with a progress bar; its chatter goes to the journal."""
    counts = Path(setting.output + ".progress")
    counts.mkdir(exist_ok=True)
    for old in counts.iterdir():
        old.unlink()
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # One thread per process for the number crunchers that img2dataset imports: it never crunches here.
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "data_tools.image_fetch", str((work / "fetch.setting").resolve())]
    with open(journal, "ab") as chatter, _progress() as progress:
        child = subprocess.Popen(
            command, stdout=chatter, stderr=chatter, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            bar = progress.add_task("fetch", total=total, completed=total - waiting)
            while child.poll() is None:
                time.sleep(0.1)
                answers = sum(int(file.read_text() or 0) for file in counts.iterdir())
                progress.update(bar, completed=total - waiting + min(answers, waiting))
            progress.update(bar, completed=total)
            return child.returncode
        finally:
            if child.poll() is None:
                child.terminate()  # its workers watch it and leave, too
                child.wait()


def _repair_part(path: Path, rule: ImageRule) -> list[tuple[int, Fetched]]:
    """Read one raw part, some rows at a time, and mend its images; sorted by row."""
    stats = json.loads(path.with_name(path.stem + "_stats.json").read_text())
    moment = datetime.fromtimestamp(stats["end_time"], UTC).isoformat(timespec="seconds")
    found = []
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, ["row", "status", "error_message", "sha256", "jpg"]).to_pylist():
                found.append((row["row"], _judge(row, rule, moment)))
    return sorted(found, key=lambda pair: pair[0])


def _judge(row: dict, rule: ImageRule, moment: str) -> Fetched:
    raw = row["jpg"]
    if row["status"] != "success" or raw is None:
        message = (
            str(row["error_message"] or row["status"]).splitlines()[0][:200].removeprefix("<urlopen error ").rstrip(">")
        )
        kinds = {"refused:": "private_address", "too many bytes": "bytes"}
        kinds |= {"rights reserved": "reservation", "Use of image disallowed": "reservation"}
        kind = next((name for start, name in kinds.items() if message.startswith(start)), "download")
        return Fetched(None, moment, rule=kind, value=message, reason=message)
    try:
        image = repair_image(raw, rule)
    except ImageFault as fault:
        return Fetched(None, moment, len(raw), row["sha256"], fault.rule, fault.value, fault.reason)
    if image.sha256 != row["sha256"]:
        return Fetched(
            None, moment, len(raw), row["sha256"], "sha256", image.sha256, "bytes changed since the download"
        )
    return Fetched(image, moment, len(raw), image.sha256)


def repaired_rows(
    raw: Path, expected: list[int], setting: FetchSetting, rule: ImageRule, processes: int
) -> Iterator[tuple[int, Fetched]]:
    """Give all fetched rows in the table's order; decoding runs in several processes, a few parts ahead.

    Raises:
        UserError: A row is missing, or an image brought a decoding process down.
    """
    parts = [_part_files(raw, part)[0] for part in range(-(-len(expected) // setting.rows_per_part))]
    position = 0
    with _progress() as progress:
        bar = progress.add_task("write", total=len(expected))
        for path, rows in _repaired_parts(parts, rule, processes if len(expected) >= IN_PROCESS else 0):
            wanted = expected[position : position + setting.rows_per_part]
            if [number for number, _ in rows] != wanted:
                raise UserError(f"{path} does not hold the rows it should: delete {raw.parent} and start again")
            position += len(wanted)
            yield from rows
            progress.update(bar, completed=position)


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

"""Judge a table of any length by links/link_rules.py: chunks of rows, several processes, one file for each chunk.

A chunk's number and content follow from the table alone; a chunk whose file is there is not judged again.
"""

import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.links.link_rules import FILTERED, LinkRules, ScreenSetting
from data_tools.links.link_table import link_batches
from leam_mm.errors import UserError

CHUNK = 10_000  # rows
SPENT = b"leam_mm.spent"
_RULES: LinkRules | None = None


def filter_rows(
    tables: list[Path], folder: Path, setting: ScreenSetting, processes: int, told: Callable[[int], None]
) -> tuple[int, int]:
    """Judge all rows of several tables, as one long table.

    Args:
        tables: Parquet, csv or jsonl files.
        folder: Where the chunks go, ``NUMBER.parquet``.
        setting: What decides.
        processes: How many; with one, nothing is started.
        told: Called with the number of rows done since the last call.

    Returns:
        How many chunks and rows there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tmp"):
        old.unlink()
    chunks = rows = 0
    if processes == 1:
        judge = LinkRules(setting)
        for chunks, table in enumerate(_chunks(tables), 1):
            _judge(judge, table, _path(folder, chunks - 1))
            rows += table.num_rows
            told(table.num_rows)
        return chunks, rows
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _open, (setting, os.getpid())) as pool:
        waiting: dict[Future[None], int] = {}
        try:
            for number, table in enumerate(_chunks(tables)):
                chunks, rows = number + 1, rows + table.num_rows
                path = _path(folder, number)
                if path.exists():
                    told(table.num_rows)
                    continue
                waiting[pool.submit(_judge_chunk, table, path)] = table.num_rows
                if len(waiting) > 2 * processes:
                    _collect(waiting, told, FIRST_COMPLETED)
            while waiting:
                _collect(waiting, told, FIRST_COMPLETED)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return chunks, rows


def read_chunk(folder: Path, number: int, columns: list[str] | None = None) -> pa.Table:
    """Read one chunk's rows, as in ``FILTERED``."""
    path = _path(folder, number)
    try:
        return pq.read_table(path, columns=columns, use_threads=False, memory_map=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}): delete it and start again") from None


def chunk_cost(folder: Path, chunks: int) -> dict[str, dict[str, float]]:
    """Sum up rows, drops and CPU seconds of each rule over all chunks."""
    total: dict[str, Counter[str]] = {}
    for number in range(chunks):
        spent = json.loads(pq.read_schema(_path(folder, number)).metadata[SPENT])
        for rule, numbers in spent.items():
            total.setdefault(rule, Counter()).update(numbers)
    return {rule: dict(numbers) for rule, numbers in total.items()}


def _chunks(tables: list[Path]) -> Iterator[pa.Table]:
    """Chunks of ``CHUNK`` rows; the last one of each file may be shorter."""
    for path in tables:
        yield from link_batches(path, CHUNK)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.parquet"


def _judge(rules: LinkRules, table: pa.Table, path: Path) -> None:
    if path.exists():
        return
    begin = time.process_time()
    judged, spent = rules.apply(table)
    known = sum(rule["cpu_seconds"] for rule in spent.values())
    rest: dict[str, Any] = {"rows": table.num_rows, "dropped": 0, "cpu_seconds": time.process_time() - begin - known}
    schema = FILTERED.with_metadata({SPENT: json.dumps(spent | {"reading and writing": rest}).encode()})
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(judged.cast(schema), temporary, compression="zstd")
    os.replace(temporary, path)


def _open(setting: ScreenSetting, parent: int) -> None:
    global _RULES
    threading.Thread(target=_leave, args=(parent,), daemon=True).start()
    _RULES = LinkRules(setting)


def _leave(parent: int) -> None:
    """End this process when the one that started it is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _judge_chunk(table: pa.Table, path: Path) -> None:
    assert _RULES is not None
    _judge(_RULES, table, path)


def _collect(waiting: dict[Future[None], int], told: Callable[[int], None], when: str) -> None:
    done, _ = wait(waiting, return_when=when)
    for future in done:
        future.result()
        told(waiting.pop(future))

"""Apply links/link_rules.py to tables of any length: chunks of rows, several processes, one file per chunk.

Number and content of a chunk depend on the tables alone. A chunk whose file exists is not filtered again.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.links.link_columns import TableColumns
from data_tools.links.link_rules import FILTERED, LinkRules, LinkRuleSettings
from data_tools.links.link_table import link_batches
from data_tools.work.workers import WorkerPool
from leam_mm.data.parquet_file import own_parquet
from leam_mm.errors import UserError
from leam_mm.files import atomic_write

CHUNK = 10_000  # rows
COST = b"leam_mm.cost"


def filter_rows(
    tables: list[Path],
    folder: Path,
    settings: LinkRuleSettings,
    processes: int,
    progress: Callable[[int], None],
    columns: TableColumns | None = None,
) -> tuple[int, int]:
    """Filter the rows of several tables as if they were one table.

    Args:
        tables: Files in a format of ``link_table``, or folders of them.
        folder: Folder of the chunks, ``NUMBER.parquet``.
        settings: Settings of the rules.
        processes: Number of worker processes; 1 starts none.
        progress: Called with the number of rows done since its last call.
        columns: Which columns are read; by default those that are recognised.

    Returns:
        Number of chunks and of rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chunks = rows = 0

    def missing_chunks() -> Iterator[tuple[pa.Table, Path, Path]]:
        nonlocal chunks, rows
        for source, table in ((path, batch) for path in tables for batch in link_batches(path, CHUNK, columns)):
            path = _path(folder, chunks)
            chunks, rows = chunks + 1, rows + table.num_rows
            if path.exists():
                progress(table.num_rows)
            else:
                yield table, source, path

    jobs = missing_chunks()
    first = list(itertools.islice(jobs, 2))
    if len(first) < 2:  # a worker process costs more than it saves
        processes = 1
    with WorkerPool(processes, LinkRules, settings) as pool:
        for (table, *_), _ in pool.run(_filter_chunk, itertools.chain(first, jobs), ahead=2 * processes):
            progress(table.num_rows)
    return chunks, rows


def _filter_chunk(rules: LinkRules, job: tuple[pa.Table, Path, Path]) -> None:
    table, source, path = job
    begin = time.process_time()
    filtered, cost = rules.apply(table, rules.sources.trusts(source))
    rest = time.process_time() - begin - sum(rule["cpu_seconds"] for rule in cost.values())
    overhead: dict[str, Any] = {"rows": table.num_rows, "dropped": 0, "cpu_seconds": rest}
    schema = FILTERED.with_metadata({COST: json.dumps(cost | {"reading and writing": overhead}).encode()})
    with atomic_write(path) as temporary:
        pq.write_table(filtered.cast(schema), temporary, compression="zstd")


def read_chunk(folder: Path, number: int, columns: list[str] | None = None) -> pa.Table:
    """Read the rows of one chunk, with the columns of ``FILTERED`` or some of them."""
    path = _path(folder, number)
    try:
        with own_parquet(path) as file:
            return file.read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}): delete it and start again") from None


def chunk_cost(folder: Path, chunks: int) -> dict[str, dict[str, float]]:
    """Sum rows, dropped rows and CPU seconds of each rule over all chunks."""
    total: dict[str, Counter[str]] = {}
    for number in range(chunks):
        with own_parquet(_path(folder, number)) as file:
            costs = json.loads(file.schema_arrow.metadata[COST])
        for rule, cost in costs.items():
            total.setdefault(rule, Counter()).update(cost)
    return {rule: dict(cost) for rule, cost in total.items()}


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:07d}.parquet"

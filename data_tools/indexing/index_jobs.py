"""Jobs of index_shards: each indexes some tars and leaves their ledger, key hashes and counts in the work folder.

A job is done when its ``.json`` is there, which is written last; a killed run repeats the others. Which process does a
job changes no byte.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.indexing.img2dataset_rows import failed_rows
from data_tools.indexing.tar_index import IndexRule, TarIndex, TarIndexer
from data_tools.indexing.tar_patterns import Tar
from data_tools.work.foreign_error import first_line
from leam_mm.data.index_file import records_name
from leam_mm.data.ledger import SCHEMA
from leam_mm.errors import UserError
from leam_mm.files import atomic_write, write_bytes, write_text

JOB_BYTES = 512_000_000
JOB_TARS = 256
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class IndexJob:
    """Some tars to index.

    Args:
        number: Number of the job.
        tars: The tars, each with the name under which the manifest lists it.
        output: Folder of the files of records.
        work: Folder of all else.
        tables: Whether img2dataset's tables beside the tars are read.
    """

    number: int
    tars: list[tuple[Tar, str]]
    output: Path
    work: Path
    tables: bool

    def file(self, suffix: str) -> Path:
        """Return the path of a file of the job in the work folder."""
        return self.work / f"{self.number:06d}.{suffix}"


@dataclass(frozen=True)
class IndexedTar:
    """What the main process needs to know of an indexed tar.

    Args:
        shard: Its name in the manifest.
        sha256: Digest of the tar, empty if it cannot be read.
        bytes: Size of the tar.
        samples: Number of samples.
        records: Digest of its file of records.
        fault: Where its reading ended early, or None.
    """

    shard: str
    sha256: str
    bytes: int
    samples: int
    records: str
    fault: str | None


def plan_jobs(tars: list[tuple[Tar, str]], output: Path, work: Path, tables: bool) -> Iterator[IndexJob]:
    """Divide the tars into jobs; a large tar is a job of its own."""
    number, waiting, size = 0, list[tuple[Tar, str]](), 0
    for tar in tars:
        if waiting and (size + tar[0].size > JOB_BYTES or len(waiting) == JOB_TARS):
            yield IndexJob(number, waiting, output, work, tables)
            number, waiting, size = number + 1, [], 0
        waiting.append(tar)
        size += tar[0].size
    yield IndexJob(number, waiting, output, work, tables)


def prepare_worker(rule: IndexRule) -> TarIndexer:
    """Return the state of a worker process."""
    pa.set_cpu_count(1)  # the processes already share the cores
    return TarIndexer(rule)


def do_job(indexer: TarIndexer, job: IndexJob) -> None:
    """Index the tars of a job, unless that is done."""
    if job.file("json").is_file():
        return
    legal_basis = indexer.rule.rights.legal_basis
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("left_out", "unused", "notes")}
    tars, decisions, hashes = [], list[dict[str, Any]](), []
    img2dataset = 0
    for tar, shard in job.tars:
        found = read_tar(indexer, tar)
        records = b""
        if found.keys:
            records = found.lines(found.keys)
            write_bytes(job.output / records_name(shard), records)
        digest = hashlib.sha256(records).hexdigest()
        tars.append([shard, found.sha256, found.size, len(found.keys), digest, found.fault])
        decisions += [row | {"key": key} for row, key in zip(found.decisions, found.keys, strict=False)]
        decisions += found.decisions[len(found.keys) :]
        hashes += [key_hash(key) for key in found.keys]
        img2dataset += found.img2dataset
        if job.tables:
            rows, stored, fault = failed_rows(tar, legal_basis)
            decisions += rows
            if rows:
                found.left_out["link that img2dataset could not store"] += len(rows)
            if fault:
                found.notes[fault] += 1
            if stored > len(found.keys) + sum(found.left_out.values()) - len(rows):
                found.notes["samples that img2dataset's table lists and the tar lacks"] += stored - len(found.keys)
        for name, counter in counts.items():
            counter.update(getattr(found, name))
    table = pa.Table.from_pylist(decisions, SCHEMA)
    with atomic_write(job.file("parquet")) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    write_bytes(job.file("keys"), np.array(hashes, np.uint64).tobytes())
    write_text(job.file("json"), json.dumps({"tars": tars, "img2dataset": img2dataset} | counts))


def read_tar(indexer: TarIndexer, tar: Tar) -> TarIndex:
    """Index one tar; what cannot be opened is a fault of it.

    Raises:
        UserError: It is compressed, or the storage does not answer.
    """
    try:
        with tar.open() as file:
            return indexer.index(file, tar.name, tar.size)
    except UserError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        return TarIndex(tar.name, fault=f"{UNREADABLE} ({first_line(error)})")
    except Exception as error:
        if not tar.remote:
            raise
        raise UserError(
            f"{tar.address} cannot be read ({first_line(error)}): check network and rights, then start the same "
            "command again, which continues"
        ) from None


def key_hash(key: str) -> int:
    """Return 64 bits of a key's digest."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())


def read_result(job: IndexJob) -> tuple[list[IndexedTar], dict[str, Any]]:
    """Return the tars and counts of a job that is done."""
    content = json.loads(job.file("json").read_text(encoding="utf-8"))
    return [IndexedTar(*row) for row in content["tars"]], content

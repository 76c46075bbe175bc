"""Make a shard folder of tars that others made: beside them, in a folder that refers to them, or as shards of ours."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.progress import Progress, track

from data_tools.indexing.index_jobs import IndexedTar, IndexJob, do_job, plan_jobs, prepare_worker, read_result
from data_tools.indexing.member_captions import Sighting, recognise
from data_tools.indexing.tar_index import IndexRule, TarIndexer
from data_tools.indexing.tar_patterns import Tar
from data_tools.links.withdrawn_lists import read_lists
from data_tools.work.work_folder import open_work_folder
from data_tools.work.workers import WorkerPool
from leam_mm.data.folder_card import CARD, write_card
from leam_mm.data.index_file import read_records, records_line, records_name
from leam_mm.data.ledger import LEDGER, LedgerWriter
from leam_mm.data.parquet_file import own_parquet
from leam_mm.data.remote_shards import ShardCache, open_folder
from leam_mm.data.shard_index import ShardFolder, ShardWriter, write_manifest
from leam_mm.data.shard_manifest import ShardEntry
from leam_mm.data.shard_places import TARS, ShardPlaces
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256, remove_leftovers, write_bytes, write_json

STAGE = "index_shards"
WORK = "index_shards.work"
LOOK_TARS, LOOK_SAMPLES = 3, 100
SHOWN = 5


@dataclass
class Adopted:
    """What became of the tars.

    Args:
        entries: Lines of the manifest.
        tars: The tars as they were read.
        counts: ``left_out``, ``unused`` and ``notes``.
        renamed: Number of samples whose key occurs before in another tar.
        bytes: Bytes that were read in this run.
        seconds: Time of reading.
    """

    entries: list[ShardEntry]
    tars: list[IndexedTar]
    counts: dict[str, Counter[str]]
    renamed: int = 0
    bytes: int = 0
    seconds: float = 0.0


def look_at(tars: list[Tar], rule: IndexRule) -> tuple[IndexRule, bool]:
    """Recognise captions and img2dataset's json in the first samples of the first, a middle and the last tar.

    Returns:
        The rule with sources of captions, and whether the tars are img2dataset's.

    Raises:
        UserError: Nothing looks like captions, or no tar can be read.
    """
    seen, indexer = Sighting(), TarIndexer(rule)
    chosen = [tars[at] for at in sorted({0, len(tars) // 2, len(tars) - 1})]
    more = (tar for tar in tars if tar not in chosen)
    while chosen or not seen.samples:
        tar = chosen.pop(0) if chosen else next(more, None)
        if tar is None:
            raise UserError(f"no tar holds a sample, from {tars[0].address} to {tars[-1].name}: give other tars")
        try:
            with tar.open() as file:
                indexer.look(file, tar.address, seen, LOOK_SAMPLES)
        except OSError as error:
            if tar.remote:
                raise UserError(f"{tar.address} cannot be read ({error}): check network and rights") from None
    captions = recognise(seen, rule.captions, tars[0].address)
    return replace(rule, captions=captions), seen.img2dataset * 2 > seen.samples


def shard_names(tars: list[Tar]) -> list[str]:
    """Return a name in the manifest for each tar: its own, unless that occurs twice or is no plain name."""
    times = Counter(tar.name for tar in tars)
    names: list[str] = []
    taken: set[str] = set()
    for number, tar in enumerate(tars):
        name = tar.name if tar.name.endswith(".tar") else f"{tar.name}.tar"
        if times[tar.name] > 1:
            name = f"{tar.folder.rstrip('/').rpartition('/')[2] or 'root'}-{name}"
        if name in taken or not name.isprintable() or len(name.encode("utf-8", "replace")) > 150 or name[0] in ".-":
            name = f"tar-{number:06d}.tar"
        names.append(name)
        taken.add(name)
    return names


def places_of(tars: list[Tar], names: list[str], output: Path) -> ShardPlaces:
    """Return where the tars lie, relative to a folder of this machine."""
    folders = list(dict.fromkeys(tar.folder for tar in tars))
    numbers = {folder: number for number, folder in enumerate(folders)}
    home = output.resolve()
    shown = [each if "://" in each else os.path.relpath(Path(each).resolve(), home) for each in folders]
    differing = {
        name: (numbers[tar.folder], tar.name)
        for tar, name in zip(tars, names, strict=True)
        if numbers[tar.folder] or name != tar.name
    }
    return ShardPlaces(shown, differing)


@contextmanager
def adopt(
    tars: list[Tar], output: Path, in_place: bool, rule: IndexRule, tables: bool, workers: int
) -> Iterator[Adopted]:
    """Index tars into a folder; a killed run continues, and the manifest is written last.

    The work folder of the run is removed when the block ends without an error.

    Args:
        tars: The tars.
        output: The folder; that of the tars itself if ``in_place``.
        in_place: Whether the manifest's names are the tars in this folder.
        rule: How they are indexed.
        tables: Whether img2dataset's tables beside them are read.
        workers: Number of processes.
    """
    names = [tar.name for tar in tars] if in_place else shard_names(tars)
    listed = "".join(f"{tar.address} {tar.size}\n" for tar in tars)
    settings: dict[str, object] = {
        "tars": bytes_sha256(listed.encode("utf-8", "replace")),
        "tables": tables,
        "rule": repr(rule),
    }
    settings["withdrawn"] = read_lists(rule.withdrawn).sha256
    with open_work_folder(output / WORK, settings):
        for name in (records_name("*"), LEDGER, TARS, CARD):
            remove_leftovers(output, name)
        jobs = list(plan_jobs(list(zip(tars, names, strict=True)), output, output / WORK, tables))
        open_jobs = [job for job in jobs if not job.file("json").is_file()]
        begin, size = time.monotonic(), sum(tar.size for job in open_jobs for tar, _ in job.tars)
        cure = "give fewer --workers"
        with (
            WorkerPool(workers, prepare_worker, rule, isolated=rule.verify, cure=cure) as pool,
            Progress(transient=True, disable=not sys.stdout.isatty()) as progress,
        ):
            task = progress.add_task("index", total=size)
            for job, _ in pool.run(do_job, open_jobs, ahead=4 * workers):
                progress.advance(task, sum(tar.size for tar, _ in job.tars))
        adopted = _join(jobs, output)
        adopted.bytes, adopted.seconds = size, time.monotonic() - begin
        if not adopted.entries:
            reasons = ", ".join(
                f"{reason} {count:,}" for reason, count in adopted.counts["left_out"].most_common(SHOWN)
            )
            raise UserError(f"the tars hold no usable sample ({reasons or 'no image'}): name captions or images")
        if not in_place:
            write_json(output / TARS, places_of(tars, names, output).content())
        write_card(output, adopted.entries)
        write_manifest(output, adopted.entries)
        yield adopted
    shutil.rmtree(output / WORK)


def _join(jobs: list[IndexJob], output: Path) -> Adopted:
    """Make the keys of all tars unique, and write the ledger."""
    results = [read_result(job) for job in jobs]
    adopted = Adopted([], [tar for tars, _ in results for tar in tars], {})
    for name in ("left_out", "unused", "notes"):
        adopted.counts[name] = sum((Counter(content[name]) for _, content in results), Counter())
    again = _repeated(np.concatenate([np.fromfile(job.file("keys"), np.uint64) for job in jobs]))
    adopted.renamed = len(again)
    first = 0
    with LedgerWriter(output / LEDGER, STAGE) as ledger:
        for job, (tars, _) in zip(jobs, results, strict=True):
            with own_parquet(job.file("parquet")) as file:
                table = file.read(use_threads=False)
            keys = table["key"].to_pylist()
            kept = np.flatnonzero(table["kept"].to_numpy(zero_copy_only=False)).tolist()
            renamed = {row for row in range(len(kept)) if first + row in again} if again else set()
            for row in renamed:
                keys[kept[row]] += f"~{again[first + row]}"
            if renamed:
                table = table.set_column(table.column_names.index("key"), "key", pa.array(keys, pa.string()))
            if table.num_rows:
                ledger.write_table(table)
            begin = 0
            for tar in tars:
                rows = range(begin, begin + tar.samples)
                if tar.samples:
                    entry = ShardEntry(tar.shard, tar.sha256, tar.bytes, tar.samples, tar.records)
                    changed = not renamed.isdisjoint(rows)
                    own = _rename(output, entry, [keys[kept[row]] for row in rows]) if changed else entry
                    adopted.entries.append(own)
                begin += tar.samples
            first += len(kept)
    return adopted


def _repeated(hashes: np.ndarray) -> dict[int, int]:
    """Return the positions of keys that occur before, each with the number of this occurrence, from 2."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    found: dict[int, int] = {}
    for at in same.tolist():
        found[int(order[at])] = found.get(int(order[at - 1]), 1) + 1
    return found


def _rename(output: Path, entry: ShardEntry, keys: list[str]) -> ShardEntry:
    """Write the file of records of a tar again under other keys; may be repeated after a kill."""
    path = output / records_name(entry.shard)
    content, index = path.read_bytes(), read_records(path, entry, str(path))
    assert index.records is not None
    lines = []
    for row, key in enumerate(keys):
        start, size = int(index.records.offset[row]), int(index.records.size[row])
        place = int(index.offset[row]), int(index.size[row]), index.records.suffix[row], index.sha256[row]
        lines.append(records_line(key, *place, content[start : start + size]))
    text = b"".join(lines)
    write_bytes(path, text)
    return replace(entry, records=bytes_sha256(text))


def materialise(folder: Path, output: Path, samples_per_shard: int) -> ShardFolder:
    """Copy the samples of an index into shards of ours; a killed run continues with the next shard.

    Args:
        folder: Shard folder that refers to the tars.
        output: The new folder.
        samples_per_shard: Samples in each tar.
    """
    source = open_folder(folder, ShardCache(folder / "cache", 8_000_000_000))
    with ShardWriter(output, samples_per_shard, resume=True) as writer:
        position = 0
        for number in track(range(len(source.shards)), "copy", transient=True):
            samples = source.shards[number].samples
            if position + samples > writer.finished:
                with source.open_shard(number) as shard:
                    for row in range(max(0, writer.finished - position), samples):
                        writer.write(shard.keys[row], shard.members(row))
            position += samples
        shutil.copy2(folder / LEDGER, writer.partial / LEDGER)
    return ShardFolder(output)

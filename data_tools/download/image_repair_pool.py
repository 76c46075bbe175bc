"""Read fetched parts in the order of the table, and check and repair their images in several processes.

An image that takes too long to decode, crashes its process, or makes a library fail is left out, with a rule in the
ledger; all others are kept.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.download.fetched_part import part_progress
from data_tools.links.withdrawn_lists import RULE as WITHDRAWN
from data_tools.links.withdrawn_lists import WithdrawnLists, read_lists
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.reservations import decide
from data_tools.samples.image_repair import ImageFault, ImageRule, RepairedImage, repair_image
from data_tools.work.foreign_error import first_line
from data_tools.work.time_limit import TimeLimit, TookTooLong
from data_tools.work.workers import WorkerPool, begin_sample
from leam_mm.data.image_file import open_image
from leam_mm.data.legal_basis import basis_of
from leam_mm.data.parquet_file import own_parquet
from leam_mm.data.sample_json import read_sample_json
from leam_mm.errors import SignalReceived, UserError
from leam_mm.files import bytes_sha256

log = logging.getLogger(__name__)
FEW = 400  # images; below, starting further processes costs more than it saves


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
        withdrawn: Folders of the lists of withdrawn images.
    """

    path: Path
    rule: ImageRule
    withdrawn: tuple[Path, ...]


def _repair_part(_: None, job: _PartJob) -> list[tuple[int, Fetched]]:
    """Read a part, one row group at a time, and repair its images; sorted by row."""
    found = []
    with own_parquet(job.path) as file:
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, FETCHED.names).to_pylist():
                if not begin_sample(row["row"]):
                    row |= {"rule": "crash", "value": row["sha256"], "content": None}
                    row["reason"] = "decoding it ended two processes"
                found.append((row["row"], _check_row(row, job.rule, read_lists(job.withdrawn))))
    return sorted(found, key=lambda pair: pair[0])


def _check_row(row: dict[str, Any], rule: ImageRule, lists: WithdrawnLists) -> Fetched:
    content, evidence = row["content"], {name: json.loads(row[name] or "{}") for name in ("response", "visit")}
    fetched_at, digest = row["fetched_at"], row["sha256"]
    if content is None:
        size = evidence["response"].get("bytes")
        return Fetched(None, fetched_at, size, None, row["rule"], row["value"], row["reason"], **evidence)

    def refused(rule: str, value: str, reason: str) -> Fetched:
        return Fetched(None, fetched_at, len(content), digest, rule, value, reason, **evidence)

    try:
        with TimeLimit():
            image = repair_image(content, rule)
            withdrawn = _withdrawn(image, evidence["response"], lists) if lists else None
            signals = rights_in_file(content)  # of the original file: a repair may remove manifest and metadata
    except ImageFault as fault:
        return refused(fault.rule, fault.value, fault.reason)
    except TookTooLong as error:
        return refused("seconds", error.value, str(error))
    except (KeyboardInterrupt, SystemExit, SignalReceived):
        raise
    except BaseException as error:  # a library of another language may raise what is no Exception
        return refused("error", type(error).__name__, f"a library failed: {first_line(error)}")
    if image.sha256 != digest:
        return refused("sha256", image.sha256, "bytes changed since the download")
    if signals:
        evidence["response"].setdefault("signals", []).extend(asdict(signal) for signal in signals)
        if forbids := decide(signals, basis_of(row["legal_basis"])):
            value = f"{forbids.kind}: {forbids.value}"
            return refused("reservation", value, f"in the file, {value}")
    if withdrawn:
        return refused(WITHDRAWN, withdrawn, "on the lists of withdrawals beside the shards")
    return Fetched(image, fetched_at, len(content), image.sha256, **evidence)


def _withdrawn(image: RepairedImage, response: dict[str, Any], lists: WithdrawnLists) -> str | None:
    """Return how an image, or an address to which its own redirected, is known to be withdrawn, or None."""
    hops = (str(hop["url"]) for hop in response.get("hops", []))
    if hit := next((hit for url in hops if (hit := lists.find_address([url]))), None):
        return f"{hit.rule}: {hit.value}"
    digests = (image.sha256, bytes_sha256(image.content))
    return lists.find_image(digests, lambda: np.asarray(open_image(image.content).convert("RGB")))


def withdrawn_sample(members: dict[str, bytes], evidence: str | None, lists: WithdrawnLists) -> str | None:
    """Return how a sample of an earlier run is known to be withdrawn, or None.

    Args:
        members: Of the sample.
        evidence: Of its row in the ledger.
        lists: What was withdrawn.
    """
    if not lists:
        return None
    record, content = read_sample_json(members), next(iter(members.values()))
    hops = json.loads(evidence or "{}").get("hops", [])
    addresses = [str(record.get("url") or ""), *(str(hop["url"]) for hop in hops)]
    if hit := lists.find_address(addresses, record.get("page_url")):
        return f"{hit.rule}: {hit.value}"
    digests = (str(record.get("sha256")), bytes_sha256(content))
    return lists.find_image(digests, lambda: np.asarray(open_image(content).convert("RGB")))


def repaired_rows(
    raw: Path,
    expected: Iterator[int],
    count: int,
    size: int,
    rule: ImageRule,
    processes: int,
    withdrawn: tuple[Path, ...] = (),
) -> Iterator[tuple[int, Fetched]]:
    """Yield all fetched rows in the order of the table; several processes decode, a few parts ahead.

    Args:
        raw: Folder of the fetched parts.
        expected: Rows of the table that were fetched, in order.
        count: Number of fetched rows.
        size: Number of rows in a part.
        rule: Requirements of images.
        processes: Number of processes that decode; 0 decodes in this one.
        withdrawn: Folders of the lists of withdrawn images.

    Raises:
        UserError: A row is missing, or decoding crashes its process whatever image is left out.
    """
    if count < FEW:
        processes = min(processes, 1)
    parts = [part_file(raw, part) for part in range(-(-count // size))]
    jobs = [_PartJob(path, rule, withdrawn) for path in parts]
    with part_progress() as progress, WorkerPool[None](max(1, processes), isolated=processes > 0) as pool:
        bar = progress.add_task("write", total=count)
        for job, rows in pool.run(_repair_part, jobs, ahead=processes + 1):
            if [number for number, _ in rows] != list(itertools.islice(expected, size)):
                raise UserError(f"{job.path} does not hold the expected rows: delete {raw.parent} and start again")
            progress.update(bar, advance=len(rows))
            yield from rows

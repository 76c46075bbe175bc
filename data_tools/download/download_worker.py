"""Drop-in replacement for img2dataset's Downloader: fetches one part of the links, with rate limits and evidence.

img2dataset divides the table and distributes the parts to processes, Spark or Ray; download/distributors.py makes it
build this class in place of its ``Downloader``. Workers receive it pickled by name, so that they need this package but
not img2dataset. A part is a parquet file that is renamed when complete, however often and wherever it was started.
"""

import functools
import json
import os
import queue
import socket
import threading
import time
import traceback
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.download.image_request import AGAIN, Answer, ImageRequest
from data_tools.network.host_budget import Connection, HostBudget, HostQueue
from data_tools.network.image_fetch import FetchSetting
from data_tools.network.link_address import host_of
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.robots_rules import RobotsRules
from data_tools.work.workers import end_with_parent
from leam_mm.data.arrow_without_pandas import leave_pandas_out
from leam_mm.data.legal_basis import basis_of
from leam_mm.files import bytes_sha256

leave_pandas_out()
LINKS = pa.schema(
    [("part", pa.int64()), ("row", pa.int64()), ("url", pa.string()), ("legal_basis", pa.string())]
)  # columns of a part to fetch
FETCHED = pa.schema(
    [
        ("row", pa.int64()),
        *((name, pa.string()) for name in ("rule", "value", "reason", "fetched_at", "sha256", "response", "visit")),
        ("legal_basis", pa.string()),
        ("content", pa.large_binary()),
    ]
)  # columns of a fetched part
GROUP_ROWS, GROUP_BYTES = 100, 1 << 24  # of a row group, which is held in memory before it is written
UNREACHED = 8  # failed connections in a row after which a host is paused


def part_file(raw: Path, part: int) -> Path:
    """Return the file of a fetched part."""
    return raw / f"{part:05d}.parquet"


class PartDownloader:
    """Fetches the parts that img2dataset's distributors hand out.

    Args:
        setting: Settings of the download.
        unused: Arguments that img2dataset passes to its own ``Downloader``.
    """

    def __init__(self, setting: FetchSetting, **unused: Any) -> None:
        """See the class for the arguments."""
        self.setting = setting

    def __call__(self, row: tuple[int, str]) -> tuple[bool, tuple[int, str]]:
        """Fetch one part; return whether it is complete, in the form that img2dataset expects.

        Args:
            row: Number of the part, and file with its links.
        """
        try:
            with pa.memory_map(row[1]) as file:
                links = pa.ipc.open_file(file).read_all()
            Part(self.setting, links).fetch()
            Path(row[1]).unlink(missing_ok=True)
            return True, row
        except Exception:  # any failure is reported to the distributor
            traceback.print_exc()
            return False, row


@functools.lru_cache(1)
def _requests(setting: str) -> tuple[ImageRequest, RobotsRules | None]:
    """Return the opener and origin rules of this process; both are created once."""
    settings = FetchSetting(**json.loads(setting))
    if settings.distributor == "multiprocessing":
        end_with_parent()
    if settings.ask_origins == "none":
        return ImageRequest(settings), None
    quick = replace(settings, image_seconds=min(settings.image_seconds, settings.timeout))
    registries = [OptOutRegistry(Path(path)) for path in settings.registries]
    rules = RobotsRules(quick, Path(settings.output).with_name("origins.jsonl"), registries, settings.agreed_hosts)
    return ImageRequest(settings, rules.decide, rules.terms), rules


class Part:
    """Fetches the links of one part.

    Args:
        setting: Limits, names and permissions.
        links: Columns of ``LINKS``.
    """

    def __init__(self, setting: FetchSetting, links: pa.Table) -> None:
        """See the class for the arguments."""
        self.setting, self.number = setting, int(links["part"][0].as_py())
        self.path = part_file(Path(setting.output), self.number)
        self.rows: list[dict[str, Any]] = links.to_pylist()
        unlimited = frozenset() if setting.spare_private else frozenset(setting.allow_private)
        self.budget = HostBudget(
            Path(setting.output).with_name("hosts"),
            setting.connections_per_host,
            setting.delay_per_host,
            dict(setting.crawl_delay),
            unlimited,
        )
        self.requests, self.rules = _requests(json.dumps(asdict(setting)))
        self.results: queue.SimpleQueue[tuple[dict[str, Any], Answer]] = queue.SimpleQueue()
        hosts = [(host_of(row["url"]), row) for row in self.rows]
        self.queue = HostQueue(hosts, self.budget, setting.longest_wait, self._give_up)
        self._unreached: dict[str, int] = {}
        self._delay_read: set[str] = set()  # hosts whose robots.txt was searched for a crawl delay

    def fetch(self) -> None:
        """Fetch all links and write the part."""
        end = time.monotonic() + self.setting.part_seconds
        threads = min(self.setting.threads, len(self.rows))
        for _ in range(threads):  # daemons, because one that hangs in the resolver must not keep the part from ending
            threading.Thread(target=self._work, daemon=True).start()
        # Not files.atomic_write: process numbers of several machines may be equal.
        temporary = self.path.with_name(f"{self.path.name}.tmp-{socket.gethostname()}-{os.getpid()}")
        try:
            self._write(temporary, end)
            os.replace(temporary, self.path)
        finally:
            self.queue.stop()
            temporary.unlink(missing_ok=True)

    def _work(self) -> None:
        while taken := self.queue.take():
            host, row, connection = taken
            answer = self._request(host, row, connection)
            if answer.again and row.setdefault("attempts", 1) <= self.setting.retries:
                row["attempts"] += 1
                self.queue.retry(host, row)
            else:
                self.results.put((row, answer))
                self.queue.done()

    def _request(self, host: str, row: dict[str, Any], connection: Connection) -> Answer:
        try:
            answer = self.requests.ask(row["url"], basis_of(row["legal_basis"]))
        finally:
            connection.release()
        self._apply_crawl_delay(host, row["url"])
        row["fetched_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        if answer.busy or answer.again:
            doubled = float(2 ** (row.get("attempts", 1) - 1))
            self.budget.pause(host, doubled if answer.wait is None else answer.wait, answer.busy)
        self._unreached[host] = 0 if answer.reached else self._unreached.get(host, 0) + 1
        if self._unreached[host] >= UNREACHED:
            self.budget.pause(host, self.setting.longest_wait + 1, False)
        return answer

    def _apply_crawl_delay(self, host: str, url: str) -> None:
        """Apply a crawl delay read here, for origins not screened earlier."""
        if self.rules is None or self.setting.ask_origins != "all":
            return
        if host in self.budget.unlimited or host in self._delay_read:
            return
        self._delay_read.add(host)
        if host and (delay := self.rules.crawl_delay(url)):
            self.budget.longer[host] = delay
            self.budget.pause(host, delay, False)

    def _give_up(self, row: dict[str, Any], left: float) -> None:
        reason = f"not asked: the host is to be left alone for {left:.0f} s more"
        self.results.put((row, Answer().refuse(AGAIN, "patience", reason)))

    def _write(self, temporary: Path, end: float) -> None:
        """Write rows in the order in which they are fetched; rows not fetched in time are written as failed."""
        waiting = {row["row"]: row for row in self.rows}
        group: list[dict[str, Any]] = []
        size = total = 0
        counted, progress = 0.0, Path(f"{self.setting.links}.progress") / f"{socket.gethostname()}-{os.getpid()}"
        before = int(progress.read_text() or 0) if progress.exists() else 0
        with pq.ParquetWriter(temporary, FETCHED, compression="none") as writer:
            while waiting:
                row, answer = self._next(waiting, end)
                del waiting[row["row"]]
                if answer.content is not None:
                    total += len(answer.content)
                    if total > self.setting.part_bytes:
                        answer.refuse(AGAIN, "part_bytes", f"the part holds {self.setting.part_bytes} bytes already")
                group.append(_cells(row, answer))
                size += len(answer.content or b"")
                if len(group) == GROUP_ROWS or size >= GROUP_BYTES or not waiting:
                    writer.write_table(pa.Table.from_pylist(group, FETCHED))
                    group, size = [], 0
                if (time.monotonic() - counted > 0.3 or not waiting) and progress.parent.is_dir():
                    counted = time.monotonic()
                    progress.write_text(str(before + len(self.rows) - len(waiting)))

    def _next(self, waiting: dict[int, dict[str, Any]], end: float) -> tuple[dict[str, Any], Answer]:
        try:
            return self.results.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            self.queue.stop()
            reason = f"the part took longer than {self.setting.part_seconds:g} s"
            return next(iter(waiting.values())), Answer().refuse(AGAIN, "part_seconds", reason)


def _cells(row: dict[str, Any], answer: Answer) -> dict[str, Any]:
    fetched_at = row.get("fetched_at") or datetime.now(UTC).isoformat(timespec="seconds")
    visit = answer.visit | {"attempts": row.get("attempts", 1)}
    return {
        "row": row["row"],
        "legal_basis": answer.basis.value if answer.basis else row["legal_basis"],
        "rule": answer.rule,
        "value": answer.value,
        "reason": answer.reason,
        "fetched_at": fetched_at,
        "sha256": bytes_sha256(answer.content) if answer.content is not None else None,
        "response": json.dumps(answer.response, ensure_ascii=False, sort_keys=True),
        "visit": json.dumps(visit, ensure_ascii=False, sort_keys=True),
        "content": answer.content,
    }

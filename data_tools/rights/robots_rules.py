"""Fetch the rules of each origin once (robots.txt, tdmrep.json, ai.txt, trust.txt, RSL) and store them as evidence.

Every answer (status, address after redirects, SHA-256, time, text) is appended to a file of JSON lines, which several
processes may share and later runs read. RFC 9309: at most five redirects, 500 KiB, 24 hours; 4xx allows, 5xx and no
answer refuse (2.3.1, 2.4, 2.5). Failed requests are repeated after an hour.
"""

import fcntl
import http.client
import json
import os
import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from data_tools.network.http_body import REDIRECTS, unpack
from data_tools.network.image_fetch import FetchSetting, Guard, build_opener
from data_tools.network.link_address import LinkRefused, check_link, host_of
from data_tools.rights.reservation_grammar import origin_of, rules_text
from data_tools.rights.reservations import (
    PARSED,
    TOO_MANY,
    Registry,
    Signal,
    ai_txt_signals,
    decide,
    registry_signals,
    robots_delay,
    robots_signals,
    tdmrep_signals,
    trust_txt_signals,
)
from data_tools.rights.rsl_terms import file_signals, robots_links
from data_tools.work.foreign_error import first_line
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.files import bytes_sha256
from leam_mm.json_text import parse_object

ROBOTS, TDMREP, AI_TXT = "/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"
TRUST_TXT = ("/trust.txt", "/.well-known/trust.txt")  # the second is asked for if the first does not exist
MOST_REDIRECTS, MOST_BYTES = 5, 500 * 1024  # RFC 9309, 2.3.1.2 and 2.5
MISSING = (404, 410)
DAY, HOUR = 86_400.0, 3_600.0  # RFC 9309, 2.4: not longer than 24 hours
File = dict[str, Any]


class RobotsRules:
    """Rules of origins, fetched on demand and cached in memory and in one file; safe for threads and processes.

    Args:
        setting: Limits, names and permissions of network access.
        cache: The evidence file, with one JSON line for each visit to an origin.
        registries: Opt-out lists.
        agreed_hosts: Hosts that a licence or a consent names; for these two bases the agreement overrides their rules.
        now: The clock, in seconds since 1970.
    """

    def __init__(
        self,
        setting: FetchSetting,
        cache: Path,
        registries: Sequence[Registry] = (),
        agreed_hosts: Collection[str] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Open the evidence file; see the class for the arguments."""
        self.setting, self.cache, self.registries, self.agreed_hosts = setting, cache, registries, set(agreed_hosts)
        self._now = now
        self._guard = Guard(setting)
        self._opener = build_opener(replace(setting, allow_file=False), self._guard, follow=False)
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(cache, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._offsets: dict[str, int] = {}  # origin -> offset of its newest line
        self._read = 0  # bytes of the file that are indexed
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._asking: dict[str, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def decide(self, url: str, basis: LegalBasis) -> tuple[Signal | None, list[Signal]]:
        """Return the signal that forbids to fetch or to use an address, or None; and all signals about it."""
        if urlsplit(url).scheme not in ("http", "https"):
            return None, []
        if basis.may_be_agreed and host_of(url) in self.agreed_hosts:
            return None, [Signal("agreement", basis.value, origin_of(url), False)]
        files, agent = self.visit(url)["files"], self.setting.agent_name
        signals = robots_signals(files[ROBOTS].get("text"), files[ROBOTS]["status"], url, agent)
        signals += tdmrep_signals(files[TDMREP].get("text"), url)
        signals += ai_txt_signals(files[AI_TXT].get("text"), url, agent)
        for path in TRUST_TXT:
            signals += trust_txt_signals(files.get(path, {}).get("text"), origin_of(url) + path)
        for address in robots_links(files[ROBOTS].get("text") or "", agent, origin_of(url) + ROBOTS):
            signals += self.terms(address, "robots.txt:rsl", [url])
        for registry in self.registries:
            signals += registry_signals(registry, url)
        return decide(signals, basis), signals

    def terms(self, address: str, kind: str, targets: list[str]) -> list[Signal]:
        """Return what an RSL document says about some addresses; it is fetched once, like the files of an origin.

        Args:
            address: Address of the document.
            kind: Where it was found, for the signal.
            targets: See ``rsl_signals``.
        """
        file = self._visit(address, self._ask_document)["files"][address]
        return file_signals(file["status"], file.get("text"), kind, address, targets)

    def crawl_delay(self, url: str) -> float | None:
        """Return the seconds that the origin's robots.txt asks for between two requests, or None."""
        text = self.visit(url)["files"][ROBOTS].get("text")
        return robots_delay(text, self.setting.agent_name) if text else None

    def evidence(self, url: str) -> dict[str, Any]:
        """Return the requests to an address's origin and their answers without texts, for a ledger."""
        visit = self.visit(url)
        return {
            "asked": visit["asked"],
            **{
                path: {key: value for key, value in file.items() if key != "text"}
                for path, file in visit["files"].items()
            },
        }

    def visit(self, url: str) -> dict[str, Any]:
        """Return the newest visit to an address's origin; visit it now if there is none or it has expired."""
        return self._visit(origin_of(url), self._ask)

    def _visit(self, origin: str, ask: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            visit = self._recent.get(origin)
            if visit is None or not self._is_fresh(visit):
                visit = self._stored(origin)
            if visit is not None and self._is_fresh(visit):
                self._recent[origin] = visit
                self._recent.move_to_end(origin)
                if len(self._recent) > PARSED:
                    self._recent.popitem(last=False)
                return visit
            waiting = self._asking.get(origin)
            if waiting is None:
                mine = self._asking[origin] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            visit = ask(origin)
            with self._lock:
                self._store(visit)
                self._recent[origin] = visit
            mine.set_result(visit)
            return visit
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._asking[origin]

    def _is_fresh(self, visit: dict[str, Any]) -> bool:
        status = next(iter(visit["files"].values()))["status"]  # of robots.txt, or of a document
        age = self._now() - datetime.fromisoformat(visit["asked"]).timestamp()
        return 0 <= age < (HOUR if status is None or status >= 500 or status == TOO_MANY else DAY)

    def _ask(self, origin: str) -> dict[str, Any]:
        files = {ROBOTS: self._fetch(origin + ROBOTS)}
        for path in (TDMREP, AI_TXT, *TRUST_TXT):
            unreachable = files[ROBOTS]["status"] is None
            if path != TRUST_TXT[1] or files[TRUST_TXT[0]]["status"] in MISSING:
                files[path] = {"status": None, "error": "not asked"} if unreachable else self._fetch(origin + path)
        return self._dated(origin, files)

    def _ask_document(self, address: str) -> dict[str, Any]:
        return self._dated(address, {address: self._fetch(address)})

    def _dated(self, origin: str, files: dict[str, File]) -> dict[str, Any]:
        asked = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds")
        return {"origin": origin, "agent": self.setting.agent, "asked": asked, "files": files}

    def _fetch(self, url: str) -> File:
        """Fetch one file with its evidence; ``status`` is None without a valid answer."""
        found: File = {"status": None, "url": url}
        end = time.monotonic() + self.setting.image_seconds
        self._guard.set_deadline(end)
        try:
            for redirects in range(MOST_REDIRECTS + 1):
                address, _, _ = check_link(found["url"], Path(), False, self.setting.allow_private)
                request = urllib.request.Request(address)
                with self._opener.open(request, timeout=self.setting.timeout) as response:
                    target = response.headers.get("Location")
                    if response.status in REDIRECTS and target and redirects < MOST_REDIRECTS:
                        found["url"] = urljoin(address, target)
                        found["redirects"] = redirects + 1
                        continue
                    if response.status in REDIRECTS:
                        found["error"] = f"more than {MOST_REDIRECTS} redirects" if target else "leads nowhere"
                    elif 200 <= response.status < 300:
                        found |= _text(response)
                    if time.monotonic() >= end:  # an answer that was cut within its headers looks like an empty file
                        raise TimeoutError(f"took longer than {self.setting.image_seconds:g} s")
                    found["status"] = response.status
                    break
        except (OSError, http.client.HTTPException, LinkRefused, ValueError) as error:
            found["error"] = first_line(error)
        finally:
            self._guard.set_deadline(None)
        return found

    def _stored(self, origin: str) -> dict[str, Any] | None:
        """Return the newest line of an origin, after indexing the lines that other processes have written."""
        end = os.fstat(self._handle).st_size
        if end > self._read:
            with open(self.cache, "rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # another process is writing it
                    try:
                        visit = parse_object(line)
                        # A server may answer other agents differently.
                        if visit.get("agent") == self.setting.agent and _is_complete(visit):
                            self._offsets[visit["origin"]] = self._read
                    except ValueError:
                        pass  # cut short when a run was killed
                    self._read += len(line)
        offset = self._offsets.get(origin)
        if offset is None:
            return None
        with open(self.cache, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def _store(self, visit: dict[str, Any]) -> None:
        line = json.dumps(visit).encode() + b"\n"
        fcntl.flock(self._handle, fcntl.LOCK_EX)  # of the open file itself; filelock would need a second file
        try:
            end = os.fstat(self._handle).st_size
            if end and os.pread(self._handle, 1, end - 1) != b"\n":
                line = b"\n" + line  # the last line is incomplete, because a run was killed while writing it
            while line:
                line = line[os.write(self._handle, line) :]
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)


def _is_complete(visit: dict[str, Any]) -> bool:
    """Return whether the line of a visit has all that is read of it; a stranger may have written it."""
    files = visit.get("files")
    if not isinstance(files, dict) or not (
        {ROBOTS, TDMREP, AI_TXT} <= files.keys() or [*files] == [visit.get("origin")]
    ):
        return False
    try:
        datetime.fromisoformat(visit["asked"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return isinstance(visit.get("origin"), str) and all(
        isinstance(file, dict) and type(file.get("status", "")) in (int, type(None))
        and isinstance(file.get("text"), str | None)
        for file in files.values()
    )  # fmt: skip


def _text(response: Any) -> File:
    """Read the body of an answer; a longer one than the limit is cut at the end of a line (RFC 9309, 2.5)."""
    body: bytes = response.read(MOST_BYTES + 1)
    if len(body) <= MOST_BYTES and response.length:
        raise http.client.IncompleteRead(body, response.length)
    if not body and not response.chunked and "Content-Length" not in response.headers:
        raise OSError("the answer ended before its body began")
    coding = str(response.headers.get("Content-Encoding", "identity")).strip().lower()
    if coding not in ("identity", ""):
        body = unpack(body, 4 * MOST_BYTES)
    cut = len(body) > MOST_BYTES
    if cut:
        body = body[: body.rfind(b"\n", 0, MOST_BYTES) + 1] or body[:MOST_BYTES]
    found: File = {"bytes": len(body), "sha256": bytes_sha256(body), "text": rules_text(body)}
    return found | ({"cut": True} if cut else {})

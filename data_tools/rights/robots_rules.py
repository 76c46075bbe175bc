"""Ask each origin once what it allows (robots.txt, /.well-known/tdmrep.json, /ai.txt) and keep the answers as evidence.

What came back (status, address after redirects, SHA-256, time, text) is appended to one file of JSON lines, which
several processes may share and an interrupted run goes on with. RFC 9309: at most five redirects, 500 KiB, 24 hours;
4xx allows, 5xx and silence refuse (2.3.1, 2.4, 2.5). What could not be had is asked for again after an hour.
"""

import fcntl
import hashlib
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
from data_tools.network.link_address import LinkRefused, check_link
from data_tools.rights.legal_basis import LegalBasis
from data_tools.rights.reservation_grammar import origin_of
from data_tools.rights.reservations import (
    PARSED,
    Registry,
    Signal,
    ai_txt_signals,
    decide,
    registry_signals,
    robots_delay,
    robots_signals,
    tdmrep_signals,
)

ROBOTS, TDMREP, AI_TXT = "/robots.txt", "/.well-known/tdmrep.json", "/ai.txt"
MOST_REDIRECTS, MOST_BYTES = 5, 500 * 1024  # RFC 9309, 2.3.1.2 and 2.5
DAY, HOUR = 86_400.0, 3_600.0  # RFC 9309, 2.4: not longer than 24 hours
File = dict[str, Any]


class RobotsRules:
    """The rules of every origin that is asked for, in memory and in one file; threads and processes may share it.

    Args:
        setting: Limits, names and permissions of the door to the network.
        cache: The file of evidence, one JSON line for each visit to an origin.
        registries: Opt-out lists.
        agreed_hosts: Hosts that a licence or a consent names: for these two bases their owner's word counts already.
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
        """Open the evidence of earlier runs; see the class for the arguments."""
        self.setting, self.cache, self.registries, self.agreed_hosts = setting, cache, registries, set(agreed_hosts)
        self._now = now
        self._guard = Guard(setting, None)
        self._opener = build_opener(replace(setting, allow_file=False), self._guard, follow=False)
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(cache, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._places: dict[str, int] = {}  # origin -> where its newest line begins
        self._read = 0  # bytes of the file that _places knows
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._asking: dict[str, Future[dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def decide(self, url: str, basis: LegalBasis) -> tuple[Signal | None, list[Signal]]:
        """Give the signal that forbids to fetch or to use an address, or None; and all that was said about it."""
        if urlsplit(url).scheme not in ("http", "https"):
            return None, []
        if basis.may_be_agreed and urlsplit(url).hostname in self.agreed_hosts:
            return None, [Signal("agreement", basis.value, origin_of(url), False)]
        files, agent = self.visit(url)["files"], self.setting.agent_name
        signals = robots_signals(files[ROBOTS].get("text"), files[ROBOTS]["status"], url, agent)
        signals += tdmrep_signals(files[TDMREP].get("text"), url)
        signals += ai_txt_signals(files[AI_TXT].get("text"), url, agent)
        for registry in self.registries:
            signals += registry_signals(registry, url)
        return decide(signals, basis), signals

    def crawl_delay(self, url: str) -> float | None:
        """Seconds that the origin's robots.txt asks for between two requests, or None."""
        text = self.visit(url)["files"][ROBOTS].get("text")
        return robots_delay(text, self.setting.agent_name) if text else None

    def evidence(self, url: str) -> dict[str, Any]:
        """What was asked of an address's origin and answered, without the texts: for a ledger."""
        visit = self.visit(url)
        return {
            "asked": visit["asked"],
            **{
                path: {key: value for key, value in file.items() if key != "text"}
                for path, file in visit["files"].items()
            },
        }

    def visit(self, url: str) -> dict[str, Any]:
        """The newest visit to an address's origin, made now if there is none that still counts."""
        origin = origin_of(url)
        with self._lock:
            known = self._recent.get(origin)
            if known is None or not self._counts(known):
                known = self._stored(origin)
            if known is not None and self._counts(known):
                self._recent[origin] = known
                self._recent.move_to_end(origin)
                if len(self._recent) > PARSED:
                    self._recent.popitem(last=False)
                return known
            waiting = self._asking.get(origin)
            if waiting is None:
                mine = self._asking[origin] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            visit = self._ask(origin)
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

    def _counts(self, visit: dict[str, Any]) -> bool:
        status = visit["files"][ROBOTS]["status"]
        age = self._now() - datetime.fromisoformat(visit["asked"]).timestamp()
        return 0 <= age < (HOUR if status is None or status >= 500 else DAY)

    def _ask(self, origin: str) -> dict[str, Any]:
        files = {ROBOTS: self._fetch(origin + ROBOTS)}
        for path in (TDMREP, AI_TXT):
            silent = files[ROBOTS]["status"] is None
            files[path] = {"status": None, "error": "not asked"} if silent else self._fetch(origin + path)
        asked = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds")
        return {"origin": origin, "agent": self.setting.agent, "asked": asked, "files": files}

    def _fetch(self, url: str) -> File:
        """One file with its evidence; ``status`` None means that there was no answer to believe."""
        found: File = {"status": None, "url": url}
        end = time.monotonic() + self.setting.image_seconds
        self._guard.until(end)
        try:
            for redirects in range(MOST_REDIRECTS + 1):
                address, _, _ = check_link(found["url"], Path(), False, self.setting.allow_private)
                request = urllib.request.Request(address)
                with self._opener.open(request, timeout=self.setting.timeout) as response:
                    place = response.headers.get("Location")
                    if response.status in REDIRECTS and place and redirects < MOST_REDIRECTS:
                        found["url"] = urljoin(address, place)
                        found["redirects"] = redirects + 1
                        continue
                    if response.status in REDIRECTS:
                        found["error"] = f"more than {MOST_REDIRECTS} redirects" if place else "leads nowhere"
                    elif 200 <= response.status < 300:
                        found |= _text(response)
                    if time.monotonic() >= end:  # cut in the middle of its headers, an answer looks like an empty file
                        raise TimeoutError(f"took longer than {self.setting.image_seconds:g} s")
                    found["status"] = response.status
                    break
        except (OSError, http.client.HTTPException, LinkRefused, ValueError) as error:
            found["error"] = (str(error) or type(error).__name__).splitlines()[0][:200]
        finally:
            self._guard.until(None)
        return found

    def _stored(self, origin: str) -> dict[str, Any] | None:
        """The newest line of an origin; lines that other processes wrote meanwhile are looked through first."""
        end = os.fstat(self._handle).st_size
        if end > self._read:
            with open(self.cache, "rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # another process is writing it
                    try:
                        known = json.loads(line)
                        if known["agent"] == self.setting.agent:  # a server may answer others differently
                            self._places[known["origin"]] = self._read
                    except (ValueError, KeyError, TypeError):
                        pass  # cut short when a run was killed
                    self._read += len(line)
        place = self._places.get(origin)
        if place is None:
            return None
        with open(self.cache, "rb") as file:
            file.seek(place)
            return json.loads(file.readline())

    def _store(self, visit: dict[str, Any]) -> None:
        line = json.dumps(visit).encode() + b"\n"
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            end = os.fstat(self._handle).st_size
            if end and os.pread(self._handle, 1, end - 1) != b"\n":
                line = b"\n" + line  # a run was killed while it wrote the last line
            while line:
                line = line[os.write(self._handle, line) :]
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)


def _text(response: Any) -> File:
    """Body of an answer, to the limit; what is longer is cut at a line's end (RFC 9309, 2.5)."""
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
    found: File = {
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "text": body.decode("utf-8", "replace"),
    }
    return found | ({"cut": True} if cut else {})

"""A careful door to the network: everything that is fetched from strangers' servers goes through ``build_opener``.

It (1) refuses private addresses after the name is resolved, on redirects too, (2) knows only http and https, and files
when allowed, (3) ends connections that take longer than they may, however steadily they drip, (4) reads bodies to a
limit, and (5) gives our own name as user agent. What rights a server reserves in its answer's headers is not judged
here but by data_tools/download/image_request.py.
"""

import functools
import http.client
import json
import os
import socket
import ssl
import stat
import threading
import time
import urllib.request
import weakref
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.network.link_address import address_fault


@dataclass(frozen=True)
class FetchSetting:
    """What the fetching processes need to know; plain types only, for it travels to other machines.

    Args:
        links: Folder of parquet files, one for each part that is to be fetched.
        output: Folder of the raw parts.
        agent_name: Name in the User-Agent header; header lines for this name are obeyed.
        agent_contact: Address or page where site owners reach us.
        allow_file: Whether file addresses are opened.
        allow_private: Hosts whose private addresses are trusted.
        max_bytes: Longest body that is read, in bytes, before and after unpacking.
        max_hops: Most redirects followed for one image.
        image_seconds: Longest time for one image by the clock, redirects included.
        part_seconds: Longest time for one part; links that are not done by then have failed.
        part_bytes: Most bytes of one part; links that come after them have failed.
        connections_per_host: Most connections to one host at a time, of all processes that share the work folder.
        delay_per_host: Seconds between the beginnings of two requests to one host.
        crawl_delay: Longer such delays, by host, as their robots.txt asks.
        spare_private: Whether the hosts of ``allow_private`` are treated like strangers': with a budget, and asked.
        ask_origins: Whose robots.txt, tdmrep.json and ai.txt are asked before an image is: of ``all`` origins, of those
            that only ``redirects`` lead to (the others were screened), or of ``none``.
        registries: Files of opt-out registries (data_tools/rights/opt_out_registry.py), for origins that are asked.
        agreed_hosts: Hosts whose owners a licence or a consent names, as screen_links has found.
        longest_wait: Longest time to wait where a host asks for patience, in seconds.
        timeout: Seconds without an answer.
        processes: Worker processes.
        threads: Threads in each.
        rows_per_part: Links in each raw part.
        retries: Further attempts for a link that failed in a way that may pass.
        distributor: ``multiprocessing``, ``pyspark`` or ``ray``.
        cluster: Address of a Spark master or a Ray head; empty for this machine.
    """

    links: str
    output: str
    agent_name: str
    agent_contact: str
    allow_file: bool = False
    allow_private: list[str] = field(default_factory=list)
    max_bytes: int = 50_000_000
    max_hops: int = 5
    image_seconds: float = 60.0
    part_seconds: float = 3600.0
    part_bytes: int = 4 << 30
    connections_per_host: int = 4
    delay_per_host: float = 0.2
    crawl_delay: dict[str, float] = field(default_factory=dict)
    spare_private: bool = False
    ask_origins: str = "all"
    registries: list[str] = field(default_factory=list)
    agreed_hosts: list[str] = field(default_factory=list)
    longest_wait: float = 120.0
    timeout: float = 10
    processes: int = 2
    threads: int = 32
    rows_per_part: int = 1000
    retries: int = 1
    distributor: str = "multiprocessing"
    cluster: str = ""

    def save(self, path: Path) -> None:
        """Write the settings for the process to read."""
        path.write_text(json.dumps(asdict(self)))

    @property
    def agent(self) -> str:
        """The User-Agent header (RFC 9110, section 10.1.5)."""
        return self.agent_name + (f" (+{self.agent_contact})" if self.agent_contact else "")


class PrivateAddressError(OSError):
    """A host's name leads to an address that is not one of the public internet."""


class TooManyBytesError(OSError):
    """A body is longer than is read."""


class Guard:
    """One thread per process: ends connections whose time is over, and the process when its parent is gone.

    Args:
        setting: Limits and permissions.
        parent: Process without which this one has nothing left to do.
    """

    def __init__(self, setting: FetchSetting, parent: int | None) -> None:
        """Start watching; see the class for the arguments."""
        self.setting, self.parent = setting, parent
        self._own = threading.local()
        self._deadlines: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def until(self, moment: float | None) -> None:
        """Say when all that this thread opens must be over (of ``time.monotonic``)."""
        self._own.moment = moment

    @property
    def deadline(self) -> float:
        """When what this thread opens now must be over."""
        moment = getattr(self._own, "moment", None)
        return time.monotonic() + self.setting.image_seconds if moment is None else moment

    def connect(self, address: tuple[str, int], timeout: Any, source: Any = None) -> socket.socket:
        """Resolve, check every address, connect to one that was checked: names cannot change in between."""
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if host not in self.setting.allow_private:
            for *_, place in found:
                if fault := address_fault(str(place[0])):
                    raise PrivateAddressError(f"refused: {host} leads to {fault}")
        error: OSError | None = None
        for *_, place in found:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{host} was not reached in time")
            try:
                connection = socket.create_connection((str(place[0]), port), min(timeout, left), source)
            except OSError as failed:
                error = failed
                continue
            connection.settimeout(timeout)
            self.keep(connection)
            return connection
        raise error or OSError(f"{host} has no address")

    def keep(self, connection: socket.socket) -> None:
        """End this connection when its time is over."""
        with self._lock:
            self._deadlines[connection] = self.deadline

    def _watch(self) -> None:
        while True:
            time.sleep(0.2)
            if self.parent is not None and os.getppid() != self.parent:
                os._exit(1)
            with self._lock:
                now = time.monotonic()
                late = [item for item, deadline in self._deadlines.items() if now > deadline]
            for connection in late:
                try:
                    # Not SSLSocket's own, which would let the reading thread take what is still encrypted for the body.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    continue  # closed meanwhile


class _Response(http.client.HTTPResponse):
    """A response whose body is read to a limit."""

    max_bytes = 0

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        if self.length is not None and self.length > self.max_bytes:
            raise TooManyBytesError(f"too many bytes: {self.length}")
        parts, total = [], 0
        while piece := super().read(1 << 16):
            parts.append(piece)
            total += len(piece)
            if total > self.max_bytes:
                raise TooManyBytesError(f"too many bytes: over {self.max_bytes}")
        if self.length:
            raise http.client.IncompleteRead(b"", self.length)
        return b"".join(parts)


class _LocalFile(urllib.request.FileHandler):
    """Files of this machine, to a limit; nothing that is no plain file, for a pipe would never end."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def file_open(self, request: urllib.request.Request) -> Any:
        found = os.stat(urllib.request.url2pathname(request.selector))
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a plain file")
        if found.st_size > self.max_bytes:
            raise TooManyBytesError(f"too many bytes: {found.st_size}")
        return super().file_open(request)


def build_opener(
    setting: FetchSetting, guard: Guard | None = None, follow: bool = True, trusted: str | None = None
) -> urllib.request.OpenerDirector:
    """Make the opener described above.

    Args:
        setting: Limits, names and permissions.
        guard: Ends connections in time; one of its own if none is given.
        follow: Whether redirects are followed (at most ten) and answers other than 2xx raise; if not, every answer
            comes back as it is.
        trusted: File of certificates of authorities, instead of the system's.
    """
    watch = guard or Guard(setting, None)
    response_class = type("LimitedResponse", (_Response,), {"max_bytes": setting.max_bytes})
    context = functools.cache(
        lambda: ssl.create_default_context(cafile=trusted)
    )  # reading the certificates takes longer than an image

    class Plain(http.client.HTTPConnection):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.response_class = response_class
            self._create_connection = watch.connect  # the only place before the first byte

    class Secure(http.client.HTTPSConnection):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, context=context(), **settings)
            self.response_class = response_class
            self._create_connection = watch.connect

        def connect(self) -> None:
            super().connect()
            watch.keep(self.sock)  # the plain socket has become another object

    class Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
        handler_order = 400

        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)  # type: ignore[arg-type]

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request)  # type: ignore[arg-type]

        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            request.add_header("User-Agent", setting.agent)
            return super().http_request(request)

        https_request = http_request

    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        Handler(),
        urllib.request.UnknownHandler(),
        *([_LocalFile(setting.max_bytes)] if setting.allow_file else []),
    ]
    if follow:
        handlers += [urllib.request.HTTPRedirectHandler(), urllib.request.HTTPErrorProcessor()]
        handlers += [urllib.request.HTTPDefaultErrorHandler()]
    for handler in handlers:
        opener.add_handler(handler)
    return opener

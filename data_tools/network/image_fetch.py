"""Fetch from strangers' servers safely: every request goes through ``build_opener``.

The opener (1) refuses private addresses after the name is resolved, on redirects too, (2) uses a proxy only if it is
allowed by name, (3) accepts only http and https, and files if allowed, (4) ends connections at their deadline, even if
data keeps trickling in, (5) reads bodies up to a limit, and (6) sends our own name as user agent. Rights reserved in
the headers of an answer are checked elsewhere, in data_tools/download/image_request.py.
"""

import contextlib
import email.message
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
import urllib.response
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from data_tools.network.link_address import host_of, normal_host
from data_tools.network.proxies import allowed_proxies
from data_tools.network.special_addresses import address_fault, host_fault


@dataclass(frozen=True)
class FetchSetting:
    """Settings of the fetching processes; plain types only, because they are sent to other machines.

    Args:
        links: Folder of parquet files, one for each part to fetch.
        output: Folder of the raw parts.
        agent_name: Name in the User-Agent header; rules for this name are obeyed.
        agent_contact: Address or page where site owners reach us.
        allow_file: Whether file addresses are opened.
        allow_private: Hosts whose private addresses are trusted; they are asked without a proxy.
        allow_proxy: Proxies of the environment that may be used, each as host or host:port.
        max_bytes: Longest body to read, in bytes, before and after decompression.
        max_hops: Largest number of redirects for one image.
        image_seconds: Time limit for one image, redirects included.
        part_seconds: Time limit for one part; links that are not fetched by then fail.
        part_bytes: Size limit of one part; further links fail.
        connections_per_host: Connections to one host at a time, of all processes that share the work folder.
        delay_per_host: Seconds between the starts of two requests to one host.
        crawl_delay: Longer delays that robots.txt asks for, by host.
        spare_private: Whether limits and rights checks also apply to the hosts of ``allow_private``.
        ask_origins: Whose robots.txt, tdmrep.json and ai.txt are requested: those of ``all`` origins, of origins that
            only ``redirects`` lead to (the others were screened), or of ``none``.
        registries: Files of opt-out registries (data_tools/rights/opt_out_registry.py), for origins that are asked.
        agreed_hosts: Hosts named in a licence or consent, as screen_links found.
        longest_wait: Longest pause requested by a host to wait for, in seconds.
        timeout: Seconds to wait for an answer.
        processes: Number of worker processes.
        threads: Number of threads in each.
        rows_per_part: Links in each raw part.
        retries: Further attempts for a link that failed for a temporary reason.
        distributor: ``multiprocessing``, ``pyspark`` or ``ray``.
        cluster: Address of a Spark master or a Ray head; empty for this machine.
    """

    links: str
    output: str
    agent_name: str
    agent_contact: str
    allow_file: bool = False
    allow_private: list[str] = field(default_factory=list)
    allow_proxy: list[str] = field(default_factory=list)
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
    """A host name resolves to an address outside the public internet."""


class TooManyBytesError(OSError):
    """A body is longer than the limit."""


class Guard:
    """Opens connections to checked addresses, and a thread that ends them at their deadline.

    Args:
        setting: Limits and permissions.
    """

    def __init__(self, setting: FetchSetting) -> None:
        """Start the thread; see the class for the arguments."""
        self.setting = setting
        self._own = threading.local()
        self._deadlines: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def set_deadline(self, deadline: float | None) -> None:
        """Set the deadline (``time.monotonic``) of all connections that the calling thread opens from now on."""
        self._own.deadline = deadline

    @property
    def deadline(self) -> float:
        """Deadline of a connection that the calling thread opens now."""
        deadline = getattr(self._own, "deadline", None)
        return time.monotonic() + self.setting.image_seconds if deadline is None else deadline

    def connect(
        self, address: tuple[str, int], timeout: Any, source: Any = None, checked: bool = True
    ) -> socket.socket:
        """Resolve a name, check all addresses and connect to one of them; the name cannot change in between.

        Args:
            address: Host and port.
            timeout: Seconds to wait for the connection.
            source: Own address to connect from.
            checked: Whether private addresses are refused; not those of a proxy that is allowed by name.
        """
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        checked = checked and not self.trusts(host)
        if checked:
            refuse_private(host, found)
        error: OSError | None = None
        for *_, resolved in found:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"{host} was not reached in time")
            try:
                connection = socket.create_connection((str(resolved[0]), port), min(timeout, left), source)
            except OSError as failed:
                error = failed
                continue
            if checked and (fault := address_fault(str(connection.getpeername()[0]))):
                connection.close()
                raise PrivateAddressError(f"refused: {host} leads to {fault}")
            connection.settimeout(timeout)
            self.keep(connection)
            return connection
        raise error or OSError(f"{host} has no address")

    def trusts(self, host: str) -> bool:
        """Return whether a host may have private addresses."""
        try:
            return normal_host(host) in self.setting.allow_private
        except ValueError as error:
            raise OSError(str(error)) from None

    def keep(self, connection: socket.socket) -> None:
        """End a connection at the current deadline."""
        with self._lock:
            self._deadlines[connection] = self.deadline

    def _watch(self) -> None:
        while True:
            time.sleep(0.2)
            with self._lock:
                now = time.monotonic()
                late = [item for item, deadline in self._deadlines.items() if now > deadline]
            for connection in late:
                try:
                    # Not SSLSocket.shutdown, after which the reading thread would take encrypted bytes for the body.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
                except OSError:
                    continue  # closed meanwhile


def refuse_private(host: str, found: Sequence[tuple[Any, ...]]) -> None:
    """Check the addresses of a host.

    Args:
        host: The name.
        found: What ``socket.getaddrinfo`` returns for it.

    Raises:
        PrivateAddressError: One of them is not public.
    """
    for *_, resolved in found:
        if fault := address_fault(str(resolved[0])):
            raise PrivateAddressError(f"refused: {host} leads to {fault}")


class _Response(http.client.HTTPResponse):
    """A response whose body is read up to a limit."""

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
    """Opens regular files of this machine up to a size limit; reading a pipe might never end."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def file_open(self, request: urllib.request.Request) -> Any:
        path = os.fsdecode(unquote_to_bytes(request.selector))  # url2pathname reads names as UTF-8 only
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a plain file")
        if found.st_size > self.max_bytes:
            raise TooManyBytesError(f"too many bytes: {found.st_size}")
        return urllib.response.addinfourl(open(path, "rb"), email.message.Message(), request.full_url)


def build_opener(
    setting: FetchSetting, guard: Guard | None = None, follow: bool = True, trusted: str | None = None
) -> urllib.request.OpenerDirector:
    """Return an opener with the properties described above.

    Args:
        setting: Limits, names and permissions.
        guard: Opens and ends connections; by default a new one.
        follow: Whether to follow redirects (at most ten) and raise for answers other than 2xx; otherwise every answer
            is returned.
        trusted: File of CA certificates, instead of the system's.
    """
    watch = guard or Guard(setting)
    response_class = type("LimitedResponse", (_Response,), {"max_bytes": setting.max_bytes})
    # Created when needed: reading the certificates takes longer than fetching an image.
    context = functools.cache(lambda: ssl.create_default_context(cafile=trusted))

    proxies = functools.cache(lambda: allowed_proxies(setting.allow_proxy))

    class Plain(http.client.HTTPConnection):
        def __init__(self, *args: Any, checked: bool = True, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.response_class = response_class
            # http.client calls it to connect
            self._create_connection = functools.partial(watch.connect, checked=checked)

    class Secure(http.client.HTTPSConnection):
        def __init__(self, *args: Any, checked: bool = True, **settings: Any) -> None:
            super().__init__(*args, context=context(), **settings)
            self.response_class = response_class
            self._create_connection = functools.partial(watch.connect, checked=checked)

        def connect(self) -> None:
            super().connect()
            watch.keep(self.sock)  # TLS wraps the socket in a new object

    class Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
        handler_order = 400

        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request, checked=not self.to_proxy(request))  # type: ignore[arg-type]

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request, checked=not self.to_proxy(request))  # type: ignore[arg-type]

        def to_proxy(self, request: urllib.request.Request) -> bool:
            """Address a request to a proxy, if there is one for it; check its host first, as far as we can see it."""
            host = host_of(request.full_url)
            if watch.trusts(host) or not (proxy := proxies().get(request.type)):
                return False
            if urllib.request.proxy_bypass(request.host):
                return False
            if fault := host_fault(host):
                raise PrivateAddressError(f"refused: {fault}")
            with contextlib.suppress(socket.gaierror):  # the proxy may know names that this machine does not
                refuse_private(host, socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
            request.set_proxy(proxy.name, "http")
            if proxy.authorization:
                request.add_unredirected_header("Proxy-Authorization", proxy.authorization)
            return True

        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            request.add_header("User-Agent", setting.agent)
            return super().http_request(request)

        https_request = http_request

    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    handlers: list[urllib.request.BaseHandler] = [
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

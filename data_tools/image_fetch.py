"""The process that runs img2dataset (https://github.com/rom1504/img2dataset), behind a careful door to the network.

img2dataset asks for images through ``urllib.request.urlopen``; its worker processes import this module first, and it
installs an opener there that (1) refuses private addresses after the name is resolved, on redirects too, (2) knows
only http and https, and files when allowed, (3) stops at a number of bytes and of seconds per image, (4) gives our own
name as user agent, where img2dataset pretends to be a browser, and (5) honours ``TDM-Reservation: 1``.
Images come back exactly as they were sent: decoding is done later, by data_tools/image_repair.py.
"""

import functools
import http.client
import json
import os
import socket
import sys
import threading
import time
import types
import urllib.request
import weakref
from dataclasses import asdict, dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from data_tools.link_table import address_fault

RESERVATIONS = ["noai", "noimageai", "noindex", "noimageindex", "noml", "none"]


@dataclass(frozen=True)
class FetchSetting:
    """What the fetching processes need to know.

    Args:
        links: Parquet file with the columns ``url`` and ``row``.
        output: Folder for img2dataset's raw shards.
        agent_name: Name in the User-Agent header; X-Robots-Tag lines for this name are obeyed.
        agent_contact: Address or page where site owners reach us.
        allow_file: Whether file addresses are opened.
        allow_private: Hosts whose private addresses are trusted.
        max_bytes: Longest body that is read, in bytes.
        timeout: Seconds without an answer; a whole image may take six times as long.
        processes: Worker processes.
        threads: Threads in each.
        rows_per_part: Links in each raw shard.
        retries: Further attempts for a failed link.
    """

    links: str
    output: str
    agent_name: str
    agent_contact: str
    allow_file: bool = False
    allow_private: list[str] = field(default_factory=list)
    max_bytes: int = 50_000_000
    timeout: int = 10
    processes: int = 2
    threads: int = 32
    rows_per_part: int = 1000
    retries: int = 1

    def save(self, path: Path) -> None:
        """Write the settings for the process to read."""
        path.write_text(json.dumps(asdict(self)))


class _Guard:
    """One thread per process: ends connections that drip for ever, counts answers, leaves when the parent is gone."""

    def __init__(self, setting: FetchSetting, parent: int | None) -> None:
        self.setting, self.answers, self.parent = setting, 0, parent
        self.deadlines: weakref.WeakKeyDictionary[socket.socket, float] = weakref.WeakKeyDictionary()
        self.lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def connect(self, address: tuple[str, int], timeout: Any, source: Any = None) -> socket.socket:
        """Resolve, check every address, connect to one that was checked: names cannot change in between."""
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        if host not in self.setting.allow_private:
            for *_, place in found:
                if fault := address_fault(str(place[0])):
                    raise OSError(f"refused: {host} leads to {fault}")
        error: OSError | None = None
        for *_, place in found:
            try:
                connection = socket.create_connection((str(place[0]), port), timeout, source)
            except OSError as failed:
                error = failed
                continue
            self.keep(connection)
            return connection
        raise error or OSError(f"{host} has no address")

    def keep(self, connection: socket.socket) -> None:
        with self.lock:
            self.deadlines[connection] = time.monotonic() + 6 * self.setting.timeout

    def _watch(self) -> None:
        progress, last = Path(self.setting.output + ".progress"), 0
        while True:
            time.sleep(0.3)
            if self.parent is not None and os.getppid() != self.parent:
                os._exit(1)
            with self.lock:
                late = [item for item, deadline in self.deadlines.items() if time.monotonic() > deadline]
            for connection in late:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # closed meanwhile
            if self.answers != last and progress.is_dir():
                last = self.answers
                (progress / str(os.getpid())).write_text(str(last))


class _Response(http.client.HTTPResponse):
    """A response whose body is read to a limit; img2dataset itself would read without end."""

    max_bytes = 0

    def read(self, amt: int | None = None) -> bytes:
        if amt is not None:
            return super().read(amt)
        if self.length is not None and self.length > self.max_bytes:
            raise OSError(f"too many bytes: {self.length}")
        parts, total = [], 0
        while piece := super().read(1 << 16):
            parts.append(piece)
            total += len(piece)
            if total > self.max_bytes:
                raise OSError(f"too many bytes: over {self.max_bytes}")
        if self.length:
            raise http.client.IncompleteRead(b"", self.length)
        return b"".join(parts)


def build_opener(setting: FetchSetting, parent: int | None = None) -> urllib.request.OpenerDirector:
    """Make the opener described above; it can be used without img2dataset.

    Args:
        setting: Limits, names and permissions.
        parent: Process without which this one has nothing left to do; it ends when that one is gone.
    """
    guard = _Guard(setting, parent)
    agent = setting.agent_name + (f" (+{setting.agent_contact})" if setting.agent_contact else "")
    response_class = type("LimitedResponse", (_Response,), {"max_bytes": setting.max_bytes})

    def prepare(kind: type[http.client.HTTPConnection], *args: Any, **settings: Any) -> http.client.HTTPConnection:
        connection = kind(*args, **settings)
        connection.response_class = response_class
        connection._create_connection = guard.connect  # type: ignore[attr-defined] # the only place before the first byte
        return connection

    class Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
        handler_order = 400

        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(functools.partial(prepare, http.client.HTTPConnection), request)  # type: ignore[arg-type]

        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(functools.partial(prepare, http.client.HTTPSConnection), request)  # type: ignore[arg-type]

        def http_request(self, request: urllib.request.Request) -> urllib.request.Request:
            request.add_header("User-Agent", agent)
            return super().http_request(request)

        https_request = http_request

        def http_response(self, request: urllib.request.Request, response: Any) -> Any:
            guard.answers += 1
            headers: Message = response.headers
            if any(value.strip() == "1" for value in headers.get_all("TDM-Reservation", [])):
                response.close()
                raise OSError("rights reserved: TDM-Reservation: 1")
            return response

        https_response = http_response

    class LocalFile(urllib.request.FileHandler):
        def file_open(self, request: urllib.request.Request) -> Any:
            guard.answers += 1
            size = os.path.getsize(urllib.request.url2pathname(request.selector))
            if size > setting.max_bytes:
                raise OSError(f"too many bytes: {size}")
            return super().file_open(request)

    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        Handler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
        *([LocalFile()] if setting.allow_file else []),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


def _prepare_process() -> FetchSetting:
    """Run in every process before img2dataset is imported there."""
    setting = FetchSetting(**json.loads(Path(sys.argv[1]).read_text()))
    urllib.request.install_opener(build_opener(setting, os.getppid()))
    os.environ.update(NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled")
    # img2dataset imports these at start, for telemetry and for re-encoding, which are both off here. Leaving them out
    # saves three seconds in every process, and what is not there cannot phone home. None makes an import fail, which
    # webdataset expects of torch.
    sys.modules["torch"] = None  # type: ignore[assignment]
    for name in ("wandb", "albumentations"):
        sys.modules[name] = types.ModuleType(name)
    return setting


if __name__ in ("__main__", "__mp_main__"):
    SETTING = _prepare_process()

if __name__ == "__main__":
    from img2dataset import download

    download(
        url_list=SETTING.links,
        input_format="parquet",
        save_additional_columns=["row"],
        output_folder=SETTING.output,
        output_format="parquet",
        processes_count=SETTING.processes,
        thread_count=SETTING.threads,
        number_sample_per_shard=SETTING.rows_per_part,
        disable_all_reencoding=True,
        extract_exif=False,
        compute_hash="sha256",
        timeout=SETTING.timeout,
        retries=SETTING.retries,
        max_shard_retry=2,
        user_agent_token=SETTING.agent_name,
        disallowed_header_directives=RESERVATIONS,
        enable_wandb=False,
        incremental_mode="incremental",
    )

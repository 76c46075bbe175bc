"""The HTTP server of a stage: a stage never reads what another server offers on the port."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from leam_mm.errors import UserError
from leam_mm.folder_server import FolderServer, prove_server, serving


def content(port: int) -> bytes:
    """Return what the server on a port gives as /who.txt, without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/who.txt", timeout=5) as answer:
        return answer.read()


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """Port of another program's server, on loopback or on all addresses."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "who.txt").write_text("foreign")
    code = (
        "import functools, http.server as h\n"
        f"handler = functools.partial(h.SimpleHTTPRequestHandler, directory={str(tmp_path / 'foreign')!r})\n"
        f"server = h.ThreadingHTTPServer(({request.param!r}, 0), handler)\n"
        "print(server.server_port, flush=True)\nserver.serve_forever()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_port_that_is_taken_is_reported(foreign: int, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "who.txt").write_text("own")
    assert content(foreign) == b"foreign"
    begin = time.monotonic()
    with (
        pytest.raises(UserError, match=f"port {foreign} on 127.0.0.1 is taken: stop what listens there"),
        serving(str(tmp_path / "own"), foreign),
    ):
        pytest.fail("the foreign server was taken for ours")
    assert time.monotonic() - begin < 2


def test_another_server_cannot_prove_that_it_is_ours(foreign: int) -> None:
    with pytest.raises(UserError, match=f"another server answers on port {foreign} of 127.0.0.1 .*404"):
        prove_server(foreign, "0123456789abcdef")


def test_the_folder_is_served_without_a_proxy_and_the_port_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "who.txt").write_text("own")
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(str(tmp_path), 0):  # any free port
        pass
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for _ in range(3):
        with serving(str(tmp_path), port):
            assert content(port) == b"own"
    with pytest.raises(OSError):
        content(port)


def test_as_many_connections_as_a_downloader_opens_wait_in_the_queue(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = FolderServer(str(tmp_path), 0)  # accepts nothing yet
        stack.callback(server.server_close)
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=0.9))

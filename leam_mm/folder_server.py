"""Serve a folder over HTTP on loopback, with a proof that the server that answers is this one."""

import errno
import http.client
import http.server
import secrets
import shlex
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from leam_mm.errors import UserError

NONCE = "/.leam_mm-server"  # path of the number by which a server proves that it is ours
console = Console(highlight=False)


class FolderServer(http.server.ThreadingHTTPServer):
    """Serves a folder on loopback; the port is bound when the object is made, or the system refuses it."""

    allow_reuse_port = False
    # A downloader opens as many connections at once as it has threads. Of those beyond the queue (5 in Python's server)
    # the system drops the first packet, which is sent again after 1, 3 and 7 s.
    request_queue_size = 256

    def __init__(self, folder: str, port: int) -> None:
        """Bind the port; see the class."""
        self.folder, self.nonce = folder, secrets.token_hex(16)
        super().__init__(("127.0.0.1", port), _FolderHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that has gone away is no fault of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _FolderHandler(http.server.SimpleHTTPRequestHandler):
    server: FolderServer

    def __init__(self, request: Any, address: Any, server: FolderServer) -> None:
        super().__init__(request, address, server, directory=server.folder)

    def do_GET(self) -> None:
        if self.path == NONCE:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.nonce.encode())
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


def server_command(folder: str, port: int) -> list[str]:
    """Return the words of a command that serves a folder on loopback."""
    return ["python", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]


@contextmanager
def serving(folder: str, port: int) -> Iterator[None]:
    """Serve a folder over HTTP on loopback with Python's own server.

    Raises:
        UserError: Another program listens on the port, so that a stage would read its content.
    """
    console.print(f"[dim]$ {shlex.join(server_command(folder, port))} &[/dim]", soft_wrap=True)
    try:
        server = FolderServer(folder, port)
    except OSError as error:
        fault = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(
            f"port {port} on 127.0.0.1 {fault}: stop what listens there, or change it in the pipeline file"
        ) from None
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        prove_server(server.server_port, server.nonce)
        yield
    finally:
        server.shutdown()
        server.server_close()


def prove_server(port: int, nonce: str) -> None:
    """Fail unless the server on a port is the one that knows a secret number.

    Raises:
        UserError: Another server answers, or none.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never behind a proxy
    try:
        with opener.open(f"http://127.0.0.1:{port}{NONCE}", timeout=10) as answer:
            found = answer.read(100).decode("latin-1")
    except (OSError, http.client.HTTPException) as error:
        found = str(error)
    if not secrets.compare_digest(found.encode(), nonce.encode()):
        raise UserError(
            f"another server answers on port {port} of 127.0.0.1 ({found[:80]!r}): stop it, or change the port in the "
            "pipeline file"
        )

import os
import socket
import ssl
import threading
import time
import urllib.error
from pathlib import Path

import pytest
from toys.servers import Server, certificate

from data_tools.network.image_fetch import FetchSetting, Guard, TooManyBytesError, build_opener


def test_opener_stops_at_bytes_and_private_names(server: Server) -> None:
    server.answers["/heavy"] = (200, {"Content-Length": "999999999999"}, b"x")
    server.answers["/chunk"] = (200, {"Content-Length": "", "Connection": "close"}, b"x" * 5000)
    setting = FetchSetting("", "", "Agent", "", allow_private=["127.0.0.1"], max_bytes=1000, timeout=1)
    opener = build_opener(setting)
    with pytest.raises(TooManyBytesError, match="too many bytes: 999999999999"):
        opener.open(f"{server.url}/heavy", timeout=1).read()
    with pytest.raises(TooManyBytesError, match="too many bytes: over 1000"):
        opener.open(f"{server.url}/chunk", timeout=1).read()
    with pytest.raises(urllib.error.URLError, match=r"localhost leads to .* loopback"):
        opener.open(f"http://localhost:{server.server_port}/drip", timeout=1)
    for url in ("file:///etc/hostname", "ftp://127.0.0.1/", "data:,x"):
        with pytest.raises(urllib.error.URLError, match="unknown url type"):
            opener.open(url)
    assert server.agents == {"Agent"} and not any(path == "/drip" for path in server.requests)


def test_redirects_are_followed_only_if_wanted(server: Server) -> None:
    server.answers["/from"] = (302, {"Location": "/to"}, b"")
    server.answers["/to"] = (200, {}, b"here")
    server.answers["/inward"] = (302, {"Location": f"http://localhost:{server.server_port}/to"}, b"")
    setting = FetchSetting("", "", "Agent", "", allow_private=["127.0.0.1"], timeout=1)
    assert build_opener(setting).open(f"{server.url}/from", timeout=1).read() == b"here"
    with pytest.raises(urllib.error.URLError, match="localhost leads to"):
        build_opener(setting).open(f"{server.url}/inward", timeout=1)
    with pytest.raises(urllib.error.HTTPError):
        build_opener(setting).open(f"{server.url}/gone", timeout=1)
    plain = build_opener(setting, follow=False)
    assert plain.open(f"{server.url}/from", timeout=1).status == 302
    assert plain.open(f"{server.url}/gone", timeout=1).status == 404


def test_only_regular_small_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"content")
    (tmp_path / "large").write_bytes(b"x" * 2000)
    os.mkfifo(tmp_path / "pipe")
    opener = build_opener(FetchSetting("", "", "Agent", "", allow_file=True, max_bytes=1000))
    assert opener.open((tmp_path / "small").as_uri()).read() == b"content"
    with pytest.raises(TooManyBytesError, match="2000"):
        opener.open((tmp_path / "large").as_uri())
    with pytest.raises(OSError, match="not a plain file"):
        opener.open((tmp_path / "pipe").as_uri())


@pytest.mark.parametrize("secure", [False, True])
def test_a_connection_ends_at_its_deadline(secure: bool, tmp_path: Path) -> None:
    """Each read is fast, but the body takes too long; with TLS as well, which wraps the socket in a new object."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if secure:
        context.load_cert_chain(*certificate(tmp_path))

    def drip() -> None:
        connection, _ = listener.accept()
        try:
            stream = context.wrap_socket(connection, server_side=True) if secure else connection
            stream.recv(1000)
            stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
            for _ in range(100):
                stream.sendall(b".")
                time.sleep(0.1)
        except OSError:
            return

    threading.Thread(target=drip, daemon=True).start()
    setting = FetchSetting("", "", "Agent", "", allow_private=["127.0.0.1"], timeout=5)
    guard, begin = Guard(setting), time.monotonic()
    opener = build_opener(setting, guard, trusted=str(tmp_path / "certificate.pem") if secure else None)
    guard.set_deadline(begin + 1)
    with pytest.raises(Exception, match=r"IncompleteRead|timed out|reset|EOF"):
        opener.open(f"http{'s' * secure}://127.0.0.1:{listener.getsockname()[1]}/", timeout=5).read()
    assert 0.8 < time.monotonic() - begin < 4.5
    listener.close()

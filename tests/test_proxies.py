"""Proxies of the environment: never without a name, and never into a private network by default."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.servers import Server, certificate

from data_tools.download.image_download import DownloadSettings, download_images
from data_tools.download.image_request import ImageRequest
from data_tools.network.image_fetch import FetchSetting, build_opener
from data_tools.network.proxies import Proxy, allowed_proxies
from data_tools.screen_links import ScreenSettings, require_contact
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError


class ProxyServer(http.server.ThreadingHTTPServer):
    """A real proxy: answers every http request itself, and tunnels https to ``target``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.logins: set[str | None] = set()
        self.target = ("127.0.0.1", 0)
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.name = f"127.0.0.1:{self.server_port}"


class ProxyHandler(http.server.BaseHTTPRequestHandler):
    """Handler of a ProxyServer."""

    server: ProxyServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.logins.add(self.headers["Proxy-Authorization"])
        moved = self.path.endswith("/moved")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"secret")

    def do_CONNECT(self) -> None:
        self.server.asked.append(self.path)
        self.server.logins.add(self.headers["Proxy-Authorization"])
        with socket.create_connection(self.server.target) as target:
            self.send_response(200)
            self.end_headers()
            self.wfile.flush()
            thread = threading.Thread(target=_copy, args=(target, self.connection), daemon=True)
            thread.start()
            _copy(self.connection, target)
            thread.join()

    def log_message(self, *_: object) -> None:
        pass


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while piece := source.recv(1 << 16):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture()
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    """A proxy that the environment names for http and https."""
    for name in ("no_proxy", "all_proxy", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = ProxyServer()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://{server.name}")
    yield server
    server.shutdown()
    server.server_close()


PRIVATE = [
    "http://169.254.169.254/latest",
    "http://localhost/x",
    "http://10.0.0.1/",
    "http://metadata.google.internal/",
]
PRIVATE += [
    "http://[::ffff:127.0.0.1]/",
    "https://192.168.0.1/",
    "http://0x7f.1/",
    "http://metadata/",
    "http://a.local./",
]


def test_a_proxy_is_refused_unless_it_is_allowed_by_name(proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://example.org/a", "https://example.org/a", *PRIVATE):
        with pytest.raises((UserError, OSError)):
            build_opener(FetchSetting("", "", "Agent", "")).open(url, timeout=1)
    assert not proxy.asked
    with pytest.raises(UserError, match=f"http_proxy names the proxy {proxy.name}, .* give --allow-proxy {proxy.name}"):
        allowed_proxies([])
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("all_proxy", f"http://user:word@{proxy.name}")
    with pytest.raises(UserError, match="all_proxy names the proxy 127") as error:
        allowed_proxies(["other.example:3128"])
    assert "word" not in str(error.value)
    monkeypatch.setenv("no_proxy", "*")
    assert allowed_proxies([]) == {}


def test_an_allowed_proxy_is_not_asked_for_private_hosts(proxy: ProxyServer) -> None:
    setting = FetchSetting("", "", "Agent", "", allow_proxy=[proxy.name], allow_private=["192.168.7.7"])
    opener = build_opener(setting)
    for url in PRIVATE:
        with pytest.raises(OSError, match="refused"):
            opener.open(url, timeout=1)
    with pytest.raises(OSError, match="refused"):
        opener.open("http://93.184.216.34/moved", timeout=1)
    assert proxy.asked == ["http://93.184.216.34/moved"]
    assert opener.open("http://93.184.216.34/a", timeout=1).read() == b"secret"
    answer = ImageRequest(setting).ask("http://93.184.216.34/moved", LegalBasis.art4_general)
    assert (answer.rule, answer.content) == ("private_address", None)
    with pytest.raises(OSError):  # a trusted host is asked directly
        opener.open("http://192.168.7.7/a", timeout=0.2)
    assert not any("192.168" in url or "latest" in url for url in proxy.asked)


def test_a_name_that_leads_inside_does_not_reach_an_allowed_proxy(
    proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = socket.getaddrinfo

    def resolve(host: str, *args: object, **options: object) -> object:
        inside = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))]
        if host == "unknown.example":
            raise socket.gaierror("not known here")
        return inside if host == "rebound.example" else original(host, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    opener = build_opener(FetchSetting("", "", "Agent", "", allow_proxy=["127.0.0.1"]))
    with pytest.raises(OSError, match=r"rebound\.example leads to 10\.0\.0\.1"):
        opener.open("http://rebound.example/a", timeout=1)
    assert not proxy.asked
    assert opener.open("http://unknown.example/a", timeout=1).read() == b"secret"


def test_https_through_an_allowed_proxy(proxy: ProxyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel ends at the server, whose certificate is checked; a password reaches the proxy alone."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answers["/a"] = (200, {}, b"image")
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    proxy.target = ("127.0.0.1", server.server_port)
    monkeypatch.setenv("https_proxy", f"http://us%65r:word@{proxy.name}")
    setting = FetchSetting("", "", "Agent", "", allow_proxy=[proxy.name])
    opener = build_opener(setting, trusted=str(tmp_path / "certificate.pem"))
    with pytest.raises(OSError, match="certificate"):  # the certificate is for 127.0.0.1
        opener.open("https://93.184.216.34/a", timeout=2)
    assert proxy.asked == ["93.184.216.34:443"] and proxy.logins == {"Basic dXNlcjp3b3Jk"}
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("socks5://127.0.0.1:1080", "kind socks5 is not supported"),
        ("http://a b:1", "is not a proxy"),
        ("http://127.0.0.1:99999", "is not a proxy"),
    ],
)
def test_proxies_that_cannot_be_used(value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", value)
    with pytest.raises(UserError, match=message):
        allowed_proxies(["127.0.0.1"])


def test_spellings_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "all_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", "Proxy.Example.:3128")
    for allowed in ("proxy.example:3128", "PROXY.example.", "proxy.example"):
        assert allowed_proxies([allowed]) == {"http": Proxy("proxy.example:3128")}
    with pytest.raises(UserError, match="not allowed"):
        allowed_proxies(["proxy.example:3129"])


def test_programs_refuse_the_proxy_before_they_fetch(proxy: ProxyServer, tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://example.org/a.png"], "caption": ["a tree"]}), tmp_path / "links.parquet")
    settings = DownloadSettings(
        tmp_path / "shards", table=tmp_path / "links.parquet", agent_contact="https://lab.example"
    )
    with pytest.raises(UserError, match="--allow-proxy"):
        download_images(settings)
    screen = ScreenSettings([tmp_path / "links.parquet"], tmp_path / "screened", agent_contact="https://lab.example")
    with pytest.raises(UserError, match="--allow-proxy"):
        require_contact(screen, ["example.org"])
    assert not proxy.asked and not list(tmp_path.glob("shards*"))

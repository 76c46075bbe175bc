"""Web server of the page: its addresses, headers that keep a browser on this machine, and a clean end."""

import ipaddress
import re
import socket
from collections.abc import Callable, MutableMapping
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, Response

from leam_mm.errors import UserError
from leam_mm.serving.drawing_service import ImageStore
from leam_mm.serving.page_texts import LANGUAGES, Language, preferred_language
from leam_mm.serving.release_documents import ReleaseDocuments
from leam_mm.serving.uploaded_image import MAX_UPLOAD

Scope = MutableMapping[str, Any]
# gradio's program needs inline scripts and eval. Nothing is loaded from, or sent to, another machine.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
    "x-frame-options": "DENY", "permissions-policy": "camera=(), microphone=(), geolocation=()",
}  # fmt: skip
FETCHING = (
    "/gradio_api/proxy=",
    "/gradio_api/file=http",
    "/gradio_api/file/",
    "/gradio_api/deep_link",
    "/monitoring",
)  # addresses of gradio that fetch, store, or tell, more
# What the page posts to. gradio has more, which read videos of strangers, or change its program.
POSTED = re.compile(rf"/({'|'.join(LANGUAGES)})/gradio_api/(queue/join|cancel|reset|upload|run/[^/]+)/?")
MAX_BODY = 1_000_000  # bytes of a request
MAX_PARTS = 100_000  # bytes around the file of an upload
MAX_HTML = 4_000_000  # bytes of gradio's page
CHARSET = '<meta charset="utf-8" />'
GRACE = 2  # seconds for open connections at the end


class KeepLocal:
    """Adds the headers, refuses foreign host names, pages and large bodies, and gives gradio's page its language.

    Args:
        app: The application.
        hosts: Host names that are answered; None answers all. Another name on loopback is an attack by DNS rebinding.
    """

    def __init__(self, app: Any, hosts: frozenset[str] | None) -> None:
        """See the class for the arguments."""
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"])
        host = given.get(b"host", b"").decode("latin-1")
        if self.hosts is not None and _without_port(host) not in self.hosts:
            return await PlainTextResponse("this host name is not served here", 421)(scope, receive, send)
        if any(part in scope["path"] for part in FETCHING):
            return await PlainTextResponse("not found", 404)(scope, receive, send)
        if scope["method"] not in ("GET", "HEAD"):
            if not POSTED.fullmatch(scope["path"]):
                return await PlainTextResponse("not found", 404)(scope, receive, send)
            if _is_cross_site(given):
                return await PlainTextResponse("sent by the page of another site", 403)(scope, receive, send)
        most = MAX_UPLOAD + MAX_PARTS if scope["path"].endswith("/upload") else MAX_BODY
        stated = given.get(b"content-length", b"0")
        if not stated.isdigit() or len(stated) > 12 or int(stated) > most:
            return await PlainTextResponse(f"larger than {most} bytes", 413)(scope, receive, send)
        receive = _limited(receive, most)
        language = next((code for code in LANGUAGES if scope["path"] in (f"/{code}/", f"/{code}")), None)
        collected: list[bytes] = []
        start: MutableMapping[str, Any] = {}

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = [*own, *((name.encode(), value.encode()) for name, value in HEADERS.items())]
                if language is not None and message["status"] == 200:
                    start.update(message)
                    return
            elif start and language is not None:
                collected.append(message.get("body", b""))
                if message.get("more_body") and sum(map(len, collected)) <= MAX_HTML:
                    return
                body = in_language(b"".join(collected), language)
                kept = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
                await send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                message = {"type": "http.response.body", "body": body}
            await send(message)

        if language is not None:  # so that the answer is not compressed
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]}
        await self.app(scope, receive, answer)


def _is_cross_site(headers: dict[bytes, bytes]) -> bool:
    """Return whether another site sent a request through the browser of a user; programs send neither header."""
    if (site := headers.get(b"sec-fetch-site")) is not None:  # set by the browser, not by a page
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower()


def _limited(receive: Callable[..., Any], most: int) -> Callable[..., Any]:
    """Return ``receive`` for a body of at most ``most`` bytes; gradio would read any length into memory."""
    size = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal size
        message: MutableMapping[str, Any] = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(413, f"larger than {most} bytes")
        return message

    return limited


def in_language(page: bytes, language: Language) -> bytes:
    """Return gradio's page in a language, without the addresses of other machines in its head.

    gradio takes the language of its own words from the browser; here it is that of the page.
    """
    text = page.decode("utf-8")
    script = (
        f"<script>for (const [name, value] of [['language', '{language}'], ['languages', ['{language}']]])"
        " Object.defineProperty(navigator, name, {get: () => value});</script>"
    )
    head, mark, rest = text.partition("</head>")
    tags = [tag for tag in head.split("<") if 'property="og:' not in tag and 'name="twitter:' not in tag]
    head = "<".join(tags).replace('lang="en"', f'lang="{language}"', 1)
    return (head.replace(CHARSET, CHARSET + script, 1) + mark + rest).encode()


def build_app(store: ImageStore, documents: ReleaseDocuments) -> FastAPI:
    """Return an application with the addresses beside gradio's: start page, images, and files of the release."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def start(request: Request) -> Response:
        language = preferred_language(request.headers.get("accept-language", ""))
        return RedirectResponse(f"/{language}/", 303, {"vary": "accept-language"})

    @app.get("/images/{name:path}")
    def image(name: str) -> Response:
        path = store.find(name)
        if path is None:
            return PlainTextResponse("this image is not kept any more; draw it again", 404)
        return FileResponse(path, media_type="image/png", headers={"cache-control": "private, no-store"})

    @app.get("/files/{name:path}")
    def file(name: str) -> Response:
        path = documents.file(name)
        if path is None:
            return PlainTextResponse("not found", 404)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @app.get("/pictures/{name:path}")
    def picture(name: str) -> Response:
        path = documents.picture(name)
        return FileResponse(path, media_type="image/png") if path is not None else PlainTextResponse("not found", 404)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)

    return app


def is_loopback(host: str) -> bool:
    """Return whether a host name is this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UserError: The port is taken, or the address is not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
            found.listen(128)
        except OSError:
            found.close()
            raise
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {host} cannot be used ({getattr(error, 'strerror', None) or error}): stop what listens "
            f"there, or give another one with --port, such as --port {port + 1}; --port 0 takes a free one"
        ) from None
    return found


def run_server(app: FastAPI, listening: socket.socket, hosts: frozenset[str] | None, ready: Callable[[], None]) -> None:
    """Answer until Ctrl-C or a termination signal.

    Args:
        app: The application.
        listening: Its socket.
        hosts: Host names that are answered, see ``KeepLocal``.
        ready: Called when the first request can be answered.
    """
    # No access log: it would hold addresses of people and the names of their images.
    config = uvicorn.Config(
        KeepLocal(app, hosts), log_level="error", access_log=False, server_header=False, lifespan="on",
        timeout_graceful_shutdown=GRACE, ws="none",
    )  # fmt: skip
    server = _Server(config, ready)
    server.run([listening])


class _Server(uvicorn.Server):
    """A server that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.ready()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def local_hosts(host: str) -> frozenset[str]:
    """Return the names under which a browser on this machine reaches a loopback address."""
    return frozenset({host.lower(), "localhost", "127.0.0.1", "::1"})


def address(host: str, listening: socket.socket) -> str:
    """Return the address to type into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/"

"""A server on this machine that says all that rights_cases.yaml lists, each case at an origin (a port) of its own."""

import asyncio
import hashlib
import html
import io
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

HOST, PRIVATE = "127.0.0.1", "127.0.0.2"  # the first is trusted by name in the measurement, the second is not
PLACES = {
    "/robots.txt": "robots",
    "/.well-known/tdmrep.json": "tdmrep",
    "/ai.txt": "ai",
    "/trust.txt": "trust",
    "/.well-known/trust.txt": "known_trust",
    "/license.xml": "rsl",
}
RSL = '<?xml version="1.0" encoding="UTF-8"?>\n<rsl xmlns="https://rslstandard.org/rsl">{}</rsl>'
BEFORE_ASKING = ("robots.txt", "tdmrep.json", "ai.txt", "trust.txt", "registry", "meta", "page")


@dataclass
class Case:
    """One row of rights_cases.yaml and the address of its image.

    Args:
        row: As it stands there.
        host: Where it is served; cases in a registry have a host of their own.
        url: Of the link: the image, or the first redirect.
        asked: Paths that were asked for, with the user agent of each.
        other: The second origin.
    """

    row: dict[str, Any]
    host: str = HOST
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    other: str = ""

    @property
    def hangs(self) -> bool:
        """Whether a file of the origin is never answered."""
        return any(isinstance(value, dict) and value.get("status") == "hang" for value in self.row.values())

    @property
    def path(self) -> str:
        """Of the image."""
        return self.row.get("path", "/image.png")

    @property
    def page(self) -> str:
        """Address of the page on which the image stands."""
        return self.url.split("/", 3)[0] + "//" + self.url.split("/", 3)[2] + "/page.html"

    @property
    def image_asked(self) -> bool:
        """Whether anybody asked for the image itself."""
        return any(path == self.path for path, _ in self.asked)

    @property
    def spared(self) -> bool:
        """Whether nobody may ask for the image, because what refuses is known before."""
        kind = str(self.row.get("refused", "")).partition(":")[0]
        return self.row.get("asked", True) is False or kind in BEFORE_ASKING

    @property
    def metas(self) -> list[tuple[str, str]]:
        """Meta tags of the page: name and content."""
        return [_pair(line) for line in self.row.get("meta", [])]

    @property
    def page_headers(self) -> list[tuple[str, str]]:
        """Headers with which the page comes."""
        lines = map(self.filled, self.row.get("page_headers", []))
        return [("Content-Type", "text/html; charset=utf-8"), *map(_pair, lines)]

    def filled(self, text: str) -> str:
        """Put the origins of the case into a text that names them."""
        return text.replace("{origin}", "/".join(self.url.split("/")[:3])).replace("{elsewhere}", self.other)

    def page_answer(self) -> bytes:
        """The page as a crawler receives it."""
        tags = '<meta name="viewport" content="1">' * self.row.get("other_metas", 0)
        tags += "".join(f'<meta name="{html.escape(n)}" content="{html.escape(c)}">' for n, c in self.metas)
        if "rsl_inline" in self.row:
            terms = RSL.format(self.filled(self.row["rsl_inline"]))
            tags += f'<script type="application/rsl+xml">{terms}</script>'
        tags += self.filled(self.row.get("page_head", ""))
        image = f'<img src="{html.escape(self.url)}" alt="A red picture: {html.escape(self.row["name"])}">'
        page = f"<!doctype html><html lang='en'><head><title>Pictures</title>{tags}</head><body>{image}</body></html>"
        return reply(200, self.page_headers, page.encode())

    def registry(self) -> str | None:
        """The entry of the opt-out registry, if the case has one."""
        kind = self.row.get("registry")
        if kind in ("sha256", "md5"):
            return hashlib.new(kind, self.url.encode()).hexdigest()
        return {"domain": self.host, "prefix": self.url[:-4]}[kind] if kind else None


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


def read_cases() -> list[Case]:
    """All cases, without addresses."""
    rows = yaml.safe_load(Path(__file__).with_name("rights_cases.yaml").read_text("utf-8"))
    assert len({row["name"] for row in rows}) == len(rows)
    hosts = [f"127.0.{1 + place // 250}.{1 + place % 250}" for place in range(len(rows))]
    return [Case(row, host if "registry" in row else HOST) for row, host in zip(rows, hosts, strict=True)]


class RightsServer:
    """Serves all cases in a thread of its own.

    Args:
        cases: Get their addresses when the server starts.
    """

    def __init__(self, cases: list[Case]) -> None:
        """Draw the image; see the class for the arguments."""
        buffer = io.BytesIO()
        Image.new("RGB", (64, 48), (200, 30, 60)).save(buffer, "PNG")
        self.image, self.cases = buffer.getvalue(), cases
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "RightsServer":
        """Listen."""
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def forget(self) -> None:
        """Begin to count requests anew."""
        for case in self.cases:
            case.asked.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        self._loop.set_exception_handler(lambda *_: None)
        waiting = asyncio.all_tasks(self._loop)
        for task in waiting:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        self._loop.close()

    async def _listen(self) -> None:
        for case in self.cases:
            other = case.other = await self._port(case, case.row.get("elsewhere", {}), HOST, [])
            hidden = await self._port(case, {}, PRIVATE, [])
            hops = list(case.row.get("hops", []))
            for number, hop in enumerate(hops):
                default = f"/hop/{number + 1}" if number + 1 < len(hops) else case.path
                named = {"elsewhere": f"{other}{case.path}", "private": f"{hidden}{case.path}", None: default}
                hops[number] = {**hop, "to": named.get(hop.get("to"), hop.get("to"))}
            case.url = await self._port(case, case.row, case.host, hops) + ("/hop/0" if hops else case.path)

    async def _port(self, case: Case, said: dict[str, Any], host: str, hops: list[dict[str, Any]]) -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                path = lines[0].split(" ")[1]
                agent = next((line[12:] for line in lines if line.lower().startswith("user-agent: ")), "")
                case.asked.append((path, agent))
                content = await self._content(case, said, hops, path)
                drip = said["robots"].get("drip", 0) if isinstance(said.get("robots"), dict) else 0
                step = 1 if drip else len(content or b"") + 1
                for start in range(0, len(content or b""), step):
                    writer.write((content or b"")[start : start + step])
                    await writer.drain()
                    await asyncio.sleep(drip)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(answer, host, 0)
        return f"http://{host}:{server.sockets[0].getsockname()[1]}"

    async def _content(self, case: Case, said: dict[str, Any], hops: list[dict[str, Any]], path: str) -> bytes | None:
        """The answer to one request, or None for none."""
        if path in PLACES or path[:3] in ("/r/", "/t/"):
            known = said.get("robots" if path[:3] == "/r/" else "tdmrep" if path[:3] == "/t/" else PLACES[path])
            if known is None:
                return reply(404, [], b"gone")
            file = known if isinstance(known, dict) else {"body": known}
            if file.get("status") == "closed":
                return None
            if file.get("status") == "hang":
                await asyncio.sleep(30)
                return None
            step = int(path[3:]) if path not in PLACES else None
            if "to" in file and step != 0:
                return reply(302, [("Location", file["to"] if step is None else f"{path[:3]}{step - 1}")], b"")
            body = file.get("body", "")
            text = case.filled(body if isinstance(body, str) else json.dumps(body)) * file.get("repeat", 1)
            text = RSL.format(text) if path == "/license.xml" and text.startswith("<content") else text
            raw = file["latin"].encode("latin-1") if "latin" in file else text.encode(file.get("encoding", "utf-8"))
            padding = (b"#" * 79 + b"\n") * (file.get("pad", 0) // 80)
            return reply(file.get("status", 200), [_pair(line) for line in file.get("headers", [])], padding + raw)
        if path.startswith("/hop/") and int(path[5:]) < len(hops):
            hop = hops[int(path[5:])]
            return reply(302, [("Location", hop["to"]), *map(_pair, map(case.filled, hop.get("headers", [])))], b"")
        if path == "/page.html":
            return case.page_answer()
        if path == case.path:
            lines = map(case.filled, said.get("headers", []))
            headers = [("Content-Type", "image/png"), *map(_pair, lines)]
            return reply(200, headers, self.image)
        return reply(404, [], b"gone")


def reply(status: int, headers: list[tuple[str, str]], body: bytes) -> bytes:
    """One whole answer."""
    length = [] if any(name == "Content-Length" for name, _ in headers) else [f"Content-Length: {len(body)}"]
    lines = [f"HTTP/1.1 {status} Answer", *length, "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]  # a name may end with a space: "Name :value"
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

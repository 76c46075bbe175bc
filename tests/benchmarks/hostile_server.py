"""A server that means no good, and files that do not either: what strangers' addresses may answer, case by case.

A case is a name, the rules that may refuse it (or ``kept``), and how it answers: bytes, or a function that talks to the
socket as it likes. Every case takes a number from which it draws its details, so that there are as many as are wanted.
"""

import gzip
import io
import random
import socket
import socketserver
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from hostile_images import image_cases
from hostile_images import png_chunk as _chunk
from PIL import Image

Talk = Callable[[socket.socket], None]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"


@dataclass(frozen=True)
class Case:
    """One hostile answer.

    Args:
        name: What it does.
        rules: One of which must stand in the ledger.
        answer: What is sent, or a function that sends it.
    """

    name: str
    rules: frozenset[str]
    answer: bytes | Talk


def picture(number: int, kind: str = "JPEG", mode: str = "RGB", side: int = 16, **options: object) -> bytes:
    """A small picture that is as it should be."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer with a length."""
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"))
    return head.encode("utf-8", "surrogateescape") + b"\r\n" + body


def moved(target: str, status: str = "302 Found") -> bytes:
    """A redirect."""
    return whole(b"", f"Location: {target}", status=status)


def _again(head: bytes, piece: bytes, pause: float) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return talk


def _reset(head: bytes) -> Talk:
    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return talk


def _silence(connection: socket.socket) -> None:
    connection.recv(1)


def network_cases(number: int, port: int) -> list[Case]:
    """Answers that break HTTP, patience or trust."""
    chance, body = random.Random(number), picture(number)
    cut = chance.randrange(1, len(body) - 1)
    bomb = gzip.compress(b"\0" * chance.randrange(3_000_000, 6_000_000))
    odd = chance.choice(["0x10", "-5", "many", "1e9", "٣"])
    found: list[tuple[str, str, bytes | Talk]] = [
        ("slow drip of the body", "download", _again(OK + b"Content-Length: 99999\r\n\r\n", b"\xff", 0.1)),
        ("slow drip of the headers", "download", _again(OK, b"X-A: b\r\n", 0.1)),
        ("slow drip of one header", "download", _again(OK + b"X-A: ", b"b", 0.1)),
        ("silence", "download", _silence),
        ("endless body", "bytes", _again(OK + b"\r\n", bytes(65536), 0)),
        ("endless chunks", "bytes", _again(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + bytes(4098), 0)),
        ("endless tiny chunks", "bytes download", _again(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", 0)),
        ("100 Continue without end", "download", _again(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0)),
        ("huge length announced", "bytes", OK + b"Content-Length: 99999999999999\r\n\r\n" + body),
        ("length too long", "download", OK + f"Content-Length: {len(body) + 9}\r\n\r\n".encode() + body),
        ("length too short", "decode", OK + f"Content-Length: {cut}\r\n\r\n".encode() + body),
        ("odd length", "kept decode download bytes", OK + f"Content-Length: {odd}\r\n\r\n".encode() + body),
        ("two lengths", "kept decode download", OK + b"Content-Length: 3\r\nContent-Length: 99\r\n\r\n" + body),
        ("chunk of a huge size", "download bytes", OK + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffff\r\n" + body),
        ("chunk of no size", "download", OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + body),
        ("zero bytes", "download", whole(b"", "Content-Type: image/png")),
        ("nothing at all", "download", b""),
        ("closed in the status line", "download", b"HTTP/1."),
        ("closed in the headers", "download", OK[: chance.randrange(20, len(OK))]),
        ("closed in the body", "download decode", OK + b"\r\n" + body[:cut]),
        ("reset at once", "download", _reset(b"")),
        ("reset in the body", "download", _reset(OK + b"Content-Length: 9999\r\n\r\n" + body[:cut])),
        ("no HTTP", "download", b"SSH-2.0-OpenSSH_9.9\r\n"),
        ("garbage", "download", chance.randbytes(500)),
        ("impossible status", "download", b"HTTP/1.1 99999 ?\r\n\r\n" + body),
        ("10,000 headers", "download", OK + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n" + body),
        ("huge header line", "download", OK + b"X-A: " + b"y" * 1_000_000 + b"\r\n\r\n" + body),
        ("NUL in the headers", "decode download", OK + b"X\0Y: a\0b\r\nContent-Length: 3\r\n\r\nabc"),
        ("line folded headers", "reservation", OK + b"X-Robots-Tag:\r\n  noai\r\n\r\n" + body),
        ("gzip bomb", "bytes", whole(bomb, "Content-Encoding: gzip")),
        ("deflate bomb", "bytes", whole(zlib.compress(bytes(4_000_000)), "Content-Encoding: deflate")),
        ("gzip cut short", "download", whole(gzip.compress(body)[:-9], "Content-Encoding: gzip")),
        ("gzip that is none", "download", whole(body, "Content-Encoding: gzip")),
        ("unknown packing", "content_encoding", whole(body, f"Content-Encoding: {chance.choice(['br', 'zstd', 'x'])}")),
        ("packed twice", "content_encoding", whole(bomb, "Content-Encoding: gzip, gzip")),
        (
            "redirect to itself",
            "download",
            lambda c: c.sendall(moved(f"/{number}/redirect to itself".replace(" ", "_"))),
        ),
        ("redirect without end", "download", moved(f"/{number}/redirect_without_end?" + "x" * chance.randrange(9))),
        ("redirect to loopback", "private_address", moved(f"http://localhost:{port}/")),
        ("redirect to 127.0.0.2", "private_address", moved(f"http://127.0.0.2:{port}/")),
        ("redirect to a number", "private_address robots.txt", moved(f"http://2130706434:{port}/")),
        ("redirect to a private net", "private_address", moved(f"//10.{chance.randrange(255)}.0.1/")),
        ("redirect to the cloud's metadata", "private_address", moved("http://169.254.169.254/latest/meta-data/")),
        ("redirect to IPv6 loopback", "private_address", moved("http://[::1]/", "307 Temporary Redirect")),
        (
            "redirect to mapped loopback",
            "private_address",
            moved("http://[::ffff:127.0.0.2]/", "308 Permanent Redirect"),
        ),
        ("redirect to a file", "scheme", moved("file:///etc/passwd", "301 Moved Permanently")),
        ("redirect to data", "scheme", moved("data:image/png;base64,AAAA", "303 See Other")),
        ("redirect with a password", "host", moved(f"http://a:b@127.0.0.1:{port}/")),
        ("redirect to no host", "host url download", moved("http:///x")),
        ("redirect to a bad port", "url", moved("http://127.0.0.1:99999999/")),
        ("redirect without a target", "download", whole(b"", status="302 Found")),
        ("redirect to garbage", "scheme url host download", moved("\x01\x7f://[")),
        ("reserved, and an endless body", "reservation", _again(OK + b"TDM-Reservation: 1\r\n\r\n", bytes(65536), 0)),
        ("reserved on a redirect", "reservation", whole(b"", "X-Robots-Tag: noai", "Location: /x", status="302 Found")),
        ("429 for a year", "download", whole(b"", "Retry-After: 31536000", status="404 Gone")),
        ("503 with a strange wait", "download", whole(b"", "Retry-After: soon", status="500 No")),
    ]
    for status in ("204 No Content", "206 Partial Content", "304 Not Modified", "401 Who", "418 Teapot", "300 Choose"):
        found.append(
            (f"status {status[:3]}", "download", whole(body[:cut], "Content-Range: bytes 0-9/99", status=status))
        )
    return [Case(name, frozenset(rules.split()), answer) for name, rules, answer in found]


def _png(width: int, height: int, content: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", content) + _chunk(b"IEND", b"")


def file_cases(number: int) -> list[Case]:
    """Honest answers with dishonest files."""
    chance, jpeg, png = random.Random(number), picture(number), picture(number, "PNG")
    cut, side = chance.randrange(1, len(jpeg) - 1), chance.randrange(40_000, 60_000)
    shaken = bytearray(jpeg)
    for _ in range(20):
        shaken[chance.randrange(20, len(jpeg))] = chance.randrange(256)
    frames = [Image.new("RGB", (9, 9), (i, 0, number % 256)) for i in range(9)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    row = b"\0" + struct.pack(">H", chance.randrange(65536)) * 8
    found: list[tuple[str, str, bytes]] = [
        ("pixel bomb", "pixels", _png(side, side, zlib.compress(bytes(100_000)))),
        ("pixel bomb that fills the limit", "decode pixels", _png(2900, 2900, zlib.compress(bytes(2900 * 2900)))),
        (
            "long text chunk",
            "kept decode",
            png[:33] + _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9_000_000))) + png[33:],
        ),
        ("cut short", "decode", jpeg[:cut]),
        ("shaken", "kept decode", bytes(shaken)),
        ("PNG without its end", "decode", png[:-12]),
        ("zero wide", "decode side", _png(0, chance.randrange(9), b"")),
        ("negative size", "decode pixels", _png(0x80000000, 0xFFFFFFFF, b"")),
        ("HTML as JPEG", "decode", b"<!DOCTYPE html><html><body>not found</body></html>"),
        ("script", "decode", b"#!/bin/sh\nrm -rf /\n"),
        ("zip", "decode", b"PK\x03\x04" + chance.randbytes(300)),
        ("polyglot of JPEG and zip", "kept", jpeg + b"PK\x03\x04" + chance.randbytes(300)),
        ("polyglot of GIF and script", "decode pixels side", b"GIF89a/*" + chance.randbytes(40) + b"*/=1;alert(1)"),
        ("PostScript", "decode", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n"),
        ("noise", "decode", chance.randbytes(1000)),
        ("16 bit grey", "kept", _png(8, 8, zlib.compress(row * 8), 16, 0)),
        ("CMYK", "kept", picture(number, mode="CMYK")),
        ("animated", "kept", buffer.getvalue()),
        ("one pixel", "kept", picture(number, side=1)),
        ("WebP", "kept", picture(number, "WEBP")),
        ("WebP cut short", "decode", picture(number, "WEBP")[: chance.randrange(5, 40)]),
        (
            "BMP that lies about its size",
            "decode pixels side",
            b"BM" + chance.randbytes(12) + struct.pack("<I", 40) + chance.randbytes(40),
        ),
        *image_cases(number, jpeg, png),
    ]
    return [
        Case(name, frozenset(rules.split()), whole(body, "Content-Type: image/jpeg")) for name, rules, body in found
    ]


class HostileServer(socketserver.ThreadingTCPServer):
    """Answers ``/NUMBER/NAME`` with the case of that name; ``asked`` keeps the paths."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Case] = {}
        self.asked: list[str] = []
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def offer(self, numbers: range, kinds: Callable[[int], list[Case]]) -> list[tuple[str, Case]]:
        """Add the cases of these numbers: address and case."""
        found = []
        for number in numbers:
            for case in kinds(number):
                path = f"/{number}/{case.name.replace(' ', '_')}"
                self.answers[path] = case
                found.append((f"http://127.0.0.1:{self.port}{path}", case))
        return found

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this server is for."""


class _Handler(socketserver.BaseRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        self.request.settimeout(60)
        asked = b""
        while b"\r\n\r\n" not in asked:
            piece = self.request.recv(4096)
            if not piece:
                return
            asked += piece
        path = asked.split(b" ", 2)[1].decode("ascii").partition("?")[0]
        self.server.asked.append(path)
        case = self.server.answers.get(path)
        answer = case.answer if case else whole(b"", status="404 Not Found")
        with suppress(OSError):
            if callable(answer):
                answer(self.request)
            else:
                self.request.sendall(answer)

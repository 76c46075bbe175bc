"""Processes that a benchmark starts: programs run to their end, servers, and work whose memory is looked at."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from leam_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
IMG2DATASET = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", **ONE_THREAD}


def data_tool(name: str, *words: object) -> list[str]:
    """Return the command of a program of data_tools."""
    return [sys.executable, "-m", f"data_tools.{name}", *map(str, words)]


def call(command: list[str], folder: Path = ROOT, seconds: float | None = None, **environment: str) -> str:
    """Run a program to its end and return what it printed.

    Args:
        command: Program and arguments.
        folder: Working folder.
        seconds: Time limit.
        environment: Variables beside those of this process.

    Raises:
        UserError: It failed, or did not end in time.
    """
    name, given = " ".join(command[1:4]), os.environ | environment
    try:
        done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UserError(f"{name} did not end within {seconds} s") from None
    if done.returncode:
        raise UserError(f"{name} failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


def _listen(reply: Callable[..., bytes], given: tuple, host: str, pipe: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(reply(await reader.readuntil(b"\r\n\r\n"), *given))
            await writer.drain()
        finally:
            writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(answer, host, 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def served(reply: Callable[..., bytes], *given: Any, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve in a process of its own until the block ends; gives the port.

    Args:
        reply: Function of a module that makes an answer from the head of a request.
        given: Its further arguments.
        host: Address to listen on.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=_listen, args=(reply, given, host, sender), daemon=True)
    server.start()
    try:
        if not receiver.poll(60):
            raise UserError(f"the server on {host} did not start within a minute")
        yield int(receiver.recv())
    finally:
        server.terminate()
        server.join()


def answer_with(body: bytes, status: str = "200 OK", kind: str = "text/plain") -> bytes:
    """Return a whole HTTP answer after which the connection ends."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _send(work: Callable[..., Any], given: tuple, pipe: Connection) -> None:
    pipe.send(work(*given))


def in_own_process(work: Callable[..., Any], *given: Any) -> Any:
    """Return what a function of a module returns in a fresh process, whose memory is that of this work alone."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, given, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise UserError(f"{work.__name__} ended without a result: see its message above, and memory limits") from None
    finally:
        process.join()


def tree_memory(root: psutil.Process) -> tuple[int, int]:
    """Bytes of a process and its children: shared pages counted once (PSS of Linux, elsewhere USS), and sum of RSS."""
    found = [process.memory_full_info() for process in (root, *root.children(recursive=True))]
    return sum(getattr(each, "pss", each.uss) for each in found), sum(each.rss for each in found)

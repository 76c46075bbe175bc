"""A page of a release in a process of its own, and what a browser of gradio sends to it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toys.recipes import ROOT

COMMAND = [sys.executable, "-m", "leam_mm.release", "serve"]
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Served:
    """A running page.

    Args:
        process: The process.
        url: Address of the page, with a slash at the end.
    """

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url
        self.lines: list[str] = []

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer, redirections not followed."""
        request = urllib.request.Request(self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def config(self, language: str = "en") -> dict[str, Any]:
        """What gradio's page says about its inputs and events."""
        return json.loads(self.get(f"{language}/config")[2])

    def join(self, session: str, event: int, data: list[Any], language: str = "en") -> None:
        """Send the values of an event, as the browser does."""
        body = json.dumps({"data": data, "fn_index": event, "session_hash": session, "trigger_id": None}).encode()
        url = f"{self.url}{language}/gradio_api/queue/join"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with OPENER.open(request, timeout=60) as answer:
            assert answer.status == 200

    def messages(self, session: str, language: str = "en", timeout: float = 120) -> Iterator[dict[str, Any]]:
        """Messages to a session, until its events are finished."""
        url = f"{self.url}{language}/gradio_api/queue/data?session_hash={session}"
        with OPENER.open(url, timeout=timeout) as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] == "close_stream":
                        return

    def ask(self, session: str, event: int, data: list[Any], language: str = "en") -> list[list[Any]]:
        """States of the outputs of one event: status and result."""
        self.join(session, event, data, language)
        found = []
        for message in self.messages(session, language):
            if message["msg"] == "process_completed":
                assert message["success"], message
            if message["msg"] in ("process_generating", "process_completed") and message["output"].get("data"):
                found.append(message["output"]["data"])
        return found

    def memory(self) -> int:
        """Resident memory of the process in bytes."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024  # type: ignore[index]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def served(release: Path, *words: object) -> Iterator[Served]:
    """Start the page on a free port, and end it with Ctrl-C."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [*COMMAND, str(release), "--port", "0", *map(str, words)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"http://\S+/", line):
            break
    else:
        raise AssertionError("".join(lines))
    page = Served(process, found[0])
    page.lines = lines
    reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        yield page
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join(10)

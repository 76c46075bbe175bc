"""A program that receives SIGTERM or SIGHUP ends its child processes and says how to continue."""

import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

SIGNALS = [signal.SIGTERM, signal.SIGHUP]
PROGRAM = """
import sys, time
from pathlib import Path
from leam_mm.errors import run

def main():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path(sys.argv[1]).write_text("cleaned")

run(main)
"""
WORKER = """
import os, time
from pathlib import Path
from leam_mm.errors import run

def main():
    worker = os.fork()
    if not worker:
        time.sleep(60)
    os.kill(worker, 15)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)

run(main)
"""


def start(*words: str) -> "subprocess.Popen[str]":
    default = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # as in a terminal
    try:
        return subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
    finally:
        for number, handler in default.items():
            signal.signal(number, handler)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


@pytest.mark.parametrize("number", SIGNALS)
def test_finally_clauses_run(number: signal.Signals, tmp_path: Path) -> None:
    with start("-c", PROGRAM, str(tmp_path / "file")) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors == f"error: ended by {number.name}; start the same command again to continue\n"
    assert (tmp_path / "file").read_text() == "cleaned"


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    code = PROGRAM.replace("import sys", "import signal, sys\nsignal.signal(1, signal.SIG_IGN)\nimport sys", 1)
    with start("-c", code.replace("sleep(60)", "sleep(0.5)"), str(tmp_path / "file")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 0


def test_forked_workers_end_at_once() -> None:
    with start("-c", WORKER) as process:
        assert process.communicate(timeout=30)[0] == "-15\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_pipeline_ends_its_stage(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "signal.signal(15, lambda *_: ((folder / 'saved').write_text('yes'), sys.exit(75)))\n"
        "(folder / 'pid').write_text(str(os.getpid())); os.rename(folder / 'pid', folder / 'begun'); time.sleep(60)\n"
    )
    (tmp_path / "stage.py").write_text(code)
    stage = {
        "name": "train",
        "command": f"python {tmp_path / 'stage.py'} {tmp_path}",
        "makes": [str(tmp_path / "run/x")],
    }
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "title": "One stage", "stages": [stage]}))
    with start("-m", "leam_mm.pipeline", str(file)) as process:
        wait_for(tmp_path / "begun")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert f"error: ended by {number.name}; start the same command again to continue" in errors
    assert (tmp_path / "saved").exists()
    assert not psutil.pid_exists(int((tmp_path / "begun").read_text()))
    assert not (tmp_path / "run/stages/train.json").exists()


class Silent(BaseHTTPRequestHandler):
    """Has no robots.txt, and never answers a request for an image."""

    over = threading.Event()

    def do_GET(self) -> None:
        if self.path.endswith(".png"):
            self.over.wait(120)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


def test_a_download_ends_its_processes(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{number}.png" for number in range(20)]
    pq.write_table(pa.table({"url": urls, "caption": ["x"] * 20}), tmp_path / "links.parquet")
    command = ["-m", "data_tools.download_shards", "--table", str(tmp_path / "links.parquet")]
    command += ["--output", str(tmp_path / "shards"), "--allow-private", "127.0.0.1"]
    with start(*command) as process:
        children: list[psutil.Process] = []
        deadline = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < deadline:
            children = psutil.Process(process.pid).children(recursive=True)
            if any("data_tools.download.distributors" in one.cmdline() for one in children) and len(children) > 2:
                break
            time.sleep(0.1)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert children, errors
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive and len(gone) == len(children)
    Silent.over.set()
    server.shutdown()

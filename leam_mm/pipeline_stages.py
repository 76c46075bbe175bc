"""Run the stages of a pipeline, those that do not need each other at the same time; finished ones are skipped."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.errors import UserError
from leam_mm.files import write_json
from leam_mm.folder_server import serving
from leam_mm.pipeline_cost import CostMeter, ended_seconds
from leam_mm.pipeline_file import ENVIRONMENT, Pipeline, Stage, needed_stages

HEARTBEAT = 5.0  # seconds between two records of the cost of the running stages
PAUSE = 0.05  # seconds between two looks whether a stage has ended
LAST_LINES = 20  # lines of a log that are shown when its stage fails
console = Console(highlight=False)


@dataclass
class _Job:
    """A stage that runs.

    Args:
        stage: The stage.
        heading: Its number and name, for messages.
        identity: Its fingerprint.
        earlier: Cost of earlier attempts, or an empty dict.
        process: Its process.
        resources: Its server and its log, which are closed when it has ended.
        log: File with its output; None if it writes to the terminal.
    """

    stage: Stage
    heading: str
    identity: str
    earlier: dict[str, Any]
    process: "subprocess.Popen[bytes]"
    resources: ExitStack
    log: Path | None


class StageRunner:
    """Runs the stages of a pipeline.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        """See the class for the arguments."""
        self.pipeline = pipeline
        self.factors = CarbonFactors(**pipeline.energy)
        self.jobs = min(pipeline.jobs, os.cpu_count() or 1)
        self.needed = needed_stages(pipeline.stages)
        self.identities: dict[str, str] = {}  # fingerprints of the stages that could start
        self.records: dict[str, dict[str, Any]] = {}
        self.finished: set[str] = set()
        self.running: dict[str, _Job] = {}
        self.meter = CostMeter()

    def run(self) -> list[dict[str, Any]]:
        """Run the stages that are not finished; return the records of all, in the order of the file.

        Raises:
            UserError: A stage failed. Those that ran beside it are waited for, and no other is started.
        """
        try:
            while len(self.finished) < len(self.pipeline.stages):
                self._start_ready()
                if self.running:
                    self._wait()
        except BaseException as error:
            self._end_all(error)
            raise
        finally:
            self.meter.stop()
        return [self.records[stage.name] for stage in self.pipeline.stages if stage.name in self.records]

    def _start_ready(self) -> None:
        """Skip what is finished, and start stages, in the order of the file, while there is room."""
        for number, stage in enumerate(self.pipeline.stages, start=1):
            if stage.name in self.finished or stage.name in self.running:
                continue
            if not self.needed[stage.name] <= self.finished:
                continue
            if stage.name not in self.identities:
                self.identities[stage.name] = fingerprint(stage, self._before(stage))
            heading = f"[bold cyan]{number}/{len(self.pipeline.stages)} {stage.name}[/bold cyan]"
            if self._skip(stage, heading):
                self.finished.add(stage.name)
            elif len(self.running) < self.jobs and not self._port_in_use(stage):
                self.running[stage.name] = self._start(stage, heading)

    def _before(self, stage: Stage) -> str:
        """Return the fingerprints of the stages that a stage needs, without those that these need themselves."""
        names = self.needed[stage.name]
        implied: set[str] = set().union(*(self.needed[name] for name in names))
        return "".join(self.identities[other.name] for other in self.pipeline.stages if other.name in names - implied)

    def _skip(self, stage: Stage, heading: str) -> bool:
        """Return whether a stage needs not run: it is finished, or there is nothing to do."""
        done, begun = self._notes(stage)
        record = read_record(done)
        if record.get("fingerprint") == self.identities[stage.name] and all(
            Path(made).exists() for made in stage.makes
        ):
            line = f"{heading} done in {record['seconds']:.0f} s, skipped"
            console.print(f"{line}\n[dim]$ {stage.command}[/dim]", soft_wrap=True)
            emitted = self.factors.emitted(record["energy"]["joules"])
            if record.get("carbon") != emitted:  # the factors of the file changed since
                record["carbon"] = emitted
                write_json(done, record)
            self.records[stage.name] = record
            return True
        if stage.only_with and not Path(stage.only_with).exists():
            console.print(f"{heading} skipped: there is no {stage.only_with}", soft_wrap=True)
            remove_all([*stage.makes, done, begun])
            return True
        return False

    def _start(self, stage: Stage, heading: str) -> _Job:
        """Start a stage, with its server; what one that was changed had written is removed."""
        done, begun = self._notes(stage)
        identity = self.identities[stage.name]
        console.print(heading)
        if read_record(begun).get("fingerprint") != identity:
            remove_all(stage.makes)
            write_json(begun, {"fingerprint": identity})
        done.unlink(missing_ok=True)
        earlier = read_record(begun).get("cost", {})
        words = shlex.split(stage.command)
        words = [sys.executable, *words[1:]] if words[0] == "python" else words
        console.print(f"[bold]$ {stage.command}[/bold]", soft_wrap=True)  # one line, to be copied
        log = done.with_suffix(".log")
        log.unlink(missing_ok=True)
        with ExitStack() as resources:
            if stage.serve:
                resources.enter_context(serving(**stage.serve))
            output: IO[bytes] | None = None
            if self.running:
                output = resources.enter_context(open(log, "wb"))
                console.print(f"It runs beside {', '.join(self.running)}; its output goes to {log}", soft_wrap=True)
            environment = {**os.environ, **ENVIRONMENT}
            try:
                process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
            except OSError as error:
                raise UserError(
                    f"stage {stage.name}: {words[0]} cannot be started ({error.strerror}); install it"
                ) from None
            self.meter.begin(stage.name, process.pid)
            kept = resources.pop_all()
        return _Job(stage, heading, identity, earlier, process, kept, log if output else None)

    def _wait(self) -> None:
        """Wait until stages end, and record them; the cost so far is kept in case this program is killed."""
        noted, count = time.monotonic(), len(self.running)
        while True:
            for job in list(self.running.values()):
                before = ended_seconds()
                if job.process.poll() is not None:
                    self._end(job, ended_seconds() - before)
            if len(self.running) < count:
                return
            time.sleep(PAUSE)
            if time.monotonic() - noted >= HEARTBEAT:
                self.meter.update()
                for job in self.running.values():
                    self._note(job, self.meter.cost(job.stage.name).total(job.earlier))
                noted = time.monotonic()

    def _end(self, job: _Job, cpu_seconds: float) -> None:
        """Record a stage that has ended.

        Raises:
            UserError: It failed.
        """
        name, code = job.stage.name, job.process.returncode
        del self.running[name]
        job.resources.close()
        cost = self.meter.end(name, cpu_seconds).total(job.earlier)
        self._note(job, cost)
        if code:
            if job.log:
                lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
                console.print("\n".join([f"{job.heading}, end of {job.log}:", *lines[-LAST_LINES:]]), soft_wrap=True)
            raise UserError(
                f"stage {name} ended with exit code {code}; fix the error above and start the same command again"
            )
        done, begun = self._notes(job.stage)
        carbon = self.factors.emitted(cost["energy"]["joules"])
        record = {"name": name, "command": job.stage.command, **cost, "fingerprint": job.identity, "carbon": carbon}
        write_json(done, record)
        begun.unlink()
        self.records[name] = record
        self.finished.add(name)
        if job.log:
            console.print(f"{job.heading} done in {record['seconds']:.0f} s", soft_wrap=True)

    def _end_all(self, error: BaseException) -> None:
        """Wait for the running stages, which a signal to this program ends; keep what they cost."""
        if self.running and isinstance(error, UserError):
            console.print(f"A stage failed; waiting for {', '.join(self.running)} to end", soft_wrap=True)
        if not isinstance(error, UserError | KeyboardInterrupt):  # Ctrl-C reaches them, too
            for job in self.running.values():
                job.process.terminate()  # training saves a checkpoint first
        while self.running:
            try:
                self._wait()
            except UserError as failure:
                if isinstance(error, UserError):
                    console.print(f"error: {failure}", soft_wrap=True)

    def _note(self, job: _Job, cost: dict[str, Any]) -> None:
        """Keep the cost of a stage until it is finished."""
        write_json(self._notes(job.stage)[1], {"fingerprint": job.identity, "cost": cost})

    def _notes(self, stage: Stage) -> tuple[Path, Path]:
        """Return the paths of a stage's record: when it is finished, and until then."""
        folder = self.pipeline.run / "stages"
        return folder / f"{stage.name}.json", folder / f"{stage.name}.begun"

    def _port_in_use(self, stage: Stage) -> bool:
        """Return whether a running stage has a server on the port that a stage needs."""
        port = stage.serve.get("port")
        return port is not None and any(job.stage.serve.get("port") == port for job in self.running.values())


def fingerprint(stage: Stage, before: str) -> str:
    """Digest of all that a stage depends on: earlier stages, its command, the recipes in it, and the files it reads."""
    digest = hashlib.sha256(before.encode() + stage.command.encode() + json.dumps(stage.serve).encode())
    for word in shlex.split(stage.command):
        if word.endswith(".yaml") and Path(word).is_file():
            digest.update(Path(word).read_bytes())
    for path in map(Path, stage.reads):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                status = file.stat()
                digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """Return the JSON record of a stage; an empty dict if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def remove_all(paths: Iterable[str | Path]) -> None:
    """Remove files and folders, those that exist."""
    for path in map(Path, paths):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

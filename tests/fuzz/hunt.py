"""Run a reader of foreign bytes on many damaged inputs, in a child process with limits, and minimise what breaks it.

A reader keeps its contract if it returns or raises an allowed exception, whose message is one printable line, in
bounded CPU time and memory. The child counts the inputs in shared memory, so that the parent knows which one killed it.
"""

import ctypes
import gc
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutation import Mutator, damage_bytes
from leam_mm.errors import UserError, one_line

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
LONGEST = 2000  # characters of a message
HANG = 300  # seconds of wall time without progress
OUT_OF_MEMORY = ("bad_alloc", "malloc of size", "out of memory", "cannot allocate memory")
READY = -1


@dataclass(frozen=True)
class Reader:
    """A reader of foreign bytes and its contract.

    Args:
        name: Name of the reader and of its corpus folder.
        seeds: Writes valid inputs, given an empty folder.
        prepare: Returns the function of one input, given an empty folder; runs in the child.
        mutators: One of them is drawn for each input.
        allowed: Exceptions that the reader documents.
        words: Words of the format, which mutators insert.
        seconds: Most CPU time of one input.
        megabytes: Most memory that the child may map beyond what it has at the start.
        growth: Most megabytes by which the resident memory may grow after the first tenth of the inputs.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    prepare: Callable[[Path], Callable[[bytes], object]]
    mutators: tuple[Mutator, ...] = (damage_bytes,)
    allowed: tuple[type[BaseException], ...] = (UserError,)
    words: tuple[bytes, ...] = ()
    seconds: float = 2.0
    megabytes: int = 768
    growth: int = 64


@dataclass
class Found:
    """What a hunt found.

    Args:
        inputs: Number of inputs that were read.
        refused: Number of those that raised an allowed exception.
        seconds: CPU time of the children.
        growth: Growth of the resident memory in MB.
        slowest: Most CPU time of one input.
        faults: By kind of fault: the input.
        shown: By kind of fault: the end of its traceback.
    """

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    growth: float = 0.0
    slowest: float = 0.0
    faults: dict[str, bytes] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)


def mutated(reader: Reader, seeds: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return the input of a number; it depends on reader, seeds, seed and number alone."""
    random = Random(f"{reader.name}:{seed}:{number}")
    data = random.choice(seeds)
    if random.random() < 0.02:  # the end of another one
        other = random.choice(seeds)
        data = data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]
    return random.choice(reader.mutators)(random, data, reader.words)


def resident() -> float:
    """Return the resident memory of this process in MB, without what the allocator keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def fault_of(reader: Reader, read: Callable[[bytes], object], data: bytes) -> tuple[str | None, str, bool]:
    """Read one input; return the kind of fault or None, the end of its traceback, and whether it was refused."""
    try:
        read(data)
    except reader.allowed as error:
        text = one_line(error) if isinstance(error, UserError) else str(error)
        if isinstance(error, UserError) and (len(text) > LONGEST or not text.isprintable()):
            return f"message {type(error).__name__} {_where(error)}", text[:300], True
        if any(word in text.lower() for word in OUT_OF_MEMORY):
            return f"memory {_where(error)}", text[:300], True
        return None, "", True
    except BaseException as error:
        shown = "".join(traceback.format_exception(error)[-3:])[-1500:]
        return f"{type(error).__name__} {_where(error)}", shown, False
    return None, "", False


def _where(error: BaseException) -> str:
    """Return the innermost line of our own code."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [one for one in frames if Path(one.filename).is_relative_to(ROOT) and "/tests/" not in one.filename]
    last = (ours or frames)[-1]
    return f"{Path(last.filename).stem}.{last.name}" if ours else f"{Path(last.filename).name}.{last.name}"


def hunt(reader: Reader, inputs: Iterable[bytes], scratch: Path) -> Found:
    """Read inputs, one after the other; a new child continues after one that died.

    Args:
        reader: What is tested.
        inputs: They are drawn in the child, except those that a child died of; iterating again gives the same.
        scratch: Empty folder.
    """
    found, start = Found(), 0
    while True:
        stop = _one_child(reader, inputs, start, scratch, found)
        if stop is None:
            return found
        start = stop + 1


def _one_child(reader: Reader, inputs: Any, start: int, scratch: Path, found: Found) -> int | None:
    """Run one child from an input on; return the number of the input that killed it, or None at the end."""
    shared = mmap.mmap(-1, 8)
    log = scratch / "faults.jsonl"
    log.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _child(reader, inputs, start, scratch, shared, log)
            code = 0
        except BaseException:
            log.with_suffix(".error").write_text(traceback.format_exc())
        finally:
            os._exit(code)
    status = _wait(child, shared)
    lines = [json.loads(line) for line in log.read_bytes().split(b"\n") if line.endswith(b"}")] if log.exists() else []
    end: dict[str, Any] = {}
    for line in lines:
        if "kind" in line:
            found.faults.setdefault(line["kind"], bytes.fromhex(line["data"]))
            found.shown.setdefault(line["kind"], line["shown"])
        else:
            end = line
    last = struct.unpack("q", shared[:8])[0]
    found.inputs += max(0, last + 1 - start)
    found.refused += end.get("refused", 0)
    found.seconds += end.get("seconds", 0.0)
    found.growth = max(found.growth, end.get("growth", 0.0))
    found.slowest = max(found.slowest, end.get("slowest", 0.0))
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        if found.growth > reader.growth:
            found.faults.setdefault("growth", b"")
            found.shown.setdefault("growth", f"the resident memory grew by {found.growth:.0f} MB")
        return None
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 70:
        raise RuntimeError(log.with_suffix(".error").read_text())
    if last < start:
        raise RuntimeError(f"{reader.name}: the child died before its first input (status {status})")
    name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    kind = {"SIGPROF": "slow", "SIGKILL": "hang or killed"}.get(name, f"died {name}")
    data = next(one for number, one in enumerate(inputs) if number == last)
    found.faults.setdefault(kind, data)
    found.shown.setdefault(kind, f"{name} at input {last}")
    return last


def _wait(child: int, shared: mmap.mmap) -> int:
    """Wait for the end of a child; kill it if no input ends for a long time."""
    before, since, pause = READY - 1, time.monotonic(), 0.002
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        now = struct.unpack("q", shared[:8])[0]
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > HANG:
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)


def _child(reader: Reader, inputs: Any, start: int, scratch: Path, shared: mmap.mmap, log: Path) -> None:
    shared[:8] = struct.pack("q", start - 1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process even inside of native code
    folder = _emptied(scratch) / "input"
    folder.mkdir()
    read = reader.prepare(folder)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = (mapped + reader.megabytes * 1_000_000, resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sizes: list[float] = []
    seen: set[str] = set()
    refused, slowest, begin, count = 0, 0.0, time.process_time(), 0
    with log.open("w") as lines:
        for number, data in enumerate(inputs):
            if number < start:
                continue
            shared[:8] = struct.pack("q", number)
            before = time.process_time()
            resource.setrlimit(resource.RLIMIT_AS, limit)
            signal.setitimer(signal.ITIMER_PROF, reader.seconds)
            kind, shown, no = fault_of(reader, read, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            slowest = max(slowest, time.process_time() - before)
            refused += no
            count += 1
            if kind is not None and kind not in seen:
                seen.add(kind)
                lines.write(json.dumps({"kind": kind, "data": data.hex(), "shown": shown}) + "\n")
                lines.flush()
            if count % 500 == 0:
                sizes.append(resident())
        sizes.append(resident())
        early = sizes[len(sizes) // 10] if len(sizes) > 10 else sizes[-1]
        numbers = {"refused": refused, "seconds": time.process_time() - begin, "growth": sizes[-1] - early}
        lines.write(json.dumps(numbers | {"slowest": slowest}) + "\n")


def minimised(reader: Reader, kind: str, data: bytes, scratch: Path) -> bytes:
    """Return a shorter input with the same kind of fault; parts are removed while it stays."""
    if kind in ("growth", "hang or killed"):
        return data
    if kind == "slow" or kind.startswith("died"):  # each attempt needs a child of its own
        return _shorter(data, lambda part: kind in hunt(reader, [part], _emptied(scratch)).faults, 25)
    best, folder = _emptied(scratch) / "best", scratch / "input"
    best.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
            folder.mkdir()
            read = reader.prepare(folder)
            _shorter(data, lambda part: fault_of(reader, read, part)[0] == kind, 1000, best)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return best.read_bytes() if best.is_file() else data


def _emptied(scratch: Path) -> Path:
    shutil.rmtree(scratch / "input", ignore_errors=True)
    return scratch


def _shorter(data: bytes, fails: Callable[[bytes], bool], attempts: int, best: Path | None = None) -> bytes:
    """Remove parts of halving length while an input fails; keep the shortest in a file, if the process might die."""
    step = max(1, len(data) // 2) if fails(data) else 0
    while step and attempts > 0:
        at = 0
        while at < len(data) and attempts > 0:
            part = data[:at] + data[at + step :]
            attempts -= 1
            if fails(part):
                data = part
                if best:
                    best.write_bytes(data)
            else:
                at += step
        step //= 2
    return data


class Mutated:
    """The mutated inputs of some numbers; iterating again gives the same."""

    def __init__(self, reader: Reader, seeds: list[bytes], seed: int, count: int) -> None:
        self.reader, self.seeds, self.seed, self.count = reader, seeds, seed, count

    def __iter__(self) -> Any:
        for number in range(self.count):
            yield mutated(self.reader, self.seeds, self.seed, number)

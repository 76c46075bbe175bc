"""Programs, broken in random ways and started again: what is said, what is left, and what differs.

The programs are the real ones on toy inputs: train.py, download_shards (a folder), vet_shards, encode_latents,
evaluate.py and its audits, the report, and release build, sign and publish. Kinds and programs take turns; the moment
of a break is drawn from the seed and its number, so that a part of the breaks can be repeated (``--first``). Afterwards
there must be no traceback but one line, the old result must be whole, and the same command must end with the bytes of
an undisturbed run, but for times (see ``fault_releases``). Counts, not times.
"""

import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))

import fault_injection as injection
import measure
from fault_injection import Attempt, SmallDisk
from fault_programs import STEPS, Program, data_programs
from fault_releases import later_programs
from rich.table import Table

from leam_mm.errors import UserError, run
from leam_mm.files import OLD, TEMPORARY
from leam_mm.release.publish_folder import UNFINISHED

PROGRAMS = ("train", "download", "vet", "encode", "evaluate", "audit", "report", "release", "sign", "publish")
KINDS = {
    "kill": PROGRAMS,
    "signal": PROGRAMS,
    "full disk": PROGRAMS,
    "full disk, freed in time": ("train",),
    "read-only folder": PROGRAMS,
    "clock jump": PROGRAMS,
    "dead loader worker": ("train",),
    "dead data worker": ("vet_workers",),
    "damaged checkpoint": ("train",),
    "second writer": PROGRAMS,
    "no memory": PROGRAMS,
    "no open files": PROGRAMS,
    "no threads or processes": PROGRAMS,
}
ON_SMALL_DISK = ("full disk", "full disk, freed in time", "read-only folder")
EXISTS = "exists already"  # what download_shards says of a finished output
TRIES = 3  # restarts until the end is reached


class Breaker:
    """Breaks one program after the other.

    Args:
        programs: Of `prepare`.
        disk: Holds the outputs.
        logs: Folder of what the attempts print.
    """

    def __init__(self, programs: dict[str, Program], disk: SmallDisk, logs: Path) -> None:
        """See the class."""
        self.programs, self.disk, self.logs = programs, disk, logs
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, list[str]] = {}
        self.codes: dict[str, Counter[int]] = defaultdict(Counter)

    def measure(self, name: str) -> None:
        """Run a program undisturbed, for its result and time."""
        output = self.begin(name, older=True)
        attempt, begin = self.start(name, output), time.monotonic()
        code = attempt.end()
        self.seconds[name] = time.monotonic() - begin
        print(f"{name}: {self.seconds[name]:.1f} s undisturbed", flush=True)
        if code:
            raise UserError(f"{name} fails undisturbed with {code}: {attempt.output()[-800:]}")
        self.expected[name] = self.programs[name].digest(output)

    def begin(self, name: str, older: bool) -> Path:
        """Empty the disk, but for an older output of the program, and return the place of the output."""
        output, program = self.disk.folder / "out", self.programs[name]
        for left in self.disk.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if program.older is not None and (older or program.added):
            shutil.copytree(program.older, output)
        return output

    def digest(self, name: str, output: Path, faults: list[str]) -> list[str]:
        """Digest what a program left; what cannot be read is a fault."""
        try:
            return self.programs[name].digest(output)
        except Exception as error:
            faults.append(f"the result is damaged: {error!r}"[:300])
            return []

    def start(self, name: str, output: Path, prepare: Callable[[], None] = lambda: None) -> Attempt:
        """Start a program."""
        program = self.programs[name]
        number = len(list(self.logs.glob("*.log")))
        return injection.start(program.main, program.words(output), self.logs / f"{number:05d}.{name}.log", prepare)

    def break_once(self, kind: str, name: str, rng: random.Random) -> list[str]:
        """Break a program, check, start it again, compare; return what was wrong."""
        output = self.begin(name, older=rng.random() < 0.5)
        faults: list[str] = []
        before, expected = self.digest(name, output, faults), self.expected[name]
        attempt = self.broken(kind, name, output, rng, faults)
        assert attempt.code is not None
        self.codes[kind][attempt.code] += 1
        faults += self.judge(attempt, kind, name)
        if kind == "damaged checkpoint":
            wanted = attempt.output().rpartition(": remove ")[2].partition(" from ")[0].split(", ")
            for path in (output / "checkpoints").iterdir() if attempt.code else ():
                if path.name in wanted:  # the message says to remove it
                    path.unlink()
        else:
            found = self.digest(name, output, faults)
            # Its parts are written one after the other: first new ones, then those that are still old.
            states = [expected[:new] + before[new:] for new in range(len(expected) + 1)]
            if name != "train" and found not in [before, *states]:  # each checkpoint is another one
                faults.append(f"neither the old result nor the new one is left: {found} of {before}, {expected}"[:900])
        for _ in range(TRIES):
            again = self.start(name, output)
            complete = again.end() != 0 and EXISTS in again.output() and self.digest(name, output, []) == expected
            if again.code == 0 or complete:
                break
        if again.code and not complete:
            faults.append(f"does not continue: {again.output()[-300:]}")
        elif (found := self.digest(name, output, faults)) != expected:
            faults.append(f"the result differs from the undisturbed one: {found} of {expected}"[:900])
        marks = (TEMPORARY, OLD, ".lock", UNFINISHED)
        paths = list(self.disk.folder.rglob("*"))
        left = [path.name for path in paths if path.name == "lock" or any(mark in path.name for mark in marks)]
        left += [path.name for path in self.disk.folder.iterdir() if path.name != "out"]
        if left and not again.code:
            faults.append(f"left behind: {sorted(set(left))[:5]}")
        return faults

    def trigger(self, name: str, rng: random.Random, act: Callable[[], None]) -> tuple[Callable[[], None], float]:
        """Draw a moment: a preparation that acts at an event, and seconds to wait for at most."""
        draw = rng.random()
        if self.programs[name].steps and draw < 0.6:
            return injection.at_event("step", rng.randint(1, STEPS), act), injection.PATIENCE
        if draw < 0.8:
            return injection.at_event("replace", rng.randint(1, self.programs[name].replaces), act), injection.PATIENCE
        return (lambda: None), rng.uniform(0.0, self.seconds[name])

    def broken(self, kind: str, name: str, output: Path, rng: random.Random, faults: list[str]) -> Attempt:
        """Start a program and break it; return its ended attempt, or the one that must give the line."""
        if kind in ("clock jump", "no threads or processes"):
            seconds = rng.choice((-1, 1)) * 10 ** rng.uniform(0, 9)
            act = injection.forbid_starts if kind != "clock jump" else (lambda: injection.jump_clock(seconds))
            prepare, patience = self.trigger(name, rng, act)
            attempt = self.start(name, output, prepare if patience == injection.PATIENCE else act)
            attempt.end()
            return attempt
        prepare, patience = self.trigger(name, rng, injection.stop)
        if kind == "damaged checkpoint":
            prepare = injection.at_event("step", rng.randint(4, STEPS - 1), injection.stop)
            patience = injection.PATIENCE
        attempt = self.start(name, output, prepare)
        if attempt.wait(("stopped", "ended"), patience) == "ended":
            return attempt
        second = self.act(kind, name, output, rng, attempt, faults)
        if attempt.poll() != "ended":
            os.kill(attempt.pid, 18)  # SIGCONT
        if kind == "full disk, freed in time":
            time.sleep(rng.uniform(0.0, 0.3))
            self.disk.free()
        attempt.end()
        self.disk.free()
        return second or attempt

    def act(
        self, kind: str, name: str, output: Path, rng: random.Random, attempt: Attempt, faults: list[str]
    ) -> Attempt | None:
        """Apply a break to a program that is stopped or runs; return another attempt if that one is to be judged."""
        if kind == "kill":
            if rng.random() < 0.5:  # at another point than the event itself
                os.kill(attempt.pid, 18)
                time.sleep(rng.uniform(0, 0.05))
            attempt.kill()
        elif kind == "signal":
            os.kill(attempt.pid, rng.choice((1, 2, 10, 15) if name == "train" else (2, 15)))
        elif kind.startswith("full disk"):
            self.disk.fill(rng.choice((0, 0, 4096, 65536, 300_000)))
        elif kind == "read-only folder":
            attempt.kill()
            self.disk.read_only(True)
            try:
                second = self.start(name, output)
                second.end()
            finally:
                self.disk.read_only(False)
            return second
        elif kind.startswith("dead"):
            end = time.monotonic() + 5
            while (
                not injection.kill_child(attempt.pid, rng, kind == "dead data worker")
                and time.monotonic() < end
                and attempt.poll() != "ended"
            ):
                os.kill(attempt.pid, 18)
                time.sleep(0.02)
        elif kind == "damaged checkpoint":
            attempt.kill()
            damage(output / "checkpoints" / "last.ckpt", rng)
            second = self.start(name, output)
            second.end()
            return second
        elif kind == "second writer":
            second = self.start(name, output)
            code = second.end()
            if attempt.poll() != "ended" and code == 0 and self.programs[name].digest(output) != self.expected[name]:
                faults.append("a second run was not refused")
            elif code and f"(process {attempt.pid} on " not in second.output() and EXISTS not in second.output():
                faults.append(f"the refusal does not name the first run: {second.output()[-300:]}")
        elif kind == "no memory":
            injection.limit_memory(attempt.pid, rng)
        elif kind == "no open files":
            injection.limit_files(attempt.pid, rng)
        return None

    def judge(self, attempt: Attempt, kind: str, name: str) -> list[str]:
        """Check exit code and output of a broken attempt."""
        text, code = attempt.output(), attempt.code
        assert code is not None
        faults = []
        if "Traceback" in text:
            faults.append(f"traceback: {text[text.index('Traceback') :][-700:]}")
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        ours = code < 0 and kind in ("kill", "signal", "no memory", "read-only folder")
        if code > 0 and code not in (75, 130) and len(lines) != 1:
            faults.append(f"exit code {code} with {len(lines)} lines of error: {text[-500:]}")
        if code < 0 and not ours:
            faults.append(f"ended by signal {-code}: {text[-300:]}")
        return faults


def damage(path: Path, rng: random.Random) -> None:
    """Flip a byte of a file, cut it off, or empty it."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(3)
    if kind == 0:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content if kind == 0 else content[: rng.randrange(len(content)) * (kind - 1)])


def plan_breaks(kinds: list[str], programs: list[str], first: int, count: int) -> list[tuple[int, str, str]]:
    """Return number, kind and program of each break: kinds take turns, and the programs of each kind do."""
    plan = []
    for number in range(first, first + count):
        turn, place = divmod(number, len(kinds))
        kind = kinds[place]
        names = [name for name in KINDS[kind] if name in programs] if KINDS[kind] == PROGRAMS else KINDS[kind]
        plan.append((number, kind, names[(turn + place) % len(names)]))
    return plan


@measure.benchmark(
    repeats=1,
    breaks=(200, "number of breaks"),
    first=(0, "number of the first break"),
    seed=(0, "seed of the moments"),
    kinds=(list(KINDS), "kinds of breaks", {"choices": list(KINDS)}),
    programs=(list(PROGRAMS), "programs, where a kind breaks any", {"choices": list(PROGRAMS)}),
)
def main(settings: measure.Settings) -> list[Path]:
    """Break, check, write."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        logs, disk = folder / "logs", SmallDisk(folder / "disk")
        logs.mkdir()
        try:
            breaker = Breaker(data_programs(folder / "data") | later_programs(folder / "later"), disk, logs)
            programs = [name for name in settings.programs if name in breaker.programs]
            kinds = [kind for kind in settings.kinds if disk.mounted or kind not in ON_SMALL_DISK]
            plan = plan_breaks(kinds, programs, settings.first, settings.breaks)
            for name in dict.fromkeys(name for _, _, name in plan):
                breaker.measure(name)
            done, wrong = Counter[str](), []
            for number, kind, name in plan:
                faults = breaker.break_once(kind, name, random.Random(f"{settings.seed} {number}"))
                done[f"{kind}: {name}"] += 1
                wrong += [{"number": number, "kind": kind, "program": name, "fault": fault} for fault in faults]
                print(f"{number} {kind}: {name}: {'; '.join(faults) or 'ok'}", flush=True)
        finally:
            disk.unmount()
    counts = {kind: sum(n for key, n in done.items() if key.startswith(f"{kind}: ")) for kind in kinds}
    table = Table("kind of break", "number", "with faults", title=f"{settings.breaks} breaks")
    for kind, count in counts.items():
        table.add_row(kind, str(count), str(len({each["number"] for each in wrong if each["kind"] == kind})))
    content = {
        "breaks": counts,
        "breaks_by_program": dict(done),
        "exit_codes": breaker.codes,
        "not_measured": sorted({*settings.kinds, *settings.programs} - {*kinds, *programs}),
        "seconds_undisturbed": breaker.seconds,
        "faults": wrong,
    }
    same = {"compared": "breaks with faults", "difference": len({each["number"] for each in wrong}), "limit": 0}
    path = measure.write_result(content | {"same_work": [same]}, settings, table)
    if wrong:
        raise UserError(f"{same['difference']} of {settings.breaks} breaks with faults, all in {path}: see above")
    return [path]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(main)

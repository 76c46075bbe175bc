"""Training and data programs, broken in random ways and started again: what is said, what is left, and what differs.

The programs are the real ones on toy inputs: train.py, download_shards (a folder), vet_shards and encode_latents. Each
break has a program, a kind and a moment drawn from the seed. Afterwards there must be no traceback but one line, the
old result must be whole, and the same command must end with the bytes of an undisturbed run. Counts, not times.
"""

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))

import fault_injection as injection
import measure
from fault_injection import Attempt, SmallDisk
from rich.table import Table

from leam_mm.errors import UserError, run
from leam_mm.files import TEMPORARY, file_sha256

PROGRAMS = ("train", "download", "vet", "encode")
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
STEPS = 16  # of the training run
TRIES = 3  # restarts until the end is reached
KEPT = ("*.tar", "*.index.parquet", "manifest.jsonl", "keep.json", "codec_statistics.json")


@dataclass(frozen=True)
class Program:
    """A command, its output below a folder, and how to digest it.

    Args:
        main: Main function of the program.
        words: Command line for an output folder.
        digest: Digest of what the output holds; empty if there is none.
        steps: Whether it has optimizer steps.
    """

    main: Callable[[list[str]], object]
    words: Callable[[Path], list[str]]
    digest: Callable[[Path], str]
    steps: bool = False


def digest_files(output: Path) -> str:
    """Digest of shards, indexes, manifests and statistics."""
    found = sorted(path for kind in KEPT for path in output.rglob(kind))
    return hashlib.sha256("".join(f"{path.name} {file_sha256(path)}\n" for path in found).encode()).hexdigest() * bool(
        found
    )


def digest_run(output: Path) -> str:
    """Digest of weights, optimizer state, position and losses of a training run."""
    import torch
    from toys.runs import step_losses

    from leam_mm.checkpoint import read_checkpoint

    file = output / "checkpoints" / "last.ckpt"
    if not file.exists():
        return ""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                digest.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for each in value:
                add(each)
        else:
            digest.update(repr(value).encode())

    checkpoint = read_checkpoint(file)
    add([checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")])
    last = checkpoint["global_step"]
    add([row for row in step_losses(output) if int(row[0]) < last])  # later rows will be written again
    return digest.hexdigest()


def prepare(folder: Path) -> dict[str, Program]:
    """Write the toy inputs and return the programs."""
    import torch
    import yaml
    from toys.images import soft_jpeg
    from toys.recipes import CODEC_SECTION, clip_recipe, save_checkpoint
    from toys.shards import small_sample, write_samples, write_toy_shards, write_toy_tokenizer

    from data_tools import download_shards, encode_latents, vet_shards
    from leam_mm import cli

    torch.set_num_threads(1)
    shards = write_toy_shards(folder / "shards", samples=48, samples_per_shard=16)
    tokenizer = write_toy_tokenizer(folder / "tokenizer")
    images = folder / "images"
    images.mkdir()
    for number in range(12):
        (images / f"{number}.jpg").write_bytes(soft_jpeg(number))
        (images / f"{number}.txt").write_text(f"image {number}")
    samples = [small_sample(number, image=soft_jpeg(number % 16)) for number in range(20)]
    to_vet = write_samples(folder / "to_vet", samples, per_shard=5)
    rules = folder / "rules.yaml"
    names = ("caption_quality.CaptionQuality", "exact_duplicates.ExactDuplicates")
    rules.write_text(yaml.safe_dump({"rules": [{"class_path": f"data_tools.vetting.{name}"} for name in names]}))
    codec = save_checkpoint(folder / "codec.ckpt", CODEC_SECTION)
    clip = save_checkpoint(folder / "clip.ckpt", clip_recipe(folder, shards, tokenizer)["model"])

    def train(output: Path) -> list[str]:
        recipe = clip_recipe(output, shards, tokenizer, max_samples=8 * STEPS, workers=2)
        recipe["checkpoint"]["every_n_train_steps"] = 3
        del recipe["trainer"]["logger"]
        path = folder / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return ["fit", "--config", str(path)]

    def vet(output: Path, processes: int) -> list[str]:
        given = ["--shards", str(to_vet), "--rules", str(rules), "--output", str(output), "--materialise"]
        return [*given, "--overwrite", "--processes", str(processes)]

    def encode(output: Path) -> list[str]:
        given = ["--shards", shards, "--codec", codec, "--clip", clip, "--output", output, "--batch-size", 7]
        return list(map(str, given))

    fetch = ["--folder", str(images), "--samples-per-shard", "5", "--processes", "1", "--threads", "2", "--output"]
    return {
        "train": Program(cli.main, train, digest_run, steps=True),
        "download": Program(download_shards.main, lambda output: [*fetch, str(output)], digest_files),
        "vet": Program(vet_shards.main, lambda output: vet(output, 1), digest_files),
        "vet_workers": Program(vet_shards.main, lambda output: vet(output, 2), digest_files),
        "encode": Program(encode_latents.main, encode, digest_files),
    }


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
        self.expected: dict[str, str] = {}
        self.codes: dict[str, Counter[int]] = defaultdict(Counter)

    def measure(self, name: str) -> None:
        """Run a program undisturbed, for its result and time."""
        output = self.disk.folder / f"whole_{name}"
        attempt, begin = self.start(name, output), time.monotonic()
        code = attempt.end()
        self.seconds[name] = time.monotonic() - begin
        print(f"{name}: {self.seconds[name]:.1f} s undisturbed", flush=True)
        if code:
            raise UserError(f"{name} fails undisturbed with {code}: {attempt.output()[-800:]}")
        self.expected[name] = self.programs[name].digest(output)
        shutil.rmtree(output)

    def start(self, name: str, output: Path, prepare: Callable[[], None] = lambda: None) -> Attempt:
        """Start a program."""
        program = self.programs[name]
        number = len(list(self.logs.glob("*.log")))
        return injection.start(program.main, program.words(output), self.logs / f"{number:05d}.{name}.log", prepare)

    def break_once(self, kind: str, name: str, rng: random.Random) -> list[str]:
        """Break a program, check, start it again, compare; return what was wrong."""
        output = self.disk.folder / "out"
        for left in self.disk.folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        if name.startswith("vet") and rng.random() < 0.5:  # --overwrite of an older result
            shutil.copytree(self.logs.parent / "to_vet", output)
        program = self.programs[name]
        before = program.digest(output)
        faults: list[str] = []
        attempt = self.broken(kind, name, output, rng, faults)
        assert attempt.code is not None
        self.codes[kind][attempt.code] += 1
        faults += self.judge(attempt, kind, name)
        if kind == "damaged checkpoint":
            for path in (output / "checkpoints").iterdir() if attempt.code else ():
                if f"{path} cannot be read" in attempt.output():  # the message says to remove it
                    path.unlink()
        elif name == "train":
            try:
                program.digest(output)
            except Exception as error:
                faults.append(f"the checkpoint is damaged: {error!r}"[:300])
        elif (found := program.digest(output)) not in (before, self.expected[name]):
            faults.append(f"neither the old result nor the new one is left ({found[:8]})")
        for _ in range(TRIES):
            again = self.start(name, output)
            complete = again.end() != 0 and EXISTS in again.output() and program.digest(output) == self.expected[name]
            if again.code == 0 or complete:
                break
        if again.code and not complete:
            faults.append(f"does not continue: {again.output()[-300:]}")
        elif program.digest(output) != self.expected[name]:
            faults.append("the result differs from the undisturbed one")
        left = [
            path.name for path in self.disk.folder.rglob("*") if TEMPORARY in path.name or path.name.endswith("lock")
        ]
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
            return injection.at_event("replace", rng.randint(1, 12), act), injection.PATIENCE
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


@measure.benchmark(
    repeats=1,
    breaks=(200, "number of breaks"),
    seed=(0, "seed of kinds, programs and moments"),
    kinds=(list(KINDS), "kinds of breaks", {"choices": list(KINDS)}),
)
def main(settings: measure.Settings) -> list[Path]:
    """Break, check, write."""
    rng = random.Random(settings.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        logs, disk = folder / "logs", SmallDisk(folder / "disk")
        logs.mkdir()
        try:
            breaker = Breaker(prepare(folder), disk, logs)
            kinds = [kind for kind in settings.kinds if disk.mounted or kind not in ON_SMALL_DISK]
            plan = [(kind := kinds[number % len(kinds)], rng.choice(KINDS[kind])) for number in range(settings.breaks)]
            for name in dict.fromkeys(name for _, name in plan):
                breaker.measure(name)
            done, wrong = Counter[str](), []
            for number, (kind, name) in enumerate(plan):
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
        "not_measured": [kind for kind in settings.kinds if kind not in kinds],
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

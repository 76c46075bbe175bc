"""Checks of file systems: kind and space of temporary, shared-memory and run folders; writing, renaming and locks."""

import contextlib
import fcntl
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.files import atomic_write
from leam_mm.launch.check_process import Target
from leam_mm.launch.check_result import CheckResult, Verdict, expected, not_run

RAM = ("tmpfs", "ramfs", "rootfs")
TMP_NEEDED, SHM_NEEDED, RUN_NEEDED = 1.0, 1.0, 20.0  # GB free; compiled kernels, batches of loader workers, checkpoints
INODES_NEEDED = 1000
WRITTEN = 64 << 20  # bytes
SLOW_WRITE = 50  # MB/s; a checkpoint of 10 GB takes more than three minutes below it
RENAMES, SMALL_WRITES = 100, 10
SKEW = 1.0  # seconds; files look newer or older than they are
GIVE_RUN = "give the folder of the run: --run FOLDER"


@dataclass(frozen=True)
class FileSystem:
    """File system that holds a folder.

    Args:
        mount: Where it is mounted.
        kind: Type, such as ``lustre``, ``gpfs``, ``nfs4`` or ``tmpfs``.
        free_gb: Space that users may still take, in GB.
        free_inodes: Files that users may still create; None if the file system has no limit of its own.
    """

    mount: str
    kind: str
    free_gb: float
    free_inodes: int | None


def file_system(folder: Path, mounts: str = "") -> FileSystem:
    """Return the file system of an existing folder.

    Args:
        folder: The folder.
        mounts: Content of /proc/mounts; by default the file is read.
    """
    path = folder.resolve()
    found = ("/", "unknown")
    for line in (mounts or Path("/proc/mounts").read_text()).splitlines():
        place, kind = (part.encode().decode("unicode_escape") for part in line.split(" ")[1:3])
        if (path == Path(place) or Path(place) in path.parents) and len(place) >= len(found[0]):
            found = (place, kind)  # of two mounts at one place the later one is visible
    space = os.statvfs(path)
    free = space.f_bavail * space.f_frsize / 1e9
    return FileSystem(*found, free, space.f_favail if space.f_files else None)


def check_tmp(target: Target) -> list[CheckResult]:
    """Examine the folder of temporary files and /dev/shm, through which loader workers pass batches."""
    storage = target.profile.storage
    text = f"at least {TMP_NEEDED:g} GB free"
    if storage.tmp_gb.known:
        text += f"; the profile has {expected(storage.tmp_gb, 'GB in all')}"
    results = [_memory_folder("tmp", Path(tempfile.gettempdir()), TMP_NEEDED, text, storage.tmp_is_ram.value is True)]
    shared = Path("/dev/shm")
    if shared.is_dir():
        results.append(_memory_folder("shared memory", shared, SHM_NEEDED, f"at least {SHM_NEEDED:g} GB free", True))
    return results


def _memory_folder(name: str, folder: Path, needed: float, text: str, ram_is_expected: bool) -> CheckResult:
    system = file_system(folder)
    ram = system.kind in RAM
    verdict: Verdict = "pass"
    note, fix = f"{folder} is {system.kind}", ""
    if ram:
        note += ": memory, counted against the job"
        if not ram_is_expected:
            verdict, fix = "warn", "keep caches and shards elsewhere (TMPDIR), or ask for the memory that they take"
    if system.free_gb < needed:
        verdict = "fail" if system.free_gb < needed / 4 else "warn"
        note += f"; {system.free_gb:.2g} GB free of {needed:g} GB needed"
        fix = "set TMPDIR to a folder with space" if name == "tmp" else "raise the limit (--shm-size of a container)"
    if system.free_inodes is not None and system.free_inodes < INODES_NEEDED:
        verdict, note = "fail", f"{note}; {system.free_inodes} inodes free"
        fix = "remove files, or set TMPDIR to another folder"
    data = {"folder": str(folder), "kind": system.kind, "mount": system.mount, "free_inodes": system.free_inodes}
    return CheckResult(name, round(system.free_gb, 2), "GB free", text, verdict, note, fix, data)


def check_run_folder(target: Target) -> list[CheckResult]:
    """Examine the kind, the space and the inodes of the run folder."""
    name = "run folder"
    if target.run is None:
        return [not_run(name, "no run folder is given", GIVE_RUN)]
    text = str(target.run.resolve())
    hidden = [path for path in target.profile.storage.login_only_paths.value or () if text.startswith(path)]
    if hidden:
        fact = target.profile.storage.login_only_paths
        reason = f"{text} is under {hidden[0]}, which compute nodes do not see"
        return [CheckResult(name, text, "", expected(fact), "fail", reason, "use a folder on scratch")]
    target.run.mkdir(parents=True, exist_ok=True)
    system = file_system(target.run)
    verdict: Verdict = "pass"
    note, fix = f"{text} is {system.kind}, mounted at {system.mount}", ""
    inodes = "no limit of inodes" if system.free_inodes is None else f"{system.free_inodes} inodes free"
    if system.kind in RAM:
        verdict, note, fix = "fail", f"{note}: memory of one host, lost at its end", "use a folder on scratch"
    elif system.free_gb < RUN_NEEDED:
        verdict, fix = "warn", "free space, or use another folder: checkpoints of large models need more"
    if system.free_inodes is not None and system.free_inodes < INODES_NEEDED:
        verdict, fix = "fail", "remove files, or use another folder"
    limit = expected(target.profile.storage.inode_limit, "inodes of a project")
    note += f"; {inodes}" + (f"; quotas are not visible here: {limit}" if limit else "; quotas are not visible here")
    data = {"folder": text, "kind": system.kind, "mount": system.mount, "free_inodes": system.free_inodes}
    wanted = f"at least {RUN_NEEDED:g} GB free"
    return [CheckResult(name, round(system.free_gb, 2), "GB free", wanted, verdict, note, fix, data)]


@contextlib.contextmanager
def trial_folder(run: Path, ranks_host: str) -> Iterator[Path]:
    """Give an empty folder of this host inside the run folder, and remove it at the end."""
    run.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".doctor-{ranks_host}-", dir=run))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writing(target: Target) -> list[CheckResult]:
    """Measure write, fsync and rename in the run folder, and compare its clock with that of the host."""
    if target.run is None:
        return [not_run("write and rename", "no run folder is given", GIVE_RUN)]
    with trial_folder(target.run, target.ranks.host) as folder:
        block = os.urandom(1 << 20)
        began = time.perf_counter()
        with atomic_write(folder / "large", durable=True) as path, open(path, "wb") as file:
            for _ in range(WRITTEN // len(block)):
                file.write(block)
        speed = WRITTEN / 1e6 / (time.perf_counter() - began)
        delays = []
        for _ in range(SMALL_WRITES):
            began = time.perf_counter()
            with atomic_write(folder / "small", durable=True) as path:
                path.write_bytes(block[:4096])
            delays.append(1e3 * (time.perf_counter() - began))
        delay = statistics.median(delays)
        results = [
            CheckResult(
                "write and rename",
                round(speed, 1),
                "MB/s",
                f"at least {SLOW_WRITE} MB/s",
                "warn" if speed < SLOW_WRITE else "pass",
                f"{WRITTEN >> 20} MB with fsync; 4 KB take {delay:.2g} ms (median); one process writes",
                "use the fast scratch, and stripes for large files (lfs setstripe)" if speed < SLOW_WRITE else "",
                {"megabytes_per_second": speed, "milliseconds": delay},
            ),
            _server_clock(folder),
        ]
        return results


def _server_clock(folder: Path) -> CheckResult:
    before = time.time()
    (folder / "clock").write_bytes(b"1")
    stamp, after = (folder / "clock").stat().st_mtime, time.time()
    ahead = min(0.0, stamp - before) or max(0.0, stamp - after)
    # Linux stamps local files with the clock of its last tick, up to 10 ms ago.
    bad = abs(ahead) > SKEW
    return CheckResult(
        "file server clock",
        round(ahead, 3),
        "s ahead",
        f"within {SKEW:g} s",
        "warn" if bad else "pass",
        "times of files differ from this host's clock" if bad else "",
        "report it to the site: the ages of files are wrong" if bad else "",
        {"ahead": ahead},
    )


def check_file_operations(target: Target) -> list[CheckResult]:
    """Try what checkpoints and locks need in the run folder: flock between processes, hard links, atomic renames."""
    if target.run is None:
        return [not_run("locks, links, renames", "no run folder is given", GIVE_RUN)]
    with trial_folder(target.run, target.ranks.host) as folder:
        locked, linked, torn = flock_excludes(folder / "lock"), hard_link_works(folder), torn_reads(folder / "renamed")
    lock_fix = "use another folder: two runs in one folder would not notice each other (Lustre: mount with -o flock)"
    return [
        CheckResult("flock", "works" if locked else "does not exclude", "", "excludes a second process",
                    "pass" if locked else "fail", fix="" if locked else lock_fix),
        CheckResult("hard links", "work" if linked else "refused", "", "work", "pass" if linked else "warn",
                    "" if linked else "files are moved instead of getting a second name"),
        CheckResult("atomic rename", torn, f"torn of {RENAMES}", "0", "fail" if torn else "pass",
                    fix="use another folder: a kill could leave half a checkpoint" if torn else ""),
    ]  # fmt: skip


def flock_excludes(path: Path) -> bool:
    """Return whether a lock held here keeps another process out."""
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return False
        return _in_child(lambda: _refused(path))


def _refused(path: Path) -> bool:
    with open(path, "rb+") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def hard_link_works(folder: Path) -> bool:
    """Return whether a file can have two names."""
    (folder / "one").write_bytes(b"1")
    try:
        os.link(folder / "one", folder / "two")
    except OSError:
        return False
    return (folder / "one").stat().st_nlink == 2


def torn_reads(path: Path) -> int:
    """Replace a file many times while another process reads it, and return how often it was missing or mixed."""
    contents = [bytes([value]) * 4096 for value in (1, 2)]
    begun, done = (path.with_name(f"{path.name}.{word}") for word in ("begun", "done"))
    path.write_bytes(contents[0])

    def read() -> int:
        begun.write_bytes(b"")
        torn, end = 0, time.monotonic() + 10
        while not done.exists() and time.monotonic() < end:
            try:
                torn += path.read_bytes() not in contents
            except FileNotFoundError:
                torn += 1
        return min(torn, 100)

    process, end = _fork(read), time.monotonic() + 5
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.001)
    for number in range(RENAMES):
        with atomic_write(path) as temporary:
            temporary.write_bytes(contents[number % 2])
    done.write_bytes(b"")
    return _code(process)


def _in_child(task: Callable[[], int]) -> bool:
    return bool(_code(_fork(task)))


def _fork(task: Callable[[], int]) -> int:
    """Run a task in a process that shares no open file description; its result is the exit code."""
    process = os.fork()
    if process == 0:
        try:
            os._exit(int(task()))
        finally:
            os._exit(120)
    return process


def _code(process: int) -> int:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code == 120:
        raise UserError("a process that reads the run folder failed: check the folder's rights")
    return code

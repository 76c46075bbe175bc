"""Print or follow the newest log of a run."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import UserError
from leam_mm.launch.job import LOGS
from leam_mm.launch.run_record import read_record

LONGEST_TAIL = 64 << 10  # bytes


@dataclass(frozen=True)
class LogsSettings:
    """Settings of logs.

    Args:
        run: Run folder.
        lines: Last lines to print.
        follow: Print further lines as they come, until Ctrl-C.
    """

    run: Path
    lines: PositiveInt = 40
    follow: bool = False


def newest_log(run: Path) -> Path | None:
    """Return the log that was written last, None if no job has started."""
    found = [path for path in (run / LOGS).glob("*.out") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime) if found else None


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a file."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - max(LONGEST_TAIL, count * 1000)))
        return file.read().decode("utf-8", "replace").splitlines()[-count:]


def main(args: list[str]) -> None:
    """Run the program."""
    settings = parse_settings(
        LogsSettings, __doc__, args, positional=("run",), program="python -m leam_mm.launch logs"
    )  # fmt: skip
    read_record(settings.run)
    log = newest_log(settings.run)
    if log is None:
        raise UserError(f"{settings.run} has no log yet: its job has not started, see python -m leam_mm.launch status")
    print(f"--- {log}", flush=True)
    if settings.follow:
        raise SystemExit(subprocess.run(["tail", "-n", str(settings.lines), "-F", str(log)]).returncode)
    print("\n".join(last_lines(log, settings.lines)))

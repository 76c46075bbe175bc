"""Disks that are full after a few megabytes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small disk, or skip the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("a small disk can be mounted by root only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int = 0) -> Path:
    """Fill a disk up to a number of bytes; returns the file to remove."""
    filler = disk / "filler"
    with pytest.raises(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if left:
        with open(filler, "rb+") as file:
            file.truncate(filler.stat().st_size - left)
    return filler

"""A kill at any step of the replacement of a folder leaves the old one or the new one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from leam_mm import files
from leam_mm.errors import UserError
from leam_mm.files import exchange_names, replace_folder, restore_folder, write_text
from leam_mm.run_lock import beside, run_lock

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from leam_mm import files

steps = int(sys.argv[1])

def counted(step):
    def run(*args, **options):
        global steps
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        steps -= 1
        return step(*args, **options)
    return run

os.replace, shutil.rmtree = counted(os.replace), counted(shutil.rmtree)
files.exchange_names = counted(files.exchange_names if sys.argv[2] == "exchange" else lambda one, other: False)
files.replace_folder(Path(sys.argv[3]) / "out.partial", Path(sys.argv[3]) / "out")
"""


def write(folder: Path, text: str) -> None:
    folder.mkdir()
    for name in "ab":
        (folder / name).write_text(text)


def text(folder: Path) -> str:
    """What all files of a folder say."""
    (said,) = {(folder / name).read_text() for name in "ab"}
    return said


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_a_whole_folder(way: str, tmp_path: Path) -> None:
    found, missing = [], 0
    for steps in range(6):
        place = tmp_path / f"{way} {steps}"
        place.mkdir()
        write(place / "out", "old")
        write(place / "out.partial", "new")
        command = [sys.executable, "-c", KILLED, str(steps), way, str(place)]
        ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path(files.__file__).parent.parent)})
        missing += not (place / "out").exists()
        with run_lock(beside(place / "out"), place / "out"):  # as the next run does
            found.append(text(place / "out"))
        write(place / "next", "next")
        replace_folder(place / "next", place / "out")
        assert text(place / "out") == "next" and not list(place.glob("out.old*"))
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert ended.returncode == 0 and steps >= 3
    assert found == sorted(found, reverse=True) and {"old", "new"} == set(found)
    assert missing == (0 if way == "exchange" else 1)


def test_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    write(tmp_path / "a", "a")
    assert not exchange_names(tmp_path / "a", tmp_path / "b") and text(tmp_path / "a") == "a"
    write(tmp_path / "b", "b")
    assert exchange_names(tmp_path / "a", tmp_path / "b")
    assert (text(tmp_path / "a"), text(tmp_path / "b")) == ("b", "a")


def test_only_a_missing_folder_is_restored(tmp_path: Path) -> None:
    write(tmp_path / "out", "new")
    write(tmp_path / "out.old-7-ab", "old")
    write(tmp_path / "output.old-7-ab", "other")
    restore_folder(tmp_path / "out")
    assert text(tmp_path / "out") == "new" and text(tmp_path / "out.old-7-ab") == "old"
    replace_folder(tmp_path / "out", tmp_path / "fresh")
    restore_folder(tmp_path / "out")
    assert text(tmp_path / "out") == "old" and text(tmp_path / "fresh") == "new"
    assert (tmp_path / "output.old-7-ab").exists()
    restore_folder(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_pipes_and_folders_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no regular file"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()
    for path in (Path("."), Path("/")):
        with pytest.raises(UserError, match="without a name"):
            write_text(path, "x")


def test_the_lock_beside_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out")
    lock = tmp_path / "out.lock"
    assert beside(Path()) == beside(Path("in/..")) == beside(tmp_path / "out") == lock
    with pytest.raises(UserError, match=r"^/ is a folder without a name of its own: give another path$"):
        beside(Path("/"))

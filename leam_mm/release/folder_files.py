"""Files of a release that a stranger made: a bounded walk that follows no link and opens nothing."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from leam_mm.marking.deletion_list import FILE as DELETION_LIST
from leam_mm.release_record import name_fault

MAX_FILES, MAX_DEPTH = 10_000, 6
# Written by a hub or its client, and the list that the publisher refreshes after the release was signed.
OUTSIDE = re.compile(rf"\.gitattributes|\.cache/huggingface(/.*)?|{re.escape(DELETION_LIST)}")
CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".js", ".ipynb", ".whl", ".jar")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".msgpack", ".dill")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file of a release.

    Args:
        file: Its path inside the release, or the name of a document's field.
        text: What is wrong.
    """

    file: str
    text: str

    @property
    def line(self) -> str:
        """One printable line."""
        return printable(f"{self.file}: {self.text}")


@dataclass(frozen=True)
class Listing:
    """What lies in a folder.

    Args:
        files: Size in bytes of each regular file, by path inside the release.
        faults: Links, special files, names and kinds of files that no release has.
        ignored: Files that a hub adds to its copies, and the deletion list.
    """

    files: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def printable(text: str) -> str:
    """Return a text of unknown origin as one line without control characters, at most 500 characters."""
    plain = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return plain if len(plain) <= 500 else f"{plain[:500]} ..."


def list_files(folder: Path) -> Listing:
    """List the files of a release without following links; stops at ``MAX_FILES``.

    Args:
        folder: The release.
    """
    listing = Listing()
    for name, entry in _walk(folder, ""):
        if OUTSIDE.fullmatch(name) and not entry.is_symlink():
            listing.ignored.append(name)
        elif fault := _fault(name, entry):
            listing.faults.append(Fault(name, fault))
        elif entry.is_file(follow_symlinks=False):
            listing.files[name] = entry.stat(follow_symlinks=False).st_size
        if len(listing.files) + len(listing.faults) > MAX_FILES:
            listing.faults.append(Fault(".", f"more than {MAX_FILES} files: a release has fewer"))
            break
    return listing


def _walk(folder: Path, start: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder / start) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = f"{start}/{entry.name}" if start else entry.name
            yield name, entry
            if entry.is_dir(follow_symlinks=False) and name.count("/") < MAX_DEPTH and name != ".cache/huggingface":
                yield from _walk(folder, name)


def _fault(name: str, entry: os.DirEntry[str]) -> str | None:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return "a symbolic link; a release holds regular files (download it with a folder of its own: --local-dir)"
    if fault := name_fault(name):
        return fault
    if stat.S_ISDIR(mode):
        return "a folder too deep" if name.count("/") >= MAX_DEPTH else None
    if not stat.S_ISREG(mode):
        return "no regular file"
    ending = os.path.splitext(name.lower())[1]
    if ending in PICKLES:
        return f"{ending} may hold a pickle, which runs code when it is loaded; released weights are safetensors"
    return f"{ending} is program code; a release holds none" if ending in CODE else None

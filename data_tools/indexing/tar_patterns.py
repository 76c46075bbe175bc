"""Which tars a pattern names: braces, globs, folders and addresses of fsspec, with what is missing in their numbers."""

import glob
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec import AbstractFileSystem

from leam_mm.errors import UserError

MOST = 1_000_000  # tars
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
GLOB = re.compile(r"[*?\[]")
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Tar:
    """One tar.

    Args:
        folder: Path or address of its folder.
        name: Its file name.
        size: Its bytes.
    """

    folder: str
    name: str
    size: int

    @property
    def address(self) -> str:
        """Path or address of the file."""
        return f"{self.folder}/{self.name}" if self.folder != "/" else f"/{self.name}"

    @property
    def remote(self) -> bool:
        """Whether it is not a file of this machine."""
        return "://" in self.folder

    def open(self) -> BinaryIO:
        """Open it to be read once, without a cache."""
        return open_address(self.address)


def open_address(address: str) -> BinaryIO:
    """Open a path or address for reading from start to end."""
    if "://" not in address:
        return open(address, "rb", buffering=0)  # type: ignore[return-value]
    system, path = fsspec.core.url_to_fs(address)
    return system.open(path, "rb", block_size=16 << 20, cache_type="readahead")  # type: ignore[no-any-return]


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the words that a pattern with ``{00000..00999}`` and ``{a,b}`` names, in the order of a shell.

    Raises:
        UserError: There are more than a million.
    """
    found = next((each for each in BRACES.finditer(pattern) if "," in each[1] or RANGE.fullmatch(each[1])), None)
    if found is None:
        yield pattern
        return
    span = RANGE.fullmatch(found[1])
    choices: Iterable[str] = found[1].split(",")
    if span:
        first, last = int(span[1]), int(span[2])
        if abs(last - first) >= MOST:
            raise UserError(f"{{{found[1]}}} names more than {MOST} tars: give several patterns")
        padded = span[1].startswith("0") or span[2].startswith("0")
        width = max(len(span[1]), len(span[2])) if padded else 0
        choices = (f"{number:0{width}d}" for number in range(first, last + 1, 1) or range(first, last - 1, -1))
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def find_tars(patterns: list[str]) -> tuple[list[Tar], list[str]]:
    """Return the tars that patterns name, each once, and the names that braces or gaps in the numbers miss.

    Raises:
        UserError: There is none, one is compressed, or a storage cannot be listed.
    """
    listing = _Listing()
    tars: dict[str, Tar] = {}
    missing: list[str] = []
    for pattern in patterns:
        before = len(tars)
        for count, word in enumerate(expand_braces(pattern)):
            if count >= MOST:
                raise UserError(f"{pattern} names more than {MOST} tars: give several patterns")
            found = listing.find(word)
            if not found and not GLOB.search(word):
                missing.append(posixpath.basename(word))
            for tar in found:
                if tar.name.endswith(PACKED):
                    raise UserError(
                        f"{tar.address} is compressed, which allows no random access: unpack the files first (gunzip "
                        "FILE keeps the tar), then index them"
                    )
                tars.setdefault(os.path.normpath(tar.address) if not tar.remote else tar.address, tar)
        if len(tars) == before and not listing.find(pattern):
            raise UserError(f"{pattern} names no tar: give tars, a folder of them, or a pattern in quotes")
    return list(tars.values()), missing + _gaps([tar.name for tar in tars.values()], set(missing))


class _Listing:
    """Files of folders and storages, each listed once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, int]] = {}

    def find(self, word: str) -> list[Tar]:
        """Return the tars that a word without braces names, sorted."""
        try:
            return self._remote(word) if "://" in word else self._local(word)
        except UserError:
            raise
        except Exception as error:  # each driver has its own kinds
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"{word} cannot be listed ({reason}): check the address, the network and rights") from None

    def _local(self, word: str) -> list[Tar]:
        path = Path(word)
        if path.is_dir():
            with os.scandir(path) as entries:
                found = [(entry.name, entry.stat().st_size) for entry in entries
                         if entry.name.endswith((".tar", *PACKED)) and entry.is_file()]  # fmt: skip
            return [Tar(str(path), name, size) for name, size in sorted(found)]
        names = [word] if os.path.isfile(word) else sorted(glob.glob(word)) if GLOB.search(word) else []
        return [_local_tar(name) for name in names if os.path.isfile(name)]

    def _remote(self, word: str) -> list[Tar]:
        system, path = fsspec.core.url_to_fs(word)
        scheme = word.partition("://")[0]
        if GLOB.search(word):
            found = sorted(system.glob(path, detail=True).items())
            return [_tar(system, scheme, name, info) for name, info in found if info.get("type") != "directory"]
        folder, _, name = word.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._list(system, path.rpartition("/")[0])
        if name in self._folders[folder]:
            return [Tar(folder, name, self._folders[folder][name])]
        inside = self._list(system, path)
        if inside:
            tars = sorted(each for each in inside if each.endswith((".tar", *PACKED)))
            return [Tar(word.rstrip("/"), each, inside[each]) for each in tars]
        try:
            info = system.info(path)
        except FileNotFoundError:
            return []
        return [Tar(folder, name, int(info.get("size") or 0))] if info.get("type") == "file" else []

    @staticmethod
    def _list(system: AbstractFileSystem, path: str) -> dict[str, int]:
        try:
            found = system.ls(path, detail=True)
        except (OSError, NotImplementedError, ValueError):
            return {}
        files = (info for info in found if info.get("type") == "file" and info["name"].rstrip("/") != path.rstrip("/"))
        return {posixpath.basename(info["name"]): int(info.get("size") or 0) for info in files}


def _local_tar(name: str) -> Tar:
    folder, base = os.path.split(name)
    return Tar(folder or ".", base, os.path.getsize(name))


def _tar(system: AbstractFileSystem, scheme: str, name: str, info: dict[str, Any]) -> Tar:
    address = name if "://" in name else system.unstrip_protocol(name)
    folder, _, base = address.rpartition("/")
    return Tar(folder, base, int(info.get("size") or 0))


def _gaps(names: list[str], known: set[str]) -> list[str]:
    """Return the names that lie between the numbers of others and are not there."""
    series: dict[tuple[str, str, int], list[int]] = {}
    for name in names:
        if numbered := re.fullmatch(r"(.*?)(\d+)(\D*)", name):
            width = len(numbered[2]) if numbered[2].startswith("0") or len(numbered[2]) > 1 else 0
            series.setdefault((numbered[1], numbered[3], width), []).append(int(numbered[2]))
    gaps = []
    for (before, after, width), numbers in series.items():
        if max(numbers) - min(numbers) < 10 * len(numbers) + 100:  # else the digits do not count the tars
            inside = set(range(min(numbers), max(numbers))) - set(numbers)
            gaps += [f"{before}{number:0{width}d}{after}" for number in sorted(inside)]
    return [name for name in gaps if name not in known]

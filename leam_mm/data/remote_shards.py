"""Shard folders on any filesystem of fsspec (s3://, gs://, http://, memory://, file://), through a local cache.

A tar is fetched once per node, by the process that needs it first, compared with the manifest's size and sha256, and
renamed to its digest in the cache: a tar under its final name is complete, and data sets that share a shard share its
file. Credentials and endpoints of object stores come from the environment, as fsspec's drivers read them.
"""

import errno
import logging
import os
import posixpath
import re
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import FileLock, Timeout

from leam_mm.data.index_file import ShardIndex, index_name, read_index, read_records, records_name
from leam_mm.data.keep_list import KEEP, PLACE, KeepList, parse_keep_list, read_keep_list
from leam_mm.data.shard_index import MANIFEST, ShardFolder
from leam_mm.data.shard_manifest import ShardEntry
from leam_mm.data.shard_places import TARS
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

try:
    import fcntl
except ImportError:  # Windows, which refuses to remove an open file
    fcntl = None  # type: ignore[assignment]

ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt; doubled before each further one
PARTIAL = re.compile(r"[0-9a-f]{64}\.(\d+)\.partial")
log = logging.getLogger(__name__)


class Unreachable(UserError):
    """The storage did not answer: the sample may be fine, so it must not be replaced."""


@dataclass(frozen=True)
class ShardCache:
    """Local copy of remote shards.

    Args:
        folder: Folder on a local disk, shared by all processes of a node and possibly by several runs.
        max_bytes: Beyond this size the least recently used tars are removed, never an open one; None keeps all.
    """

    folder: Path
    max_bytes: int | None = None


def open_folder(path: Path | str, cache: ShardCache | None = None) -> ShardFolder:
    """Open a shard folder or keep-list: a path is read in place, a URL through the cache."""
    if "://" not in str(path):
        kept = None if (Path(path) / MANIFEST).is_file() else read_keep_list(Path(path))
        if kept is not None and "://" in kept.shards:
            return _follow(kept, path, cache)
        folder = ShardFolder(path)
        return RemoteTars(folder, cache) if "://" in folder.shard_name(0) else folder
    if cache is None:
        raise _needs_cache(path)
    try:
        return RemoteFolder(str(path), cache)
    except UserError as error:
        kept = None if isinstance(error, Unreachable) else _read_keep_list(str(path).rstrip("/"), cache)
        if kept is None:
            raise
    return _follow(kept, str(path).rstrip("/"), cache)


def _needs_cache(path: Path | str) -> UserError:
    return UserError(
        f"{path} is on another machine: give a folder for local copies, "
        "data.init_args.loading.cache: {folder: /local/disk/shards}"
    )


def _follow(kept: KeepList, path: Path | str, cache: ShardCache | None) -> ShardFolder:
    shards = kept.shards
    if "://" not in shards:  # object stores do not resolve ".."
        scheme, _, own = str(path).partition("://")
        shards = f"{scheme}://{posixpath.normpath(posixpath.join(own, shards))}"
    folder = open_folder(shards, cache)
    folder.follow(kept, str(path))
    return folder


def _read_keep_list(url: str, cache: ShardCache) -> KeepList | None:
    """Return the keep-list of a folder behind a URL; None if it has none."""
    Path(cache.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.folder, prefix="keep-") as scratch:
        try:
            for name in (PLACE, KEEP):
                _download(f"{url}/{name}", Path(scratch) / name, cache.folder)
        except Unreachable:
            raise
        except UserError:
            return None
        return parse_keep_list((Path(scratch) / PLACE).read_bytes(), (Path(scratch) / KEEP).read_bytes(), url)


class RemoteFolder(ShardFolder):
    """A shard folder behind a URL; its tars and indexes are read from the cache.

    Args:
        url: URL of the folder that holds ``manifest.jsonl``.
        cache: Local copy of its files.
    """

    def __init__(self, url: str, cache: ShardCache) -> None:
        """Fetch the manifest; see the class for the arguments."""
        self.url, self.cache, self.path = url.rstrip("/"), cache, Path(cache.folder)
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path, prefix="manifest-") as scratch:
            self._download(f"{self.url}/{MANIFEST}", Path(scratch) / MANIFEST)
            self._keep((Path(scratch) / MANIFEST).read_bytes(), self.url)
        self._announced: list[int] = []

    def _read_places(self) -> bytes | None:
        return read_beside(self.url, TARS, self.cache)

    def working_bytes(self, shards: int) -> int:
        """Return the size of the largest ``shards`` tars, the least cache that need not fetch them again."""
        return sum(sorted((entry.bytes for entry in self.shards), reverse=True)[:shards])

    def tar(self, number: int) -> Path:
        """Return the path of one tar in the cache, fetched if missing."""
        entry = self.shards[number]
        target = self.path / f"{entry.sha256}.tar"
        if not target.is_file():
            with FileLock(self._lock(entry)):
                if not target.is_file():
                    self._fetch(entry, target)
        return target

    def open(self, number: int) -> BinaryIO:
        """Open one tar of the cache, unbuffered; it is not removed while it is open."""
        while True:
            try:
                file = open(self.tar(number), "rb", buffering=0)  # noqa: SIM115 (it stays open for the reader)
            except FileNotFoundError:  # removed by another process since
                continue
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
            if fcntl is None or os.fstat(file.fileno()).st_nlink:
                os.utime(file.name)  # record the last use even if the disk keeps no access times
                return file  # type: ignore[return-value]
            file.close()

    def index(self, number: int) -> ShardIndex:
        """Read the index of one tar, fetched if missing."""
        entry = self.stored[number]
        if entry.records is not None:
            where = f"{self.url}/{records_name(entry.shard)}"
            return self._kept(number, read_records(self.records(number), entry, where))
        target, where = self.path / index_name(f"{entry.sha256}.tar"), f"{self.url}/{index_name(entry.shard)}"
        if not target.is_file():
            with FileLock(self._lock(entry)):
                if not target.is_file():
                    partial = self.path / f"{entry.sha256}.index.partial"
                    self._download(where, partial)
                    read_index(partial, entry, where)
                    os.replace(partial, target)
        return self._kept(number, read_index(target, entry, where))

    def records(self, number: int) -> Path:
        """Return the path of the file of records of a tar that others made, fetched if missing."""
        entry = self.stored[number]
        target, where = self.path / records_name(f"{entry.identity}.tar"), f"{self.url}/{records_name(entry.shard)}"
        if not target.is_file():
            with FileLock(self._lock(entry)):
                if not target.is_file():
                    partial = self.path / f"{entry.sha256}.records.partial"
                    self._download(where, partial)
                    if file_sha256(partial) != entry.records:
                        partial.unlink()
                        raise UserError(f"{where} has another sha256 than the manifest says: upload it again")
                    os.replace(partial, target)
        return target

    def prefetch(self, numbers: list[int]) -> None:
        """Fetch shards in the background; errors are raised when the shard is read."""
        if numbers and numbers != self._announced:
            self._announced = numbers
            threading.Thread(target=self._fetch_ahead, args=(numbers,), daemon=True).start()

    def _fetch_ahead(self, numbers: list[int]) -> None:
        for entry in (self.shards[number] for number in numbers):
            target = self.path / f"{entry.sha256}.tar"
            with suppress(UserError, Timeout), FileLock(self._lock(entry), blocking=False):
                if not target.is_file():
                    self._fetch(entry, target)

    def __getstate__(self) -> dict[str, Any]:
        """Let each worker process prefetch on its own."""
        return {**self.__dict__, "_announced": []}

    def _lock(self, entry: ShardEntry) -> Path:
        return self.path / f"{entry.sha256}.lock"

    def _fetch(self, entry: ShardEntry, target: Path) -> None:
        """Download, check and rename one tar; the caller holds its lock."""
        partial = self.path / f"{entry.sha256}.{entry.bytes}.partial"
        self._make_room(partial)
        try:
            for attempt in range(ATTEMPTS):
                self._download(self.address(entry), partial)
                fault = _difference(partial, entry)
                if fault is None:
                    os.replace(partial, target)
                    return
                log.warning("%s %s (attempt %d of %d)", self.address(entry), fault, attempt + 1, ATTEMPTS)
                time.sleep(PAUSE * 2**attempt if attempt + 1 < ATTEMPTS else 0)
            raise UserError(f"{self.address(entry)} {fault}: upload the shard again")
        finally:
            partial.unlink(missing_ok=True)

    def _download(self, address: str, target: Path) -> None:
        _download(address, target, self.path)

    def _make_room(self, coming: Path) -> None:
        """Register an expected tar, and remove the least recently used tars until all fit the limit."""
        with FileLock(self.path / "room.lock"):
            coming.touch()
            if self.cache.max_bytes is None:
                return
            for partial in self.path.glob("*.partial"):  # of a killed process
                if partial != coming:
                    with suppress(Timeout), FileLock(self.path / f"{partial.name[:64]}.lock", blocking=False):
                        partial.unlink(missing_ok=True)
            taken = sum(_bytes(path) for path in self.path.iterdir())
            for tar in sorted(self.path.glob("*.tar"), key=lambda path: path.stat().st_mtime_ns):
                if taken <= self.cache.max_bytes:
                    return
                size = _bytes(tar)
                if _removed(tar):
                    for beside in self.path.glob(f"{tar.stem}*"):  # index and records
                        if beside.suffix in (".parquet", ".jsonl"):
                            beside.unlink(missing_ok=True)
                    taken -= size
        if taken > self.cache.max_bytes:
            log.warning("%s holds %d bytes, above max_bytes %d: all are in use", self.path, taken, self.cache.max_bytes)


class RemoteTars(RemoteFolder):
    """A local shard folder that refers to tars behind a URL, which are read from the cache.

    Args:
        folder: The folder, or a keep-list of it.
        cache: Local copy of the tars.
    """

    def __init__(self, folder: ShardFolder, cache: ShardCache | None) -> None:
        """See the class for the arguments."""
        if cache is None:
            raise _needs_cache(folder.shard_name(0))
        vars(self).update(vars(folder))
        self.url, self.cache, self.path = folder.location, cache, Path(cache.folder)
        self.path.mkdir(parents=True, exist_ok=True)
        self._announced = []

    def index(self, number: int) -> ShardIndex:
        """Read the index of one tar."""
        return ShardFolder.index(self, number)

    def records(self, number: int) -> Path:
        """Return the path of the file of records of one tar."""
        return ShardFolder.records(self, number)


def read_beside(path: Path | str, name: str, cache: ShardCache | None = None) -> bytes | None:
    """Return the content of a small file in a local or remote folder; None if it does not exist."""
    if "://" not in str(path):
        return (Path(path) / name).read_bytes() if (Path(path) / name).is_file() else None
    if cache is None:  # open_folder raises the error
        return None
    Path(cache.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.folder, prefix="beside-") as scratch:
        try:
            _download(f"{str(path).rstrip('/')}/{name}", Path(scratch) / name, cache.folder)
        except Unreachable:
            raise
        except UserError:
            return None
        return (Path(scratch) / name).read_bytes()


def _download(url: str, target: Path, folder: Path) -> None:
    """Download one file, with retries if the storage does not answer; ``folder`` is the cache."""
    for attempt in range(ATTEMPTS):
        try:
            filesystem, path = fsspec.core.url_to_fs(url, **_patience(url))
            filesystem.get_file(path, str(target))
            return
        except FileNotFoundError:
            raise UserError(f"{url} is missing: upload the whole folder, {MANIFEST} and index files too") from None
        except (ImportError, ValueError) as error:  # a missing driver, or an unknown protocol
            raise Unreachable(f"{url} cannot be read here: {error}") from None
        except Exception as error:  # each driver has its own kinds
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise Unreachable(
                    f"the disk of {folder} is full: set data.init_args.loading.cache.max_bytes, or give another folder"
                ) from None
            reason = f"{type(error).__name__}: {error}"
        if attempt + 1 < ATTEMPTS:
            log.warning("%s does not answer (%s); attempt %d of %d", url, reason, attempt + 1, ATTEMPTS)
            time.sleep(PAUSE * 2**attempt)
    raise Unreachable(
        f"{url} cannot be fetched ({reason}): check network and credentials, then start again; without a network, "
        "copy the folder to this machine and give its path"
    )


def _patience(url: str) -> dict[str, Any]:
    """Return options that limit silence only: by default aiohttp ends every download after five minutes."""
    if not url.startswith(("http://", "https://")):
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


def _difference(path: Path, entry: ShardEntry) -> str | None:
    """Return how a fetched tar differs from its manifest entry; None if it does not."""
    if path.stat().st_size != entry.bytes:
        return f"has {path.stat().st_size} bytes, the manifest says {entry.bytes}"
    digest = file_sha256(path)
    return None if digest == entry.sha256 else f"has sha256 {digest}, the manifest says {entry.sha256}"


def _bytes(path: Path) -> int:
    """Return the size of a file of the cache, or its final size while it is being fetched."""
    partial = PARTIAL.fullmatch(path.name)
    try:
        return int(partial[1]) if partial else path.stat().st_size
    except FileNotFoundError:
        return 0


def _removed(path: Path) -> bool:
    """Remove a tar of the cache unless a process has it open."""
    try:
        if fcntl is None:
            path.unlink()  # refused by the system if it is open
        else:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
    except OSError:
        return False
    return True

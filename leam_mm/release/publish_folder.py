"""Publication in a folder of any file system that fsspec opens, with a static index page of all versions.

    ADDRESS/VERSION/...      the files of a release, its record last
    ADDRESS/versions.json    all versions
    ADDRESS/index.html       page about them, for a web server or a file browser without network
    ADDRESS/latest.json      the newest version; written last

A version is complete when its record is there. An upload that was killed continues; other bytes under the name of a
version are refused.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from leam_mm.errors import UserError
from leam_mm.files import atomic_write, remove_leftovers
from leam_mm.json_text import parse_json, parse_object
from leam_mm.release.publication import Publication
from leam_mm.release.version_page import Version, version_page
from leam_mm.release_record import RELEASE
from leam_mm.run_lock import run_lock

UNFINISHED, VERSIONS, LATEST, INDEX = "unfinished.json", "versions.json", "latest.json", "index.html"
CHUNK, MAX_LIST = 1 << 22, 1 << 24  # bytes


@dataclass(frozen=True)
class PublishedFolder:
    """A folder of versions.

    Args:
        system: The file system.
        root: Path of the folder in it.
        address: The address as it was given, without credentials.
    """

    system: AbstractFileSystem
    root: str
    address: str

    def publish(self, release: Publication, progress: Callable[[str, int], object] = lambda *_: None) -> None:
        """Upload a release as a new version, or continue its upload, and make it the latest one.

        Args:
            release: What is published.
            progress: Called with the name of each file and the bytes of each part of it.

        Raises:
            UserError: The version exists with other bytes, or the address does not answer.
        """
        with self._lock(), self._faults():
            self._claim(release)
            for name in release.names:  # the record is the last one
                if not self._holds(release, name):
                    self._upload(release, name, progress)
            self._check_complete(release)
            if self.system.exists(self._path(release, UNFINISHED)):
                self.system.rm(self._path(release, UNFINISHED))
            versions = self._add_version(release)
            self._write(f"{self.root}/{VERSIONS}", _json([asdict(one) for one in versions]))
            latest = release.version if release.latest else self.latest()
            self._write(f"{self.root}/{INDEX}", version_page(versions, latest).encode())
            if release.latest:
                self._write(f"{self.root}/{LATEST}", _json({"version": latest, "own_sha256": release.own_sha256}))

    def latest(self) -> str | None:
        """Return the version that ``latest.json`` names, or None."""
        found = self._read(f"{self.root}/{LATEST}")
        return str(parse_object(found).get("version")) if found is not None else None

    def state(self, release: Publication) -> str:
        """Return what publishing would do: ``new``, ``continues`` or ``complete``.

        Raises:
            UserError: The version exists with other bytes.
        """
        with self._faults():
            record = self._read(self._path(release, RELEASE))
            if record is not None and record != (release.folder / RELEASE).read_bytes():
                raise UserError(
                    f"{self.address}/{release.version} holds another release: a published version is never changed, "
                    "give another --version"
                )
            if record is not None:
                return "complete"
            claim = self._read(self._path(release, UNFINISHED))
            if claim is None:
                if self.system.exists(self._path(release, "")) and self.system.find(self._path(release, "")):
                    raise UserError(
                        f"{self.address}/{release.version} holds files of no release: give another --version"
                    )
                return "new"
            if parse_object(claim).get("own_sha256") != release.own_sha256:
                raise UserError(
                    f"{self.address}/{release.version} holds a part of another release, whose upload did not end: "
                    "continue that one, remove the folder, or give another --version"
                )
            return "continues"

    def _claim(self, release: Publication) -> None:
        if self.state(release) == "new":
            self._write(self._path(release, UNFINISHED), _json({"own_sha256": release.own_sha256}))
        if isinstance(self.system, LocalFileSystem):
            version = Path(self._path(release, ""))
            for folder in (Path(self.root), version, *(path for path in version.rglob("*") if path.is_dir())):
                remove_leftovers(folder)

    def _path(self, release: Publication, name: str) -> str:
        return f"{self.root}/{release.version}/{name}".rstrip("/")

    def _holds(self, release: Publication, name: str) -> bool:
        """Whether a file is there with the bytes of the release; one of another size is a part of a killed upload."""
        path = self._path(release, name)
        if not self.system.exists(path) or self.system.size(path) != release.sizes[name]:
            return False
        digest = hashlib.sha256()
        with self.system.open(path, "rb") as file:
            while part := file.read(CHUNK):
                digest.update(part)
        return digest.hexdigest() == release.digests[name]

    def _upload(self, release: Publication, name: str, progress: Callable[[str, int], object]) -> None:
        digest = hashlib.sha256()
        with open(release.folder / name, "rb") as source, self._writer(self._path(release, name)) as target:
            while part := source.read(CHUNK):
                digest.update(part)
                target.write(part)
                progress(name, len(part))
            if digest.hexdigest() != release.digests[name]:
                raise UserError(f"{release.folder / name} changed while it was uploaded: verify the release again")

    def _check_complete(self, release: Publication) -> None:
        start = self._path(release, "")
        present = {str(path).rpartition(f"{start.lstrip('/')}/")[2] for path in self.system.find(start)}
        if extra := sorted(present - set(release.names) - {UNFINISHED}):
            raise UserError(
                f"{self.address}/{release.version} holds {extra[0]!r:.200}, too: remove it, and publish again"
            )
        for name in release.names:
            if self.system.size(self._path(release, name)) != release.sizes[name]:
                raise UserError(f"{self.address}/{release.version}/{name} was not stored whole: publish again")

    def _add_version(self, release: Publication) -> list[Version]:
        stored = self._read(f"{self.root}/{VERSIONS}")
        entries = parse_json(stored) if stored is not None else []
        try:
            versions = [Version(**entry) for entry in entries]
        except TypeError:
            raise UserError(f"{self.address}/{VERSIONS} is no list of versions: move it away") from None
        if all(one.version != release.version for one in versions):
            published = datetime.now(UTC).strftime("%Y-%m-%d")
            files = [[name, release.sizes[name], release.digests[name]] for name in sorted(release.names)]
            facts = (release.name, release.licence, release.own_sha256, published, release.signed)
            versions.insert(0, Version(release.version, *facts, files))
        return versions

    def _read(self, path: str) -> bytes | None:
        if not self.system.exists(path):
            return None
        if self.system.size(path) > MAX_LIST:
            raise UserError(f"{path} is larger than {MAX_LIST} bytes: it was not written by this program")
        return bytes(self.system.cat_file(path))

    def _write(self, path: str, content: bytes) -> None:
        with self._writer(path) as file:
            file.write(content)

    @contextmanager
    def _writer(self, path: str) -> Iterator[Any]:
        """Open a file that appears when it is complete; object stores do so by themselves."""
        if isinstance(self.system, LocalFileSystem):
            with atomic_write(Path(path)) as temporary, open(temporary, "xb") as file:
                yield file
            return
        self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
        with self.system.open(path, "wb") as file:
            try:
                yield file
            except BaseException:
                getattr(file, "discard", lambda: None)()
                raise

    @contextmanager
    def _lock(self) -> Iterator[None]:
        if not isinstance(self.system, LocalFileSystem):
            yield
            return
        with run_lock(Path(f"{self.root}.lock"), Path(self.root)):
            yield

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # each driver has its own kinds
            reason = f"{type(error).__name__}: {error}"[:300]
            raise UserError(
                f"{self.address} does not take the release ({reason}): correct what it says, and give the same "
                "command again; it continues"
            ) from None


def open_folder(address: str) -> PublishedFolder:
    """Return the folder behind an address.

    Args:
        address: Path, or an address that fsspec opens and writes to. Credentials come from the environment.

    Raises:
        UserError: The address holds credentials, or no driver opens it.
    """
    if "@" in address.partition("://")[2].partition("/")[0]:
        raise UserError("--to holds credentials: give them by the environment, as the driver of fsspec reads them")
    if address.startswith(("http://", "https://")):
        raise UserError(f"--to {address}: a web server takes no files; give the folder that it serves")
    try:
        system, root = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"--to {address} cannot be opened ({str(error)[:200]}): correct it") from None
    return PublishedFolder(system, root.rstrip("/"), address.rstrip("/"))


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

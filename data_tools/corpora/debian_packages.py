"""Fetch Debian packages with apt's client and read files out of them.

A package is read without installing or unpacking it: no path inside it is used as a path on this machine, and none of
its scripts run. The client checks the archive's signature; version and SHA-256 of what was read go into the evidence.
"""

import io
import lzma
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.files import file_sha256, temporary_path

MEMBER_BYTES = 16 * 2**20
WANTED_BYTES = 1024 * 2**20
CONTROL_BYTES = 2**20
SECONDS_PER_FETCH = 600
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True)
class DebianContent:
    """What was read of a package.

    Attributes:
        files: Path inside the package, without leading ``./``, to content.
        evidence: Name, version and sha256 of the package; version and sha256 are null for an unpacked folder.
    """

    files: dict[str, bytes]
    evidence: dict[str, str | None]


def fetch_debian_package(name: str, cache: Path) -> Path:
    """Return the package's file in the cache, fetched by ``apt-get download`` if missing.

    Raises:
        UserError: No apt client, or it cannot fetch the package.
    """
    found = _in_folder(name, cache)
    if found:
        return found
    client, partial = shutil.which("apt-get"), temporary_path(cache)
    if client is None:
        raise UserError(
            f"{name}: no apt-get on PATH to fetch this Debian package; download {name}_*.deb on a Debian machine "
            "and give its folder by --packages"
        )
    partial.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [client, "download", name],
            capture_output=True,
            text=True,
            timeout=SECONDS_PER_FETCH,
            check=False,
            cwd=partial,
        )
        fetched = _in_folder(name, partial)
        if done.returncode or fetched is None:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise UserError(
                f"apt-get could not fetch {name} ({reason}); run apt-get update, check the network, or give a folder "
                f"with {name}_*.deb by --packages"
            )
        cache.mkdir(parents=True, exist_ok=True)
        return fetched.rename(cache / fetched.name)
    except subprocess.TimeoutExpired:
        raise UserError(
            f"apt-get took more than {SECONDS_PER_FETCH} s for {name}; start again, fetched packages are kept"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def find_debian_package(name: str, folder: Path) -> Path:
    """Return ``NAME_*.deb`` or the unpacked folder ``NAME`` in a folder of the user.

    Raises:
        UserError: It is missing.
    """
    found = _in_folder(name, folder) or (folder / name)
    if not found.exists():
        raise UserError(
            f"--packages {folder}: neither {name}_*.deb nor a folder {name} is there; get it with: apt-get download "
            f"{name}"
        )
    return found


def read_debian_package(name: str, path: Path, wanted: str) -> DebianContent:
    r"""Read the files of a package whose path matches a pattern.

    Args:
        name: Of the package.
        path: The ``.deb``, or a folder into which it was unpacked.
        wanted: Pattern of whole paths, such as ``usr/share/.*\\.png``.

    Raises:
        UserError: Not a package, damaged, or larger than the limits.
    """
    pattern = re.compile(wanted)
    if path.is_dir():
        inside = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if _is_plain(file)}
        chosen = {member: file for member, file in inside.items() if pattern.fullmatch(member)}
        _check_size(path, sum(file.stat().st_size for file in chosen.values()))
        files = {member: file.read_bytes() for member, file in chosen.items()}
        return DebianContent(files, {"name": name, "version": None, "sha256": None})
    try:
        parts = _ar_members(path)
        control = _read_tar(path, *parts["control"], re.compile(r"control"), CONTROL_BYTES)
        version = re.search(rb"^Version: *(\S+)", control.get("control", b""), re.MULTILINE)
        files = _read_tar(path, *parts["data"], pattern, MEMBER_BYTES)
    except (KeyError, EOFError, ValueError, OSError, lzma.LZMAError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a readable Debian package ({error!r}); download it again") from error
    stated = version[1].decode("ascii", "replace") if version else None
    return DebianContent(files, {"name": name, "version": stated, "sha256": file_sha256(path)})


def _in_folder(name: str, folder: Path) -> Path | None:
    return max(folder.glob(f"{name}_*.deb"), default=None)


def _is_plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink()


def _check_size(path: Path, size: int) -> None:
    if size > WANTED_BYTES:
        raise UserError(f"{path}: its wanted files take more than {WANTED_BYTES} bytes; this is not the package")


def _ar_members(path: Path) -> dict[str, tuple[str, int, int]]:
    """Return control and data of a ``.deb`` (deb(5)): compression, offset and length of each."""
    found: dict[str, tuple[str, int, int]] = {}
    with path.open("rb") as file:
        if file.read(len(AR_MAGIC)) != AR_MAGIC:
            raise ValueError("no ar archive")
        while len(header := file.read(AR_HEADER)) == AR_HEADER:
            stem, _, kind = header[:16].decode("ascii").strip().rstrip("/").partition(".tar")
            length = int(header[48:58])
            found[stem] = (kind.removeprefix("."), file.tell(), length)
            file.seek(length + length % 2, io.SEEK_CUR)
    return found


def _read_tar(
    path: Path, kind: str, offset: int, length: int, pattern: re.Pattern[str], limit: int
) -> dict[str, bytes]:
    if kind not in ("", "xz", "gz"):
        raise ValueError(f"compressed by {kind}, which is not read here: unpack it with dpkg-deb -x")
    files: dict[str, bytes] = {}
    size = 0
    with path.open("rb") as file:
        part = _Part(file, offset, length)
        with tarfile.open(fileobj=part, mode=f"r|{kind}") as archive:  # type: ignore[call-overload]
            for member in archive:
                name = member.name.removeprefix("./")
                if not member.isreg() or not pattern.fullmatch(name):
                    continue
                size += member.size
                if member.size > limit:
                    raise UserError(f"{path}: {name} is larger than {limit} bytes; this is not the package")
                _check_size(path, size)
                content = archive.extractfile(member)
                files[name] = content.read() if content else b""
    return files


class _Part(io.RawIOBase):
    """A part of a file, read in order."""

    def __init__(self, file: io.BufferedReader, offset: int, length: int) -> None:
        """Start at the part's first byte."""
        file.seek(offset)
        self.file, self.left = file, length

    def readable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes, at most ``size``."""
        content = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(content)
        return content

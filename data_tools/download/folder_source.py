"""A folder of images on this machine or behind an address that fsspec opens, listed safely and staged locally."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from rich.progress import track

from data_tools.links.image_folder import BESIDE, READ_SUFFIXES, is_caption_table, is_system_name, unread_fault
from leam_mm.data.image_limits import UNREAD_SUFFIXES
from leam_mm.errors import UserError
from leam_mm.files import atomic_write

WEB_SCHEMES = ("http", "https", "ftp")  # servers of strangers, which download_shards asks for their reservations
MAX_TABLE = 1 << 30  # bytes of a table of captions
MAX_CAPTION = 1 << 16  # bytes of a text file beside an image
OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)  # a disk cannot hold a file of this name


@dataclass(frozen=True)
class SourceFile:
    """A file to gather.

    Args:
        name: Path relative to the source, with slashes.
        path: Path in the file system.
        size: Bytes, or None if the file system does not say.
        fault: Why the file is not gathered, or an empty text.
    """

    name: str
    path: str
    size: int | None
    fault: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the name is that of an image."""
        return PurePosixPath(self.name).suffix.lower() in READ_SUFFIXES or is_unread(self.name)


def is_unread(name: str) -> bool:
    """Return whether a file is an image in a format that is not read."""
    return PurePosixPath(name).suffix.lower() in UNREAD_SUFFIXES


def open_source(address: str) -> tuple[AbstractFileSystem, str, bool]:
    """Return the file system behind an address, the folder in it, and whether it is on this machine.

    Raises:
        UserError: The address is a web server, or fsspec cannot open it.
    """
    schemes = re.findall(r"([A-Za-z][A-Za-z0-9+.-]*)://", address)
    if any(scheme.lower() in WEB_SCHEMES for scheme in schemes):
        raise UserError(f"--source {address} is a web server: use download_shards, which checks reservations of rights")
    try:
        system, root = fsspec.core.url_to_fs(address)
        if not system.exists(root) and not system.find(root):
            raise FileNotFoundError("there is no such folder")
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(f"--source {address} cannot be opened ({str(error)[:200]}): correct the address") from None
    local = "file" in (system.protocol if isinstance(system.protocol, tuple | list) else (system.protocol,))
    return system, root, local


def list_files(system: AbstractFileSystem, root: str, local: bool, max_bytes: int) -> list[SourceFile]:
    """Return the images, captions and tables of a source, sorted by name.

    An image or caption whose name or size is not accepted states its fault, and does not end the run.

    Raises:
        UserError: A link leads out of the folder, a table is too large, or no image can be gathered.
    """
    prefix = root.rstrip("/")
    found = []
    for path, info in sorted(system.find(root, detail=True).items()):
        name = str(path)[len(prefix) :].lstrip("/") if str(path).startswith(prefix) else str(path)
        suffix = PurePosixPath(name).suffix.lower()
        parts, table = name.split("/"), is_caption_table(name)
        known = suffix in READ_SUFFIXES or suffix in UNREAD_SUFFIXES or suffix in BESIDE or table
        if not known or any(map(is_system_name, parts)):
            continue
        fault = unread_fault(name).reason if is_unread(name) else ""
        if ".." in parts or "" in parts or "\\" in name:
            fault = f"the file name {name!r:.200} leads out of the folder; rename it"
        elif re.search(r"[\x00-\x1f\x7f]", name):
            fault = f"the file name {name!r:.200} has control characters; rename it"
        if local and not Path(path).resolve().is_relative_to(Path(root).resolve()):
            raise UserError(f"{path} is a link that leads out of {root}; copy the file instead")
        size = info.get("size")
        limit = max_bytes if suffix in READ_SUFFIXES else MAX_TABLE if table else MAX_CAPTION
        if size is not None and size > limit:
            fault = fault or f"{name!r:.200} has {size} bytes, more than {limit}: make it smaller, or remove it"
        if fault and table:
            raise UserError(f"--source: {fault}")
        found.append(SourceFile(name, str(path), size, fault))
    images = [file for file in found if file.is_image]
    if images and all(file.fault for file in images):
        raise UserError(f"--source: no image can be gathered: {images[0].fault}")
    if not images:
        raise UserError(f"--source holds no image ({', '.join(sorted(READ_SUFFIXES))}): give another folder")
    return found


def stage_files(
    system: AbstractFileSystem, local: bool, files: list[SourceFile], folder: Path, max_bytes: int
) -> dict[str, str]:
    """Link or copy files into a folder; complete files of an earlier run are kept.

    Returns:
        The images that are not gathered, with the reason.

    Raises:
        UserError: The disk is full, or the source cannot be read.
    """
    staged = [_stage(system, local, file, folder, max_bytes) for file in track(files, "gather", transient=True)]
    refused = {file.name: file.fault for file in staged if file.is_image and file.fault}
    if any(is_caption_table(file.name) for file in files):
        return refused
    texts = {PurePosixPath(file.name).with_suffix(""): file.fault for file in staged if not file.is_image}
    for file in staged:
        fault = texts.get(PurePosixPath(file.name).with_suffix("")) if file.is_image and not file.fault else None
        if fault:
            refused[file.name] = fault
            (folder / file.name).unlink(missing_ok=True)
    return refused


def _stage(system: AbstractFileSystem, local: bool, file: SourceFile, folder: Path, max_bytes: int) -> SourceFile:
    """Link or copy a file, and return it, with its fault if a disk cannot hold its name."""
    if file.fault:
        return file
    target = folder / file.name
    try:
        if target.is_file() and (file.size is None or target.stat().st_size == file.size):
            return file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if local:
            with suppress(OSError):  # on another disk, or one without hard links
                os.link(Path(file.path).resolve(), target)
                return file
        with (
            atomic_write(target) as temporary,
            system.open(file.path, "rb") as source,
            open(temporary, "wb") as copy,
        ):
            for block in _blocks(source, max(max_bytes, MAX_TABLE), file.name):
                copy.write(block)
    except OSError as error:
        if error.errno in OF_NAMES:
            return replace(
                file, fault=f"the file name {file.name!r:.200} cannot be copied ({error.strerror}); shorten it"
            )
        raise UserError(
            f"--source: {file.name!r:.200} cannot be copied ({error.strerror or error}): free the disk, or make it "
            "readable, then start the same command again"
        ) from None
    return file


def _blocks(source: Any, limit: int, name: str) -> Iterator[bytes]:
    """Yield a file's content, never more than the limit, whatever size the file system stated."""
    read = 0
    while block := source.read(1 << 20):
        read += len(block)
        if read > limit:
            raise UserError(f"--source: {name} has more than {limit} bytes: make it smaller, or remove it")
        yield block

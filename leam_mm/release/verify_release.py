"""Check of a whole release: every digest, every name, every repeated fact, and the signature."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leam_mm.data.hash_files import read_hashes
from leam_mm.errors import UserError, one_line
from leam_mm.files import file_sha256
from leam_mm.marking.deletion_list import FILE as DELETION_LIST
from leam_mm.release.digest_cache import DigestCache
from leam_mm.release.folder_files import Fault, list_files
from leam_mm.release.hostile_files import content_faults
from leam_mm.release.model_signature import check_signature
from leam_mm.release.stated_facts import contradictions, document_contradictions
from leam_mm.release_record import RELEASE, SIGNATURE, ReleaseRecord, read_record

READERS = 4  # threads that read files


@dataclass
class Verification:
    """Outcome of a check.

    Args:
        release: Name of the release as it states it; empty if its record cannot be read.
        own_sha256: Its name by content; None in releases of format 1.
        files: Number of files, the record and the signature included.
        bytes: Size of all of them.
        signature: ``verified``, ``not checked`` (no public key was given), ``none`` or ``wrong``.
        faults: What is wrong; empty if nothing is.
        notes: What else a reader should know.
        digests: Computed SHA-256 of each file that could be read.
    """

    release: str = ""
    own_sha256: str | None = None
    files: int = 0
    bytes: int = 0
    signature: str = "none"
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the outcome for a JSON file."""
        return {
            "release": self.release,
            "own_sha256": self.own_sha256,
            "files": self.files,
            "bytes": self.bytes,
            "signature": self.signature,
            "faults": [{"file": fault.file, "fault": fault.text} for fault in self.faults],
            "notes": self.notes,
        }


def verify_release(
    folder: Path,
    public_key: Path | None = None,
    cache: DigestCache | None = None,
    progress: Callable[[int], object] = lambda _: None,
    signed: bool = True,
) -> Verification:
    """Check a release that may come from a stranger.

    Args:
        folder: The release.
        public_key: PEM file of the publisher's public key (ECDSA P-256); None leaves the signature unchecked.
        cache: Digests of large files; None reads every file.
        progress: Called with the number of bytes after each file.
        signed: Whether a signature in the release is looked at.

    Raises:
        UserError: There is no such folder, or the public key cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder of a release")
    listing = list_files(folder)
    found = Verification(files=len(listing.files), bytes=sum(listing.files.values()), faults=listing.faults)
    if of_the_hub := [name for name in listing.ignored if name != DELETION_LIST]:
        found.notes.append(f"not part of the release, added by a hub: {', '.join(of_the_hub)}")
    if DELETION_LIST in listing.ignored:
        _deletion_list(folder / DELETION_LIST, found)
    try:
        record = read_record(folder)
    except UserError as error:
        found.faults.append(Fault(RELEASE, one_line(error).replace(f"{folder / RELEASE} ", "")))
        return found
    found.release, found.own_sha256 = str(record.content.get("name")), record.own_sha256
    if record.own_sha256 is None:
        found.notes.append(f"{RELEASE} is of format 1 and states no digest of itself: only a signature protects it")
    _compare_files(folder, listing.files, record, cache or DigestCache(None), found, progress)
    damaged = {fault.file for fault in found.faults}
    for name in listing.files:
        if name not in damaged:
            found.faults += [Fault(name, text) for text in content_faults(folder / name, name)]
    if not found.faults:  # documents that are damaged need not agree
        found.faults += contradictions(folder, record)
        found.faults += document_contradictions(folder, record)
    if signed:
        _signature(folder, public_key, found)
    return found


def _compare_files(
    folder: Path,
    present: dict[str, int],
    record: ReleaseRecord,
    cache: DigestCache,
    found: Verification,
    progress: Callable[[int], object],
) -> None:
    """Add a fault for each file that is missing, extra, or has another size or digest than stated."""
    refused = {fault.file for fault in found.faults}
    for name in record.files.keys() - present.keys() - refused:
        found.faults.append(Fault(name, f"missing: {RELEASE} states it"))
    for name in present.keys() - record.files.keys() - {RELEASE, SIGNATURE}:
        found.faults.append(Fault(name, f"not part of the release: {RELEASE} does not state it"))
    sized = []
    for name in present:
        stated = record.files.get(name)
        if stated is not None and stated.bytes not in (None, present[name]):
            found.faults.append(Fault(name, f"changed: it has {present[name]:,} bytes, not {stated.bytes:,}"))
        elif name != SIGNATURE:
            sized.append(name)

    def digest(name: str) -> str | Fault:
        try:
            return cache.sha256(folder / name)
        except (UserError, OSError) as error:
            return Fault(name, f"cannot be read ({error.__class__.__name__})")
        finally:
            progress(present[name])

    with ThreadPoolExecutor(READERS) as pool:
        for name, value in zip(sized, pool.map(digest, sized), strict=True):
            if isinstance(value, Fault):
                found.faults.append(value)
                continue
            found.digests[name] = value
            if name in record.files and value != record.files[name].sha256:
                found.faults.append(Fault(name, f"changed: its SHA-256 is not the one that {RELEASE} states"))
    cache.save()
    found.faults.sort(key=lambda fault: fault.file)


def _deletion_list(path: Path, found: Verification) -> None:
    """Check the list of images that the publisher wants to be refused; it is newer than the release."""
    try:
        count = len(read_hashes(path)["pdq"])
        digest = file_sha256(path)
        found.notes.append(f"{path.name}: {count} hashes, not part of the release and not signed; sha256 {digest}")
    except UserError as error:
        found.faults.append(Fault(path.name, one_line(error)))


def _signature(folder: Path, public_key: Path | None, found: Verification) -> None:
    path = folder / SIGNATURE
    if not path.is_file() or path.is_symlink():
        if public_key is not None:
            found.faults.append(Fault(SIGNATURE, "missing: a public key was given, but the release is not signed"))
        return
    faults = list(check_signature(path, found.digests, public_key))
    found.faults += faults
    found.signature = "wrong" if faults else "not checked" if public_key is None else "verified"

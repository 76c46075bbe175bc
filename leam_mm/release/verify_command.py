"""Check a release folder and name what is wrong with it: ``release verify``."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from leam_mm.files import write_json
from leam_mm.release.digest_cache import DigestCache, cache_file
from leam_mm.release.folder_files import list_files, printable
from leam_mm.release.verify_release import Verification, verify_release


@dataclass(frozen=True)
class VerifyOptions:
    """Check a release: digests, missing and extra files, contradictions, the signature. Exit code 1 names each fault.

    Args:
        folder: The release folder.
        public_key: Public key of its publisher (PEM, ES256), to check the signature.
        json: Write the outcome to this JSON file, too.
        no_cache: Read large files again, even if they did not change since the last check.
    """

    folder: Path
    public_key: Path | None = None
    json: Path | None = None
    no_cache: bool = False


def verify(options: VerifyOptions) -> int:
    """Check a release, print one line for each fault and return the exit code."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    cache = DigestCache(None if options.no_cache else cache_file())
    total = sum(list_files(options.folder).files.values()) if options.folder.is_dir() else 0
    with Progress(TextColumn("read"), BarColumn(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("read", total=total)
        found = verify_release(options.folder, options.public_key, cache, lambda size: bar.advance(task, size))
    if options.json is not None:
        write_json(options.json, found.as_dict())
    show(found, options.folder, console, cache.hits)
    return 1 if found.faults else 0


def show(found: Verification, folder: Path, console: Console, cached: int = 0) -> None:
    """Print the outcome of a check.

    Args:
        found: The outcome.
        folder: The release.
        console: Where to print; it renders no markup.
        cached: Number of files whose digest was known from an earlier check.
    """
    for fault in found.faults:
        console.print(fault.line)
    for note in found.notes:
        console.print(f"note: {printable(note)}")
    if found.faults:
        count = len(found.faults)
        console.print(f"{folder} is not the release that was published: {count} fault{'s' if count > 1 else ''}")
        return
    signature = {
        "verified": "signature verified",
        "not checked": "signature not checked (give --public-key)",
        "none": "not signed",
    }[found.signature]
    known = f", {cached} digests known from an earlier check" if cached else ""
    size = f"{found.files} files, {found.bytes:,} bytes{known}"
    console.print(f"{folder} is intact: {printable(found.release)}, {size}; {signature}")

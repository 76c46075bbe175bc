"""What is published: a checked release under the name of a version."""

import re
from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.release.verify_release import Verification
from leam_mm.release_record import RELEASE, SIGNATURE, read_record

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
RESERVED = {"main", "latest", "head"}


@dataclass(frozen=True)
class Publication:
    """A checked release under the name of a version.

    Args:
        folder: The release.
        name: Its name.
        version: Name of the version.
        licence: Licence of the weights.
        own_sha256: Name by content.
        signed: Whether it has a signature.
        digests: SHA-256 of each file.
        sizes: Bytes of each file.
        latest: Whether it becomes the latest version.
    """

    folder: Path
    name: str
    version: str
    licence: str
    own_sha256: str
    signed: bool
    digests: dict[str, str]
    sizes: dict[str, int]
    latest: bool = True

    @property
    def names(self) -> list[str]:
        """Files in the order of their upload; the record ends it."""
        return [*sorted(self.digests.keys() - {RELEASE}), RELEASE]


def prepare(folder: Path, found: Verification, version: str | None, latest: bool) -> Publication:
    """Return a release as a version.

    Args:
        folder: The release.
        found: Outcome of its check, without faults.
        version: Name of the version; None takes that of the release, else the first 12 digits of ``own_sha256``.
        latest: Whether it becomes the latest version.

    Raises:
        UserError: The name of the version cannot be used, or the release is of format 1.
    """
    record = read_record(folder)
    if record.own_sha256 is None:
        raise UserError(f"{folder} is a release of format 1, which has no name by content: build it again")
    chosen = version or record.content.get("version") or record.own_sha256[:12]
    if not VERSION.fullmatch(str(chosen)) or str(chosen).lower() in RESERVED:
        raise UserError(f"--version {chosen!r:.80}: give letters, digits and . _ + - such as 1.0.0, and not 'latest'")
    digests = {name: digest for name, digest in found.digests.items()}
    if (folder / SIGNATURE).is_file():
        from leam_mm.files import file_sha256

        digests[SIGNATURE] = file_sha256(folder / SIGNATURE)
    sizes = {name: (folder / name).stat().st_size for name in digests}
    licence = str(record.content.get("licence"))
    signed = SIGNATURE in digests
    return Publication(folder, found.release, str(chosen), licence, record.own_sha256, signed, digests, sizes, latest)

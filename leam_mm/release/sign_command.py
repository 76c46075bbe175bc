"""Sign a release folder with a key: ``release sign``."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from leam_mm.errors import UserError
from leam_mm.files import remove_leftovers
from leam_mm.release.model_signature import check_private_key, sign_release, write_public_key
from leam_mm.release.verify_command import show
from leam_mm.release.verify_release import verify_release
from leam_mm.release_record import SIGNATURE
from leam_mm.run_lock import beside, run_lock


@dataclass(frozen=True)
class SignOptions:
    """Sign all files of a release, offline: model.sig of OpenSSF model-signing. A release with a fault is not signed.

    Args:
        folder: The release folder.
        private_key: Private key (PEM, ES256), such as one of ``python -m leam_mm.marking make-key --algorithm es256``.
        public_key: Write the public key to this file, too.
    """

    folder: Path
    private_key: Path
    public_key: Path | None = None


def sign(options: SignOptions) -> int:
    """Check and sign a release, and return the exit code."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    check_private_key(options.private_key, options.folder)
    if not options.folder.is_dir():
        raise UserError(f"{options.folder} is no folder: give that of a release")  # before its lock would make one
    with run_lock(beside(options.folder), options.folder):
        remove_leftovers(options.folder, SIGNATURE)  # a file more would be a fault of the release
        found = verify_release(options.folder, signed=False)  # an older signature is replaced
        if found.faults:
            show(found, options.folder, console)
            console.print("not signed: build the release again")
            return 1
        sign_release(options.folder, found.release, found.digests, options.private_key)
    console.print(f"signed {len(found.digests)} files of {options.folder}: {SIGNATURE}")
    if options.public_key is not None:
        write_public_key(options.private_key, options.public_key)
        console.print(f"wrote {options.public_key}")
    console.print("give people the public key by another way than the release, such as your own site")
    return 0

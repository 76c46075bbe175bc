"""Make a key that signs generated images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leam_mm.errors import UserError
from leam_mm.marking.signing_key import NAME, default_path, make_key


@dataclass(frozen=True)
class MakeKeyOptions:
    """Make a key that signs generated images, with certificates that name no authority.

    Args:
        output: The file, readable by its owner only; by default LEAM_MM_KEY or the file in the folder of settings.
        algorithm: ed25519, or es256 (ECDSA with P-256).
        name: Name that readers show as the signer.
        overwrite: Replace an existing key; images that it signed stay valid.
    """

    output: Path | None = None
    algorithm: Literal["ed25519", "es256"] = "ed25519"
    name: str = NAME
    overwrite: bool = False


def write_key(options: MakeKeyOptions) -> int:
    """Write the key."""
    path = options.output or default_path()
    if path.exists() and not options.overwrite:
        raise UserError(f"{path} is there already: give another --output, or --overwrite")
    make_key(path, options.algorithm, options.name)
    print(f"wrote {path} (mode 0600): keep it secret, and set LEAM_MM_KEY={path} to sign with it")
    print("readers will show its signatures as valid, and the signer as untrusted: no authority issued the certificate")
    return 0

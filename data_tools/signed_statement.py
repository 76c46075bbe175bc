"""Sign a statement with Ed25519 (RFC 8032), or check a signature, without a server.

    python data_tools/signed_statement.py make-key --key lab.pem
    python data_tools/signed_statement.py sign statement.json --key lab.pem
    python data_tools/signed_statement.py verify statement.json --public-key lab.pem.pub

The signature of ``statement.json`` is the file ``statement.json.sig`` beside it; it covers the exact bytes. Keep
``lab.pem`` secret. Publish ``lab.pem.pub`` where others find it independently of you, for example in a law gazette, a
DOI record or the imprint of your website.
"""

from dataclasses import dataclass
from pathlib import Path

from data_tools.work.signature import make_key, read_private_key, read_public_key, sign_file, verify_file
from leam_mm.command_line import parse_commands
from leam_mm.errors import run


@dataclass
class MakeKey:
    """Make a key pair.

    Args:
        key: File of the secret key to write; the public key gets the same name with .pub added.
    """

    key: Path


@dataclass
class Sign:
    """Sign a file.

    Args:
        file: File to sign.
        key: Secret key.
    """

    file: Path
    key: Path


@dataclass
class Verify:
    """Check a signature.

    Args:
        file: File that was signed.
        public_key: Public key of the expected signer.
        signature: Signature file; by default FILE.sig.
    """

    file: Path
    public_key: Path
    signature: Path | None = None


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    commands = {"make-key": MakeKey, "sign": Sign, "verify": Verify}
    settings = parse_commands(commands, __doc__, args, {"sign": ("file",), "verify": ("file",)})
    if isinstance(settings, MakeKey):
        print(f"{make_key(settings.key)}: publish this one; {settings.key} stays secret")
    elif isinstance(settings, Sign):
        print(f"wrote {sign_file(settings.file, read_private_key(settings.key))}")
    else:
        signer = verify_file(settings.file, read_public_key(settings.public_key), settings.signature)
        print(f"{settings.file}: signed with {signer}")


if __name__ == "__main__":
    run(main)

"""Sign a statement with Ed25519 (RFC 8032), and check a signature, without anybody's server.

    python data_tools/signed_statement.py make-key --key lab.pem
    python data_tools/signed_statement.py sign statement.json --key lab.pem
    python data_tools/signed_statement.py verify statement.json --public-key lab.pem.pub

The signature lies beside the file as ``statement.json.sig`` and covers its bytes as they are. ``lab.pem`` stays secret;
``lab.pem.pub`` is published where others find it without us, for example in a law gazette, a DOI record or the imprint.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from leam_mm.errors import UserError, run

SUFFIX = ".sig"
ALGORITHM = "Ed25519"
MAX_BYTES = 1_000_000  # of a key or signature file: a stranger's may be anything


def make_key(path: Path) -> Path:
    """Make a new key: the secret half at ``path`` (for its owner only), the public half beside it.

    Returns:
        Where the public half lies.
    """
    public = public_path(path)
    for place in (path, public):
        if place.exists():
            raise UserError(f"{place} exists already: a key that is overwritten is lost; give another --key")
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def public_path(path: Path) -> Path:
    """Where the public half of a key lies."""
    return path.with_name(path.name + ".pub")


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Open a secret key.

    Raises:
        UserError: It is missing, protected by a password, or of another kind.
    """
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path} is no secret {ALGORITHM} key without password: make one with make-key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is a key of another kind than {ALGORITHM}: make one with make-key")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Open a public key, likewise."""
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path} is no public key in PEM: give the file that make-key wrote, ending in .pub") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is a key of another kind than {ALGORITHM}")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key's 32 bytes, by which people compare keys."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()


def sign_file(path: Path, key: Ed25519PrivateKey) -> Path:
    """Sign the bytes of a file; the same file and key always give the same signature (RFC 8032, 5.1.6)."""
    content = path.read_bytes()
    signature = {
        "algorithm": ALGORITHM,
        "public_key_sha256": fingerprint(key.public_key()),
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "signature": base64.b64encode(key.sign(content)).decode(),
    }
    place = path.with_name(path.name + SUFFIX)
    temporary = place.with_name(f"{place.name}.tmp-{os.getpid()}")
    temporary.write_text(json.dumps(signature, indent=1) + "\n", encoding="ascii")
    os.replace(temporary, place)
    return place


def verify_file(path: Path, key: Ed25519PublicKey, signature: Path | None = None) -> str:
    """Check a file against the signature beside it.

    Args:
        path: What was signed.
        key: Of who should have signed it; it must come from elsewhere than the statement.
        signature: The signature file, where it does not lie beside.

    Returns:
        The key's fingerprint.

    Raises:
        UserError: The signature is another's, damaged, or the file was changed.
    """
    place = signature or path.with_name(path.name + SUFFIX)
    try:
        found = json.loads(_read(place))
        raw, algorithm, signer = found["signature"], found["algorithm"], found["public_key_sha256"]
        decoded = base64.b64decode(raw, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise UserError(f"{place} is no signature of this program: ask its sender for the file again") from None
    if algorithm != ALGORITHM:
        raise UserError(f"{place} says {str(algorithm)[:40]!r}, only {ALGORITHM} is accepted")
    own = fingerprint(key)
    if signer != own:
        raise UserError(f"{place} was made with the key {str(signer)[:12]}, the given one is {own[:12]}")
    try:
        key.verify(decoded, path.read_bytes())
    except InvalidSignature:
        raise UserError(f"{path} is not what was signed: file or signature was changed") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    return own


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the right file") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes: it is no key or signature")
    return content


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make-key", help="make a key pair")
    make.add_argument("--key", type=Path, required=True, help="file of the secret key; the public one gets .pub")
    sign = commands.add_parser("sign", help="sign a file")
    sign.add_argument("file", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="secret key")
    verify = commands.add_parser("verify", help="check a signature")
    verify.add_argument("file", type=Path)
    verify.add_argument("--public-key", type=Path, required=True, help="of who should have signed")
    verify.add_argument("--signature", type=Path, help="signature file (default: FILE.sig)")
    settings = parser.parse_args(args)
    if settings.command == "make-key":
        print(f"{make_key(settings.key)}: publish this one; {settings.key} stays secret")
    elif settings.command == "sign":
        print(f"wrote {sign_file(settings.file, read_private_key(settings.key))}")
    else:
        signer = verify_file(settings.file, read_public_key(settings.public_key), settings.signature)
        print(f"{settings.file}: signed with {signer}")


if __name__ == "__main__":
    run(main)

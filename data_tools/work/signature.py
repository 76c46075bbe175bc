"""Ed25519 signatures (RFC 8032) of files, and their keys in PEM files."""

import base64
import binascii
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

from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256, write_json

SUFFIX = ".sig"
ALGORITHM = "Ed25519"
MAX_BYTES = 1_000_000  # of a key or signature file, which may come from a stranger


def make_key(path: Path) -> Path:
    """Write a new secret key to ``path``, readable by its owner only, and the public key beside it.

    Returns:
        Path of the public key.

    Raises:
        UserError: One of the files exists.
    """
    public = path.with_name(path.name + ".pub")
    for existing in (path, public):
        if existing.exists():
            raise UserError(f"{existing} exists already: a key that is overwritten is lost; give another --key")
    key = Ed25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a secret key.

    Raises:
        UserError: The file is missing, protected by a password, or of another kind.
    """
    try:
        key = load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(f"{path} is not a secret {ALGORITHM} key without a password: make one with make-key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} is not an {ALGORITHM} key: make one with make-key")
    return key


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        UserError: The file is missing or of another kind.
    """
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path} is not a public key in PEM format: give the .pub file that make-key wrote") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} is not an {ALGORITHM} key: give the .pub file that make-key wrote")
    return key


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of the key's 32 bytes, by which people compare keys."""
    return bytes_sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def sign_file(path: Path, key: Ed25519PrivateKey) -> Path:
    """Sign the bytes of a file and return the signature file; it is deterministic (RFC 8032, 5.1.6)."""
    content = path.read_bytes()
    signature = {
        "algorithm": ALGORITHM,
        "public_key_sha256": fingerprint(key.public_key()),
        "file_sha256": bytes_sha256(content),
        "signature": base64.b64encode(key.sign(content)).decode(),
    }
    file = path.with_name(path.name + SUFFIX)
    write_json(file, signature)
    return file


def verify_file(path: Path, key: Ed25519PublicKey, signature: Path | None = None) -> str:
    """Check the signature of a file.

    Args:
        path: The file that was signed.
        key: Public key of the expected signer; get it independently of the file.
        signature: The signature file; by default the one beside ``path``.

    Returns:
        The key's fingerprint.

    Raises:
        UserError: Another key signed it, the signature is damaged, or the file was changed.
    """
    file = signature or path.with_name(path.name + SUFFIX)
    try:
        found = json.loads(_read(file))
        raw, algorithm, signer = found["signature"], found["algorithm"], found["public_key_sha256"]
        decoded = base64.b64decode(raw, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise UserError(f"{file} is not a signature of this program: ask the sender for the file again") from None
    if algorithm != ALGORITHM:
        raise UserError(f"{file} names the algorithm {str(algorithm)[:40]!r}: only {ALGORITHM} is accepted")
    own = fingerprint(key)
    if signer != own:
        raise UserError(
            f"{file} was made with the key {str(signer)[:12]}, the given one is {own[:12]}: use the right key"
        )
    try:
        key.verify(decoded, path.read_bytes())
    except InvalidSignature:
        raise UserError(f"{path} does not match its signature: one of them was changed") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the signed file") from None
    return own


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the right file") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES} bytes: give a key or signature file")
    return content

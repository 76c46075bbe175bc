"""Signature over a whole release in OpenSSF's model-signing format: a Sigstore bundle, made with a key, offline.

The bundle ``model.sig`` holds an in-toto statement with the SHA-256 of every other file in a DSSE envelope. Its own
program checks it, too: ``python -m model_signing verify key DIR --signature DIR/model.sig --public_key KEY``.

Format: https://github.com/sigstore/model-transparency, docs/model_signing_format.md; https://docs.sigstore.dev/about/bundle;
https://github.com/secure-systems-lab/dsse.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from leam_mm.errors import UserError
from leam_mm.files import atomic_write, write_bytes
from leam_mm.json_text import parse_object
from leam_mm.marking.deletion_list import FILE as DELETION_LIST
from leam_mm.release.folder_files import Fault, printable
from leam_mm.release_record import SIGNATURE

MAX_SIGNATURE, MAX_KEY = 1 << 24, 1 << 16  # bytes
# What a hub adds to its copies, and the list that the publisher refreshes later.
IGNORED = [SIGNATURE, ".gitattributes", ".cache/huggingface", DELETION_LIST]
MISSING = "model-signing is not installed: pip install 'leam_mm[sign]'"
# Fields of a bundle that a key made; all others are refused, for no signature protects them.
BUNDLE = {"mediaType", "verificationMaterial", "dsseEnvelope"}
MATERIAL, KEY = {"publicKey", "tlogEntries"}, {"hint"}
ENVELOPE, SIGNED = {"payload", "payloadType", "signatures"}, {"sig"}
STYLES: tuple[dict[str, Any], ...] = ({}, {"separators": (",", ":")}, {"indent": 2}, {"indent": 1})


def sign_release(folder: Path, name: str, digests: Mapping[str, str], private_key: Path) -> None:
    """Write model.sig into a release; an older one is replaced.

    Args:
        folder: The release.
        name: Its name, the subject of the statement.
        digests: SHA-256 of each file but the signature, by path inside the release.
        private_key: PEM file of an ECDSA key on the curve P-256.

    Raises:
        UserError: The key is none, or the library is missing.
    """
    check_private_key(private_key, folder)
    signing = _library().signing
    config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_known_digests(name, digests))
    with atomic_write(folder / SIGNATURE) as temporary:
        config.sign(folder, temporary)


def check_signature(path: Path, digests: Mapping[str, str], public_key: Path | None) -> Iterator[Fault]:
    """Yield what is wrong with a signature.

    Args:
        path: The bundle, a regular file.
        digests: Computed SHA-256 of each other file.
        public_key: PEM file of the publisher's public key; None compares the signed digests alone.

    Raises:
        UserError: The public key cannot be read, or the library is missing.
    """
    try:
        signed = signed_digests(path)
    except (OSError, ValueError) as error:
        yield Fault(SIGNATURE, f"no sound signature: {error}")
        return
    for name in sorted(signed.keys() | digests.keys()):
        if signed.get(name) != digests.get(name):
            state = "is not signed" if name not in signed else "is missing" if name not in digests else "changed"
            yield Fault(name, f"{state} since the release was signed")
    if public_key is None:
        return
    check_public_key(public_key)
    config = _library().verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    config.set_hashing_config(_known_digests("", digests))
    try:
        config.verify(path.parent, path)
    except Exception as error:  # of cryptography, pydantic and the library itself
        text = printable(" ".join(str(error).split()) or type(error).__name__)
        if not text.startswith("Signature mismatch"):  # named file by file above
            yield Fault(SIGNATURE, f"not made by the owner of {public_key.name}, or changed: {text}")


def signed_digests(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each signed file as a bundle states it; the signature itself is not checked.

    Raises:
        ValueError: It is no bundle of a key, or holds anything that no signature protects.
    """
    if path.stat().st_size > MAX_SIGNATURE:
        raise ValueError(f"it is larger than {MAX_SIGNATURE} bytes")
    content = path.read_bytes()
    bundle = parse_object(content)
    text = content.decode("utf-8").removesuffix("\n")
    if not any(text == json.dumps(bundle, ensure_ascii=plain, **style) for style in STYLES for plain in (True, False)):
        raise ValueError("its spacing or an escape was changed")
    material, envelope = bundle.get("verificationMaterial"), bundle.get("dsseEnvelope")
    parts = [(bundle, BUNDLE), (material, MATERIAL), (envelope, ENVELOPE)]
    parts += [(material.get("publicKey") if isinstance(material, dict) else None, KEY)]
    signatures = envelope.get("signatures") if isinstance(envelope, dict) else None
    parts += [(signatures[0] if isinstance(signatures, list) and len(signatures) == 1 else None, SIGNED)]
    for part, names in parts:
        if not isinstance(part, dict) or part.keys() - {"keyid"} != names or part.get("keyid"):
            raise ValueError(f"it has not exactly the fields {', '.join(sorted(names))}")
    assert isinstance(material, dict) and isinstance(envelope, dict) and isinstance(signatures, list)
    if material["tlogEntries"] != []:
        raise ValueError("it names entries of a transparency log, which a signature by a key has not")
    _decoded(signatures[0]["sig"])
    statement = parse_object(_decoded(envelope["payload"]))
    try:
        resources = statement["predicate"]["resources"]
        found = {one["name"]: one["digest"] for one in resources if one["algorithm"] == "sha256"}
        if len(found) != len(resources) or not all(isinstance(value, str) for pair in found.items() for value in pair):
            raise TypeError
    except (KeyError, TypeError):
        raise ValueError("its statement does not name each file once, with its SHA-256") from None
    return found


def check_private_key(file: Path, folder: Path) -> None:
    """Refuse a key that model-signing cannot sign with.

    Args:
        file: The key.
        folder: The release, which would be published with a key that lies in it.

    Raises:
        UserError: It is no unencrypted PEM file of an ECDSA key on P-256, or it lies in the release.
    """
    if file.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{file} lies in the release that it signs: move the private key elsewhere")
    try:
        key = load_pem_private_key(_key_bytes(file), password=None)
    except TypeError:
        raise UserError(f"{file} is encrypted: decrypt it for this command, for example with openssl pkey") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{file} is no private key in PEM: give one of `python -m leam_mm.marking make-key`") from None
    _check_curve(file, key.curve.name if isinstance(key, ec.EllipticCurvePrivateKey) else type(key).__name__)


def write_public_key(private_key: Path, file: Path) -> None:
    """Write the public half of a private key that `check_private_key` accepts, as PEM."""
    key = load_pem_private_key(_key_bytes(private_key), password=None)
    write_bytes(file, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def check_public_key(file: Path) -> None:
    """Refuse a key that model-signing cannot check with.

    Raises:
        UserError: It is no PEM file of an ECDSA public key on P-256.
    """
    try:
        key = load_pem_public_key(_key_bytes(file))
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(
            f"{file} is no public key in PEM: give the file that the publisher of the release names"
        ) from None
    _check_curve(file, key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__)


def _check_curve(file: Path, curve: str) -> None:
    if curve != "secp256r1":
        raise UserError(f"{file} is a key of the kind {curve.strip('_')}: model-signing needs ES256 (ECDSA on P-256)")


def _key_bytes(file: Path) -> bytes:
    try:
        if file.stat().st_size > MAX_KEY:
            raise UserError(f"{file} is larger than {MAX_KEY} bytes: give a key in PEM")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): give the file of a key") from None


def _decoded(text: object) -> bytes:
    """Return the bytes of base64 in its one canonical spelling."""
    if not isinstance(text, str):
        raise ValueError("payload or signature is missing")
    content = base64.b64decode(text, validate=True)
    if base64.b64encode(content).decode() != text:
        raise ValueError("its base64 was changed")
    return content


def _library() -> Any:
    try:
        import model_signing  # in the extra `sign`
    except ImportError:
        raise UserError(MISSING) from None
    return model_signing


def _known_digests(name: str, digests: Mapping[str, str]) -> Any:
    """Return a hashing configuration of the library that takes digests which are computed already."""
    from model_signing import hashing, manifest

    serialization = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": IGNORED}
    )
    digest = hashing.hashing.Digest
    items = [
        manifest.FileManifestItem(path=PurePosixPath(file), digest=digest("sha256", bytes.fromhex(value)))
        for file, value in digests.items()
    ]

    class KnownDigests(hashing.Config):  # type: ignore[misc]
        """Hashes nothing; links and ignored files were refused before."""

        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            """Return the manifest of the known digests."""
            return manifest.Manifest(name, items, serialization)

    return KnownDigests()

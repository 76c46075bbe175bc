"""The key with which generated images are signed, and the certificates that c2pa asks for.

A key file is PEM: the private key (PKCS 8), its certificate, and the certificate of the issuer. ``make_key`` makes all
three; the issuer exists for this one certificate, and its key is thrown away. Readers show such a signature as valid
and its signer as untrusted: it proves that the file did not change since it was signed, not who signed it. An
organisation with a certificate of an issuer on C2PA's trust list puts its key and chain into a file of the same form.

Requirements: C2PA Technical Specification 2.2, section 14.5.1 (X.509 version 3, key usage digitalSignature, an extended
key usage, identifiers of subject and issuer; an end-entity certificate that signs itself is refused).
"""

import datetime
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from leam_mm.errors import UserError
from leam_mm.files import atomic_write
from leam_mm.run_lock import run_lock

Algorithm = Literal["ed25519", "es256"]
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
VARIABLE = "LEAM_MM_KEY"
YEARS = 10
MAX_BYTES = 100_000  # of a key file
NAME = "leam_mm, self-made key"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SigningKey:
    """A private key with its certificates.

    Args:
        algorithm: "ed25519" or "es256".
        private: PEM of the private key (PKCS 8).
        chain: PEM of the certificates, that of the key first.
        name: Common name of the certificate.
    """

    algorithm: Algorithm
    private: str
    chain: str
    name: str

    def __repr__(self) -> str:
        """Leave the private key out of logs."""
        return f"SigningKey({self.algorithm!r}, {self.name!r})"


def default_path() -> Path:
    """Return the file of ``LEAM_MM_KEY``, else marking.pem in the user's folder of settings."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(settings).expanduser() / "leam_mm" / "marking.pem"


def default_key() -> SigningKey:
    """Return the key of ``default_path``; the one in the user's folder is made if missing.

    Raises:
        UserError: The file of ``LEAM_MM_KEY`` is missing, or a file is no key.
        OSError: The key cannot be made, for instance in a read-only home.
    """
    path = default_path()
    if not path.exists():
        if os.environ.get(VARIABLE):
            raise UserError(f"{VARIABLE}={path}: no such file; make it with python -m leam_mm.marking make-key")
        try:
            with run_lock(path.with_name(f"{path.name}.lock"), path):  # of processes that start at once, one makes it
                if not path.exists():
                    make_key(path)
                    log.info("made %s, the key that signs generated images here; nobody else trusts it yet", path)
        except UserError as error:  # the lock stays with another process
            if not path.exists():
                raise OSError(str(error)) from None
    return read_key(path)


def make_key(path: Path, algorithm: Algorithm = "ed25519", name: str = NAME) -> None:
    """Write a new key with its certificates, readable by its owner only.

    Args:
        path: The file; an existing one is replaced.
        algorithm: "ed25519" or "es256" (ECDSA with P-256).
        name: Common name of the certificate, shown to readers; 1 to 64 characters.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise UserError(f"--name {name[:80]!r}: give 1 to 64 printable characters")
    private, issuer = _new(algorithm), _new(algorithm)
    above = _certificate(f"{name[:57]} issuer", issuer, None)
    certificate = _certificate(name, private, (issuer, above))
    content = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    content += b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (certificate, above))
    with atomic_write(path, durable=True) as temporary:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        temporary.chmod(stat.S_IRUSR | stat.S_IWUSR)


def read_key(path: Path) -> SigningKey:
    """Read a key file.

    Raises:
        UserError: It is missing, too large, encrypted, or not such a key with its certificates.
    """
    fix = "give a PEM file with key and certificates, as python -m leam_mm.marking make-key writes it"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        private = serialization.load_pem_private_key(content, None)
        chain = x509.load_pem_x509_certificates(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is no signing key ({error}): {fix}") from None
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    if chain[0].public_key().public_bytes(encoding, form) != private.public_key().public_bytes(encoding, form):
        raise UserError(f"{path}: its first certificate is not that of its key: {fix}")
    with suppress(OSError):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("%s: others can read this private key: chmod 600 it", path)
    names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    pem = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    certificates = "".join(each.public_bytes(encoding).decode() for each in chain)
    return SigningKey(_algorithm(private, path), pem, certificates, str(names[0].value) if names else "without a name")


def _algorithm(private: object, path: Path) -> Algorithm:
    if isinstance(private, Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, EllipticCurvePrivateKey) and isinstance(private.curve, SECP256R1):
        return "es256"
    raise UserError(f"{path}: {type(private).__name__} is not supported: give an Ed25519 key, or an EC key on P-256")


def _new(algorithm: Algorithm) -> PrivateKey:
    return Ed25519PrivateKey.generate() if algorithm == "ed25519" else generate_private_key(SECP256R1())


def _certificate(
    name: str, private: PrivateKey, issuer: tuple[PrivateKey, x509.Certificate] | None
) -> x509.Certificate:
    """Return a certificate that the issuer signs; without one, that of an issuer, which signs itself."""
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # clocks of other machines may be late
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "leam_mm"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    key, above = (private, subject) if issuer is None else (issuer[0], issuer[1].subject)
    builder = (
        x509.CertificateBuilder(above, subject, private.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(_usage(sign_certificates=issuer is None), critical=True)
    )
    if issuer is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256())


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=sign_certificates, crl_sign=sign_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip

"""Images with Content Credentials, really signed by c2pa-python with a certificate made here."""

import datetime
import functools
import io
import json
from typing import Any

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """A certificate by the profile of the C2PA specification (section on X.509 certificates)."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )
    begin = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer.subject if issuer else subject)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=365 * 30))
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    last = issuer is not None
    builder = builder.add_extension(x509.BasicConstraints(ca=not last, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.KeyUsage(digital_signature=last, key_cert_sign=not last, crl_sign=not last, **usage), critical=True
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    if last:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@functools.cache
def _credentials() -> tuple[bytes, bytes]:
    """Certificate chain and private key, PEM."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("Test root", root_key, None, root_key)
    leaf = _certificate("Test signer", key, root, root_key)
    chain = b"".join(part.public_bytes(serialization.Encoding.PEM) for part in (leaf, root))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain, secret


def sign(
    raw: bytes, kind: str = "image/jpeg", assertions: list[dict[str, Any]] | None = None, remote: str | None = None
) -> bytes:
    """Add a signed manifest to an image file.

    Args:
        raw: The file.
        kind: Its media type.
        assertions: Further assertions of the manifest.
        remote: Address of the manifest; it is then not embedded in the file.
    """
    chain, secret = _credentials()
    info = c2pa.C2paSignerInfo(b"es256", chain, secret, None)
    created = {
        "action": "c2pa.created",
        "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
    }
    manifest = {
        "claim_generator_info": [{"name": "leam_mm tests", "version": "1"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}, *(assertions or [])],
    }
    settings = {"verify": {"remote_manifest_fetch": False}, "builder": {"thumbnail": {"enabled": False}}}
    with c2pa.Context.from_dict(settings) as context:
        builder = c2pa.Builder(json.dumps(manifest), context=context)
        if remote:
            builder.set_remote_url(remote)
            builder.set_no_embed()
        target = io.BytesIO()
        builder.sign(c2pa.Signer.from_info(info), kind, io.BytesIO(raw), target)
    return target.getvalue()


def training_mining(label: str = "cawg.training-mining", **uses: str) -> dict[str, Any]:
    """An assertion on training, such as ``training_mining(ai_generative_training="notAllowed")``."""
    prefix = label.partition(".")[0]
    entries = {f"{prefix}.{name}": {"use": use} for name, use in uses.items()}
    return {"label": label, "data": {"entries": entries}}

"""Signatures over a release: made offline, checked by us and by OpenSSF's own program, refused after any change."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from toys.built_releases import write_keys

from leam_mm.errors import UserError
from leam_mm.files import TEMPORARY
from leam_mm.release.__main__ import main
from leam_mm.release.verify_release import verify_release
from leam_mm.release_record import SIGNATURE
from leam_mm.run_lock import beside, run_lock

pytest.importorskip("model_signing")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path / "keys")


def sign(folder: Path, private: Path) -> None:
    main(["sign", str(folder), "--private-key", str(private)])


def lines(folder: Path, public: Path | None) -> str:
    return "\n".join(fault.line for fault in verify_release(folder, public).faults)


def test_a_signature_is_checked_by_us_and_by_openssf(release: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    sign(release, private)
    found = verify_release(release, public)
    assert found.faults == [] and found.signature == "verified"
    assert verify_release(release).signature == "not checked"
    code = "import socket, runpy, sys\nsocket.socket.connect = None\nsys.argv[0] = 'model_signing'\n"
    code += "runpy.run_module('model_signing', run_name='__main__')"
    words = ["verify", "key", str(release), "--signature", str(release / SIGNATURE), "--public_key", str(public)]

    def theirs() -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-c", code, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    done = theirs()
    assert done.returncode == 0, done.stderr[-2000:]
    (release / "deletion_list.pdq").write_text("0" * 64 + "\n")  # refreshed after the signature
    done = theirs()
    assert done.returncode == 0, done.stderr[-2000:]
    assert verify_release(release, public).signature == "verified"
    weights = release / "open_clip_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    assert theirs().returncode != 0 and "open_clip_model.safetensors: changed" in lines(release, public)


def test_another_key_and_a_changed_file_are_refused(release: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    _, other = write_keys(tmp_path / "other", seed=2)
    assert "model.sig: missing" in lines(release, public)
    sign(release, private)
    assert "not made by the owner of public.pem" in lines(release, other)
    (release / "extra.md").write_text("x")
    assert "extra.md: is not signed since the release was signed" in lines(release, None)


def test_a_killed_signer_is_started_again(release: Path, keys: tuple[Path, Path]) -> None:
    left = release / f"{SIGNATURE}{TEMPORARY}9-ab"
    left.write_text("{")
    with run_lock(beside(release), release), pytest.raises(UserError, match="in use by another run"):
        sign(release, keys[0])  # another one signs or builds it
    sign(release, keys[0])
    assert not left.exists() and lines(release, keys[1]) == ""


def test_a_release_with_a_fault_is_not_signed(release: Path, keys: tuple[Path, Path]) -> None:
    (release / "LICENSE").write_text("other")
    with pytest.raises(SystemExit) as end:
        sign(release, keys[0])
    assert end.value.code == 1 and not (release / SIGNATURE).exists()


def test_a_folder_that_is_missing_is_named_and_not_made(keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x is no folder: give that of a release"):
        sign(tmp_path / "missing" / "x", keys[0])
    assert not (tmp_path / "missing").exists()


def test_a_release_that_was_built_anew_is_signed_anew(release: Path, keys: tuple[Path, Path]) -> None:
    sign(release, keys[0])
    signature = json.loads((release / SIGNATURE).read_text())
    signature["dsseEnvelope"]["payload"] = base64.b64encode(b"{}").decode()
    (release / SIGNATURE).write_text(json.dumps(signature))
    assert "no sound signature" in lines(release, None)
    sign(release, keys[0])
    assert lines(release, keys[1]) == ""


def test_what_no_signature_protects_is_refused(release: Path, keys: tuple[Path, Path]) -> None:
    sign(release, keys[0])
    path = release / SIGNATURE
    whole = json.loads(path.read_text())
    text = path.read_text()
    signature = whole["dsseEnvelope"]["signatures"][0]["sig"]
    changes = {
        "exactly the fields": json.dumps(whole | {"comment": "trust me"}),
        "transparency log": json.dumps(whole).replace('"tlogEntries": []', '"tlogEntries": [{}]'),
        "spacing": text.replace(":", ":  ", 1),
        "base64": text.replace(signature, signature[:-1].rstrip("=") + "\\n" + "="),
        "media type": text.replace("v0.3", "v0.4"),
        "in UTF-8": text.replace("{", "\udcff", 1),
    }
    for reason, content in changes.items():
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        found = lines(release, keys[1])
        assert "model.sig" in found, reason
        assert reason in found or reason in ("base64", "media type"), found


def test_keys_that_do_not_fit_are_refused(release: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    def pem(name: str, key: object, encryption: object = None) -> Path:
        path = tmp_path / name
        content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())  # type: ignore
        path.write_bytes(content)
        return path

    edwards = ed25519.Ed25519PrivateKey.generate()
    p256 = ec.generate_private_key(ec.SECP256R1())
    cases = {
        "needs ES256": pem("ed.pem", edwards),
        "is encrypted": pem("locked.pem", p256, BestAvailableEncryption(b"secret")),
        "is a key of the kind secp384r1": pem("p384.pem", ec.generate_private_key(ec.SECP384R1())),
        "no private key in PEM": keys[1],
        "cannot be read": tmp_path / "missing.pem",
        "lies in the release": pem("release/own.pem", p256),
    }
    for reason, key in cases.items():
        with pytest.raises(UserError, match=reason):
            sign(release, key)
    (release / "own.pem").unlink()
    public = tmp_path / "ed.pub"
    public.write_bytes(edwards.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    sign(release, keys[0])
    with pytest.raises(UserError, match="needs ES256"):
        verify_release(release, public)
    assert "BEGIN" not in (release / SIGNATURE).read_text()

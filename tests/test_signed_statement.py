"""data_tools/signed_statement.py: signatures verify here and by OpenSSL; any change is detected."""

import base64
import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_tools.signed_statement import main
from data_tools.work.signature import make_key, read_private_key, read_public_key, sign_file, verify_file
from leam_mm.errors import UserError


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    main(["make-key", "--key", str(tmp_path / "lab.pem")])
    (tmp_path / "statement.json").write_text('{"samples": 3}\n')
    main(["sign", str(tmp_path / "statement.json"), "--key", str(tmp_path / "lab.pem")])
    return tmp_path / "statement.json", tmp_path / "lab.pem.pub"


def test_a_signed_file_verifies(signed: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    file, public = signed
    main(["verify", str(file), "--public-key", str(public)])
    said = capsys.readouterr().out
    assert json.loads(Path(f"{file}.sig").read_text())["public_key_sha256"] in said
    secret = public.with_suffix("")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = Path(f"{file}.sig").read_bytes()
    assert sign_file(file, read_private_key(secret)).read_bytes() == before  # the same each time


def test_openssl_agrees(signed: tuple[Path, Path], tmp_path: Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl is installed")
    file, public = signed
    raw = tmp_path / "raw.sig"
    raw.write_bytes(base64.b64decode(json.loads(Path(f"{file}.sig").read_text())["signature"]))
    command = [program, "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", str(file)]
    done = subprocess.run([*command, "-sigfile", str(raw)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file.write_text("changed")
    assert subprocess.run([*command, "-sigfile", str(raw)], capture_output=True).returncode


def test_any_change_is_detected(signed: tuple[Path, Path], tmp_path: Path) -> None:
    file, public = signed
    key = read_public_key(public)
    good = json.loads(Path(f"{file}.sig").read_text())
    flipped = bytearray(base64.b64decode(good["signature"]))
    flipped[5] ^= 1
    cases = {
        "was changed": good | {"signature": base64.b64encode(flipped).decode()},
        "only Ed25519": good | {"algorithm": "none"},
        "not a signature": {"algorithm": "Ed25519"},
        "was made with the key": good | {"public_key_sha256": "0" * 64},
    }
    for word, content in cases.items():
        Path(f"{file}.sig").write_text(json.dumps(content))
        with pytest.raises(UserError, match=word):
            verify_file(file, key)
    Path(f"{file}.sig").write_text(json.dumps(good))
    verify_file(file, key)
    file.write_text('{"samples": 2}\n')
    with pytest.raises(UserError, match="was changed"):
        verify_file(file, key)
    other = make_key(tmp_path / "other.pem")
    with pytest.raises(UserError, match="was made with the key"):
        verify_file(file, read_public_key(other))


def test_keys_are_not_overwritten_and_must_be_keys(tmp_path: Path) -> None:
    make_key(tmp_path / "lab.pem")
    with pytest.raises(UserError, match="exists already"):
        make_key(tmp_path / "lab.pem")
    with pytest.raises(UserError, match="not a secret Ed25519 key"):
        read_private_key(tmp_path / "lab.pem.pub")
    with pytest.raises(UserError, match="not a public key"):
        read_public_key(tmp_path / "lab.pem")
    with pytest.raises(UserError, match="cannot be read"):
        read_private_key(tmp_path / "absent")


def test_rfc_8032_vector(tmp_path: Path) -> None:
    """Section 7.1, TEST 2: one byte, 0x72."""
    key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    (tmp_path / "message").write_bytes(b"\x72")
    found = json.loads(sign_file(tmp_path / "message", key).read_text())
    assert base64.b64decode(found["signature"]).hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    verify_file(tmp_path / "message", key.public_key())

"""leam_mm/marking/content_credentials.py and signing_key.py: manifests that c2pa's own reader accepts, offline."""

import contextlib
import datetime
import http.server
import io
import logging
import threading
from pathlib import Path

import c2pa
import pytest
from PIL import Image

from leam_mm.errors import UserError
from leam_mm.marking.content_credentials import (
    DETAILS,
    MIME,
    SETTINGS,
    Origin,
    UnreadableCredentials,
    read,
    sign,
)
from leam_mm.marking.signing_key import SigningKey, make_key, read_key

WHEN = datetime.datetime(2026, 11, 29, 12, 0, tzinfo=datetime.UTC)
ORIGIN = Origin("quick", "ab" * 32, ("spread spectrum",), WHEN)


@pytest.fixture(scope="module", params=["ed25519", "es256"])
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    make_key(path, request.param, "Test Laboratory")
    return read_key(path)


def image(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_reader_of_c2pa_accepts_the_manifest(key: SigningKey, kind: str) -> None:
    content = image(kind)
    signed = sign(content, kind, ORIGIN, key, "a")
    with c2pa.Reader(MIME[kind], io.BytesIO(signed)) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = reader.get_active_manifest()
    assert manifest is not None and manifest["signature_info"]["alg"].lower() == key.algorithm
    assertions = {each["label"]: each["data"] for each in manifest["assertions"]}
    created, marked = assertions["c2pa.actions.v2"]["actions"]
    assert created["action"] == "c2pa.created" and created["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert created["when"] == "2026-11-29T12:00:00Z" and created["softwareAgent"]["name"] == "quick"
    assert marked["action"] == "c2pa.watermarked.unbound" and assertions[DETAILS]["sha256"] == "ab" * 32
    assert Image.open(io.BytesIO(signed)).tobytes() == Image.open(io.BytesIO(content)).tobytes()


def test_what_is_read(key: SigningKey) -> None:
    found = read(sign(image(), "PNG", ORIGIN, key, "a"), "PNG")
    assert found is not None and found.generated and found.model == "quick" and found.signer == "Test Laboratory"
    assert found.state == "Valid" and found.problems == ("signingCredential.untrusted: signing certificate untrusted",)
    assert read(image(), "PNG") is None and read(image("GIF"), "GIF") is None


def test_a_changed_pixel_is_noticed(key: SigningKey) -> None:
    signed = sign(image("JPEG"), "JPEG", ORIGIN, key, "a")
    changed = bytearray(signed)
    changed[-30] ^= 1
    found = read(bytes(changed), "JPEG")
    assert found is not None and found.state == "Invalid"
    assert any("dataHash" in problem for problem in found.problems)


def test_a_changed_claim_is_noticed(key: SigningKey) -> None:
    signed = sign(image(), "PNG", ORIGIN, key, "a")
    at = signed.index(b"ab" * 32)
    changed = signed[:at] + b"cd" + signed[at + 2 :]
    try:
        found = read(changed, "PNG")
    except UnreadableCredentials:
        return
    assert found is not None and found.state == "Invalid"


@pytest.mark.parametrize("cut", [40, 200, 1000, 2500])
def test_damaged_files_end_in_one_kind_of_error(key: SigningKey, cut: int) -> None:
    signed = sign(image(), "PNG", ORIGIN, key, "a")
    for damaged in (signed[:cut], signed[:cut] + bytes(200) + signed[cut + 200 :], b"\x89PNG\r\n\x1a\n" + bytes(cut)):
        try:
            found = read(damaged, "PNG")
        except UnreadableCredentials as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert found is None or found.state == "Invalid"


class Counter(http.server.BaseHTTPRequestHandler):
    """Counts requests."""

    asked = 0

    def do_GET(self) -> None:
        """Answer with nothing."""
        Counter.asked += 1
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        """Stay quiet."""


def test_a_manifest_elsewhere_is_not_fetched(key: SigningKey) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = io.BytesIO()
    actions = {"actions": [{"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}]}
    builder = c2pa.Builder({"assertions": [{"label": "c2pa.actions.v2", "data": actions}]})
    builder.set_no_embed()
    builder.set_remote_url(f"http://127.0.0.1:{server.server_port}/manifest.c2pa")
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(key.algorithm, key.chain.encode(), key.private.encode(), None))
    builder.sign(signer, "image/jpeg", io.BytesIO(image("JPEG")), target)
    Counter.asked = 0
    try:
        with pytest.raises(UnreadableCredentials):
            read(target.getvalue(), "JPEG")
        parent = Origin("m", source=target.getvalue(), source_format="JPEG")
        with contextlib.suppress(UnreadableCredentials):
            sign(image(), "PNG", parent, key, "a")
        assert Counter.asked == 0
        with pytest.raises(c2pa.C2paError):  # the library itself would ask
            c2pa.Reader("image/jpeg", io.BytesIO(target.getvalue()))
        assert Counter.asked > 0
    finally:
        server.shutdown()
        server.server_close()
    assert SETTINGS["verify"]["ocsp_fetch"] is False and SETTINGS["core"]["allowed_network_hosts"] == []


def test_key_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_key(tmp_path / "a.pem")
    assert (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600 and "PRIVATE" not in repr(read_key(tmp_path / "a.pem"))
    content = (tmp_path / "a.pem").read_text()
    (tmp_path / "open.pem").write_text(content)
    (tmp_path / "open.pem").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        read_key(tmp_path / "open.pem")
    assert "chmod 600" in caplog.text
    key_part = content[: content.index("-----BEGIN CERT")]
    make_key(tmp_path / "b.pem")
    other = (tmp_path / "b.pem").read_text()
    for wrong in ("", "x" * 200_000, key_part, key_part + other[len(key_part) :], content[len(key_part) :]):
        (tmp_path / "wrong.pem").write_text(wrong)
        with pytest.raises(UserError, match=r"wrong\.pem"):
            read_key(tmp_path / "wrong.pem")
    with pytest.raises(UserError, match=r"none\.pem cannot be read"):
        read_key(tmp_path / "none.pem")
    with pytest.raises(UserError, match="printable"):
        make_key(tmp_path / "c.pem", "es256", "a\nb")
    assert not (tmp_path / "c.pem").exists()

"""rights/training_mining.py: what really signed pictures say about training is read, and every doubt reserves."""

import io
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from toys.signed_images import sign, training_mining

from data_tools.rights.legal_basis import LegalBasis
from data_tools.rights.reservations import decide
from data_tools.rights.training_mining import mining_signals

KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def picture(kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_without_credentials_says_nothing():
    assert all(mining_signals(picture(kind)) == [] for kind in KINDS)
    assert mining_signals(b"") == [] and mining_signals(b"no picture at all") == []


def test_a_manifest_that_does_not_speak_of_training_reserves_nothing():
    assert mining_signals(sign(picture())) == []


@pytest.mark.parametrize("label", ["c2pa.training-mining", "cawg.training-mining"])
@pytest.mark.parametrize("entry", ["ai_generative_training", "ai_training", "data_mining", "ai_inference"])
@pytest.mark.parametrize(("use", "reserved"), [("allowed", False), ("notAllowed", True), ("constrained", True)])
def test_each_entry_of_both_labels(label: str, entry: str, use: str, reserved: bool):
    (signal,) = mining_signals(sign(picture(), assertions=[training_mining(label, **{entry: use})]))
    assert (signal.kind, signal.reserved) == ("c2pa", reserved)
    assert signal.value == f"{label}: {label.partition('.')[0]}.{entry}={use}"
    assert (decide([signal], LegalBasis.art4_general) is None) is not reserved
    assert decide([signal], LegalBasis.art3_research) is None and decide([signal], LegalBasis.licensed) is None


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file(kind: str):
    signed = sign(picture(kind), KINDS[kind], [training_mining(data_mining="notAllowed")])
    assert [signal.reserved for signal in mining_signals(signed)] == [True]
    # The ending of a name decides nothing: the bytes do.
    Image.open(io.BytesIO(signed)).load()


@pytest.mark.parametrize(
    "entries",
    [{}, [], "no", None, {"cawg.data_mining": {"use": "Allowed"}}, {"cawg.data_mining": {}}, {"org.example.x": ["a"]}],
)
def test_what_is_not_plainly_allowed_reserves(entries: object):
    data = {} if entries is None else {"entries": entries}
    (signal,) = mining_signals(sign(picture(), assertions=[{"label": "cawg.training-mining", "data": data}]))
    assert signal.reserved


def test_one_refusal_among_permissions_reserves():
    told = training_mining(ai_inference="allowed", ai_generative_training="notAllowed", data_mining="allowed")
    (signal,) = mining_signals(sign(picture(), assertions=[told]))
    assert signal.reserved and "cawg.ai_generative_training=notAllowed" in signal.value


def test_pixels_that_were_changed_after_signing_reserve():
    signed = bytearray(sign(picture(), assertions=[training_mining(data_mining="allowed")]))
    signed[-40] ^= 0xFF
    signals = mining_signals(bytes(signed))
    assert [signal.reserved for signal in signals] == [True, False]
    assert "assertion.dataHash.mismatch" in signals[0].value


def test_an_assertion_that_was_changed_after_signing_reserves():
    signed = sign(picture(), assertions=[training_mining(data_mining="notAllowed")])
    assert signed.count(b"notAllowed") == 1
    changed = signed.replace(b"notAllowed", b"allowed   ")
    assert any(signal.reserved and "does not hold" in signal.value for signal in mining_signals(changed))


def test_a_manifest_whose_frame_is_broken_reserves_although_the_library_sees_none():
    signed = sign(picture(), assertions=[training_mining(data_mining="allowed")])
    place = signed.index(b"jumb")
    broken = signed[: place + 4] + bytes(12) + signed[place + 16 :]
    (signal,) = mining_signals(broken)
    assert signal.reserved and "cannot be read" in signal.value


def test_every_cut_and_many_scratches_end_in_an_answer():
    """Only bytes before the manifest or a whole manifest may leave a picture free; nothing raises."""
    signed = sign(picture(), assertions=[training_mining(data_mining="notAllowed")])
    begin = signed.index(b"c2pa\x00\x11") + 16
    for cut in range(begin, len(signed), 97):
        assert any(signal.reserved for signal in mining_signals(signed[:cut])), cut
    random = np.random.default_rng(1)
    for _ in range(150):
        scratched = bytearray(signed)
        for place in random.integers(begin, len(signed), 3):
            scratched[place] ^= int(random.integers(1, 256))
        assert any(signal.reserved for signal in mining_signals(bytes(scratched)))


def test_a_manifest_in_an_unknown_kind_of_file_reserves():
    signed = sign(picture(), assertions=[training_mining(data_mining="allowed")])
    (signal,) = mining_signals(b"BM" + signed)
    assert signal.reserved


def test_a_remote_manifest_is_not_fetched_and_reserves():
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/picture.c2pa"

        def listen() -> None:
            try:
                asked.append(server.accept())
            except OSError:
                return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        (signal,) = mining_signals(sign(picture(), remote=address))
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert signal.reserved and address in signal.value and "not fetched" in signal.value
    assert asked == []


def test_the_word_provenance_alone_reserves_nothing():
    text = b'<rdf:RDF xmlns:x="urn:x"><x:provenance>a shop in Ghent</x:provenance></rdf:RDF>'
    raw = picture()
    assert mining_signals(raw[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + raw[2:]) == []

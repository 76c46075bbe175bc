"""Rights in image files: XMP, IPTC, EXIF and Content Credentials are read where tools write them; doubt reserves."""

import hashlib
import io
import socket
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from toys.images import encoded_image
from toys.signed_images import sign, training_mining

from data_tools.download.download_worker import FETCHED, part_file
from data_tools.download.image_repair_pool import repaired_rows
from data_tools.rights.file_rights import rights_in_file
from data_tools.rights.iptc_rights import metadata_signals
from data_tools.rights.reservations import decide
from data_tools.rights.training_mining import mining_signals
from data_tools.samples.image_repair import ImageRule
from data_tools.vetting.file_rights_rule import FileRights
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.legal_basis import LegalBasis

RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
PLUS = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def packet(inner: str, attributes: str = "") -> bytes:
    text = f'<rdf:RDF {RDF}><rdf:Description rdf:about="" {attributes}>{inner}</rdf:Description></rdf:RDF>'
    return f'<?xpacket begin="" id="W5M0"?><x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'.encode()


def image_file(kind: str = "JPEG", **settings: object) -> bytes:
    return encoded_image(NOISE, kind, **settings)


def kinds(raw: bytes) -> dict[str, bool]:
    return {signal.kind: signal.reserved for signal in metadata_signals(raw)}


def test_no_signal_without_metadata():
    assert all(metadata_signals(image_file(kind)) == [] for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"))


@pytest.mark.parametrize(
    ("word", "reserved"),
    [
        ("DMI-UNSPECIFIED", False),
        ("DMI-ALLOWED", False),
        ("DMI-PROHIBITED", True),
        ("DMI-PROHIBITED-AIMLTRAINING", True),
        ("DMI-PROHIBITED-GENAIMLTRAINING", True),
        ("DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING", True),
        ("DMI-PROHIBITED-SEECONSTRAINT", True),
        ("DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR", True),
        ("DMI-PROHIBITED-SEELINKEDRIGHTSEXPR", True),
        ("DMI-SOMETHING-OF-NEXT-YEAR", True),
    ],
)
def test_the_vocabulary_of_plus(word: str, reserved: bool):
    ways = [
        packet(f"<plus:DataMining>{VOCABULARY}{word}</plus:DataMining>", PLUS),
        packet(f'<plus:DataMining rdf:resource="{VOCABULARY}{word}"/>', PLUS),
        packet("", f'{PLUS} plus:DataMining="{VOCABULARY}{word}"'),
        packet("", f'{PLUS.replace("plus=", "other=")} other:DataMining="{word}"'),
    ]
    for xmp in ways:
        for raw in (image_file("JPEG", xmp=xmp), image_file("WEBP", xmp=xmp), image_file("GIF") + xmp):
            assert kinds(raw) == {"xmp:data-mining": reserved}


@pytest.mark.parametrize("compressed", [False, True])
def test_xmp_in_png(compressed: bool):
    info = PngImagePlugin.PngInfo()
    text = packet(f"<plus:DataMining>{VOCABULARY}DMI-PROHIBITED</plus:DataMining>", PLUS).decode()
    info.add_itxt("XML:com.adobe.xmp", text, zip=compressed)
    raw = image_file("PNG", pnginfo=info)
    assert (b"DMI-PROHIBITED" in raw) is not compressed
    assert kinds(raw) == {"xmp:data-mining": True}


def test_the_same_name_in_another_namespace_is_another_property():
    raw = image_file(xmp=packet("", f'xmlns:plus="urn:elsewhere" plus:DataMining="{VOCABULARY}DMI-PROHIBITED"'))
    assert kinds(raw) == {}


@pytest.mark.parametrize(("value", "reserved"), [("1", True), ("0", False), ("perhaps", False)])
def test_reservation_of_tdmrep(value: str, reserved: bool):
    raw = image_file(xmp=packet("", f'xmlns:tdm="http://www.w3.org/ns/tdmrep/" tdm:reservation="{value}"'))
    assert kinds(raw) == {"xmp:tdm-reservation": reserved}


@pytest.mark.parametrize(
    ("text", "reserved"),
    [
        ("© 2024 Jane Doe, all rights reserved", False),
        ("CC BY 4.0, see the licence", False),
        ("Trains and trams of Ghent, © Maria", False),
        ("No use for text and data mining (Directive (EU) 2019/790, art. 4)", True),
        ("Not for the training of artificial intelligence", True),
        ("Nutzung zum Trainieren von KI vorbehalten, § 44b UrhG", True),
        ("Fouille de textes et de données réservée", True),
        ("Interdit pour l'entraînement d'une IA", True),
        ("Prohibido el uso para entrenar inteligencia artificial", True),
        ("Vietato l'addestramento di sistemi di IA", True),
        ("Niet voor het trainen van AI", True),
        ("Entraînement de l'équipe de France, tous droits réservés", False),
        ("Machine room of the training ship", True),  # a false refusal, the cost of reading natural language
    ],
)
def test_notices_reserve_only_if_they_mention_mining(text: str, reserved: bool):
    exif = Image.Exif()
    exif[0x8298] = text.encode("latin-1", "replace").decode("latin-1")
    rights = packet(f'<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></dc:rights>')
    rights = rights.replace(b"<rdf:Description", b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"')
    assert kinds(image_file(exif=exif)) == {"exif:copyright": reserved}
    assert kinds(image_file(xmp=rights)) == {"xmp:rights": reserved}
    assert kinds(image_file(exif=exif, xmp=rights)) == {"exif:copyright": reserved, "xmp:rights": reserved}


def test_iptc_notice_in_a_jpeg():
    notice = b"\x1c\x02\x74" + len(b"No AI training").to_bytes(2, "big") + b"No AI training"
    block = b"8BIM\x04\x04\0\0" + len(notice).to_bytes(4, "big") + notice
    body = b"Photoshop 3.0\0" + block
    raw = image_file()
    raw = raw[:2] + b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body + raw[2:]
    assert kinds(raw) == {"iptc:copyright": True}


def test_web_statement_and_licence_are_signals():
    raw = image_file(
        xmp=packet(
            '<cc:license rdf:resource="https://creativecommons.org/licenses/by/4.0/"/>',
            'xmlns:cc="http://creativecommons.org/ns#" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/" '
            'xmpRights:WebStatement="https://museum.example/rights"',
        )
    )
    found = {signal.kind: (signal.value, signal.reserved) for signal in metadata_signals(raw)}
    assert found == {
        "xmp:licence": ("https://creativecommons.org/licenses/by/4.0/", False),
        "xmp:web-statement": ("https://museum.example/rights", False),
    }


@pytest.mark.parametrize(
    "xmp",
    [
        packet(f"<plus:DataMining>{VOCABULARY}DMI-ALLOWED</plus:Other>", PLUS),
        packet(f"<plus:DataMining>{VOCABULARY}DMI-ALLOWED</plus:DataMining>", PLUS)[:-60],
        packet(f"<!DOCTYPE a><plus:DataMining>{VOCABULARY}DMI-ALLOWED</plus:DataMining>", PLUS),
        packet("<a>" * 200 + "<plus:DataMining/>" + "</a>" * 200, PLUS),
    ],
)
def test_a_broken_packet_that_mentions_mining_reserves(xmp: bytes):
    assert kinds(image_file(xmp=xmp)).get("xmp:unreadable") is True


def test_hostile_packets_end_soon():
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    hostile = [
        f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><rdf:RDF {RDF}>&l11;</rdf:RDF>'.encode(),
        b"<rdf:RDF>" * 200_000,
        b"<rdf:RDF " + b"a" * 3_000_000,
        packet("train" * 400_000),
        packet(f'<dc:rights xmlns:dc="http://purl.org/dc/elements/1.1/">{"train" * 300_000}</dc:rights>'),
        b"\x89PNG\r\n\x1a\n" + b"XML:com.adobe.xmp" + bytes(range(256)) * 1000,
    ]
    bomb = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(50_000_000), 9)
    png = image_file("PNG")
    hostile.append(png[:33] + len(bomb).to_bytes(4, "big") + b"iTXt" + bomb + bytes(4) + png[33:])
    begin = time.perf_counter()
    for raw in hostile:
        metadata_signals(raw)
    assert time.perf_counter() - begin < 5


KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


def test_no_signal_without_credentials():
    assert all(mining_signals(image_file(kind)) == [] for kind in KINDS)
    assert mining_signals(b"") == [] and mining_signals(b"no picture at all") == []


def test_a_manifest_without_a_training_assertion_reserves_nothing():
    assert mining_signals(sign(image_file())) == []


@pytest.mark.parametrize("label", ["c2pa.training-mining", "cawg.training-mining"])
@pytest.mark.parametrize("entry", ["ai_generative_training", "ai_training", "data_mining", "ai_inference"])
@pytest.mark.parametrize(("use", "reserved"), [("allowed", False), ("notAllowed", True), ("constrained", True)])
def test_each_entry_of_both_labels(label: str, entry: str, use: str, reserved: bool):
    (signal,) = mining_signals(sign(image_file(), assertions=[training_mining(label, **{entry: use})]))
    assert (signal.kind, signal.reserved) == ("c2pa", reserved)
    assert signal.value == f"{label}: {label.partition('.')[0]}.{entry}={use}"
    assert (decide([signal], LegalBasis.art4_general) is None) is not reserved
    assert decide([signal], LegalBasis.art3_research) is None and decide([signal], LegalBasis.licensed) is None


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_file(kind: str):
    signed = sign(image_file(kind), KINDS[kind], [training_mining(data_mining="notAllowed")])
    assert [signal.reserved for signal in mining_signals(signed)] == [True]
    # The bytes decide, not the ending of a name.
    Image.open(io.BytesIO(signed)).load()


@pytest.mark.parametrize(
    "entries",
    [{}, [], "no", None, {"cawg.data_mining": {"use": "Allowed"}}, {"cawg.data_mining": {}}, {"org.example.x": ["a"]}],
)
def test_what_is_not_plainly_allowed_reserves(entries: object):
    data = {} if entries is None else {"entries": entries}
    (signal,) = mining_signals(sign(image_file(), assertions=[{"label": "cawg.training-mining", "data": data}]))
    assert signal.reserved


def test_one_refusal_among_permissions_reserves():
    assertion = training_mining(ai_inference="allowed", ai_generative_training="notAllowed", data_mining="allowed")
    (signal,) = mining_signals(sign(image_file(), assertions=[assertion]))
    assert signal.reserved and "cawg.ai_generative_training=notAllowed" in signal.value


def test_pixels_that_were_changed_after_signing_reserve():
    signed = bytearray(sign(image_file(), assertions=[training_mining(data_mining="allowed")]))
    signed[-40] ^= 0xFF
    signals = mining_signals(bytes(signed))
    assert [signal.reserved for signal in signals] == [True, False]
    assert "assertion.dataHash.mismatch" in signals[0].value


def test_an_assertion_that_was_changed_after_signing_reserves():
    signed = sign(image_file(), assertions=[training_mining(data_mining="notAllowed")])
    assert signed.count(b"notAllowed") == 1
    changed = signed.replace(b"notAllowed", b"allowed   ")
    assert any(signal.reserved and "does not hold" in signal.value for signal in mining_signals(changed))


def test_a_manifest_whose_frame_is_broken_reserves_although_the_library_sees_none():
    signed = sign(image_file(), assertions=[training_mining(data_mining="allowed")])
    start = signed.index(b"jumb")
    broken = signed[: start + 4] + bytes(12) + signed[start + 16 :]
    (signal,) = mining_signals(broken)
    assert signal.reserved and "cannot be read" in signal.value


def test_every_cut_and_many_scratches_end_in_an_answer():
    """Only bytes before the manifest or a whole manifest may leave an image free; nothing raises."""
    signed = sign(image_file(), assertions=[training_mining(data_mining="notAllowed")])
    begin = signed.index(b"c2pa\x00\x11") + 16
    for cut in range(begin, len(signed), 97):
        assert any(signal.reserved for signal in mining_signals(signed[:cut])), cut
    random = np.random.default_rng(1)
    for _ in range(150):
        scratched = bytearray(signed)
        for position in random.integers(begin, len(signed), 3):
            scratched[position] ^= int(random.integers(1, 256))
        assert any(signal.reserved for signal in mining_signals(bytes(scratched)))


def test_a_manifest_in_an_unknown_kind_of_file_reserves():
    signed = sign(image_file(), assertions=[training_mining(data_mining="allowed")])
    (signal,) = mining_signals(b"BM" + signed)
    assert signal.reserved


def test_a_remote_manifest_is_not_fetched_and_reserves():
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/image.c2pa"

        def listen() -> None:
            try:
                asked.append(server.accept())
            except OSError:
                return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        (signal,) = mining_signals(sign(image_file(), remote=address))
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
    assert signal.reserved and address in signal.value and "not fetched" in signal.value
    assert asked == []


def test_the_word_provenance_alone_reserves_nothing():
    text = b'<rdf:RDF xmlns:x="urn:x"><x:provenance>a shop in Ghent</x:provenance></rdf:RDF>'
    raw = image_file()
    assert mining_signals(raw[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + raw[2:]) == []


def sample(content: bytes, basis: str | None) -> Sample:
    return Sample("0", {"legal_basis": basis, "sha256": hashlib.sha256(content).hexdigest()}, "jpg", content)


def test_the_legal_basis_decides():
    refused = sign(image_file(), assertions=[training_mining(ai_training="notAllowed")])
    free = sign(image_file(), assertions=[training_mining(ai_training="allowed")])
    bases = [None, "art4_general", "art3_research", "licensed", "public_domain", "consent", "synthetic"]
    kept = [finding.kept for finding in FileRights().judge([sample(refused, basis) for basis in bases])]
    assert kept == [False, False, True, True, True, True, True]
    assert [
        finding.kept for finding in FileRights().judge([sample(free, "art4_general"), sample(image_file(), None)])
    ] == [True, True]


def test_the_finding_holds_the_signals():
    refused = sign(image_file(), assertions=[training_mining(ai_training="constrained")])
    (finding,) = FileRights().judge([sample(refused, None)])
    assert finding.value == "c2pa" and "cawg.ai_training=constrained" in finding.reason
    assert finding.evidence["signals"] == [["c2pa", "cawg.training-mining: cawg.ai_training=constrained", True]]
    (finding,) = FileRights().judge([sample(image_file(), None)])
    assert finding.kept and finding.value == "0" and finding.evidence == {}


def test_bytes_that_are_not_the_original_are_named():
    stored = Sample("0", {"legal_basis": None, "sha256": "0" * 64}, "jpg", image_file())
    assert "encoded again" in FileRights().judge([stored])[0].evidence["bytes"]


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff", b"RIFF", b"\x89PNG\r\n\x1a\n", bytes(1000)])
def test_other_bytes_give_no_signal(raw: bytes):
    assert rights_in_file(raw) == []


def test_a_download_reads_rights_before_the_image_is_repaired(tmp_path: Path):
    """Resizing would lose the manifest: the second pass of the download reads the original."""
    refused = sign(image_file(), assertions=[training_mining(data_mining="notAllowed")])
    cells = [
        {
            "row": row,
            "rule": "",
            "fetched_at": "2026-11-01T12:00:00+00:00",
            "response": "{}",
            "visit": "{}",
            "legal_basis": basis,
            "sha256": hashlib.sha256(refused).hexdigest(),
            "content": refused,
        }
        for row, basis in enumerate([None, "art4_general", "art3_research"])
    ]
    pq.write_table(pa.Table.from_pylist(cells, FETCHED), part_file(tmp_path, 0))
    rule = ImageRule(size=16, resize="center_crop")
    found = [fetched for _, fetched in repaired_rows(tmp_path, iter(range(3)), 3, 3, rule, 0)]
    assert [fetched.image is None for fetched in found] == [True, True, False]
    assert found[0].rule == "reservation" and "cawg.data_mining=notAllowed" in found[0].value
    assert found[2].image is not None and rights_in_file(found[2].image.content) == []
    for fetched in found:
        (signal,) = fetched.response["signals"]
        assert (signal["kind"], signal["reserved"], signal["source"]) == ("c2pa", True, "file")

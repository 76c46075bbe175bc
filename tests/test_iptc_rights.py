"""rights/iptc_rights.py: rights in XMP, IPTC and EXIF are found where tools really write them; hostile ones end."""

import io
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data_tools.rights.iptc_rights import metadata_signals

RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
PLUS = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
VOCABULARY = "http://ns.useplus.org/ldf/vocab/"


def packet(inner: str, attributes: str = "") -> bytes:
    text = f'<rdf:RDF {RDF}><rdf:Description rdf:about="" {attributes}>{inner}</rdf:Description></rdf:RDF>'
    return f'<?xpacket begin="" id="W5M0"?><x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'.encode()


def picture(kind: str = "JPEG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), (200, 40, 90), np.uint8)).save(buffer, kind, **settings)
    return buffer.getvalue()


def kinds(raw: bytes) -> dict[str, bool]:
    return {signal.kind: signal.reserved for signal in metadata_signals(raw)}


def test_a_picture_without_metadata_says_nothing():
    assert all(metadata_signals(picture(kind)) == [] for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"))


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
        for raw in (picture("JPEG", xmp=xmp), picture("WEBP", xmp=xmp), picture("GIF") + xmp):
            assert kinds(raw) == {"xmp:data-mining": reserved}


@pytest.mark.parametrize("compressed", [False, True])
def test_xmp_in_png(compressed: bool):
    info = PngImagePlugin.PngInfo()
    text = packet(f"<plus:DataMining>{VOCABULARY}DMI-PROHIBITED</plus:DataMining>", PLUS).decode()
    info.add_itxt("XML:com.adobe.xmp", text, zip=compressed)
    raw = picture("PNG", pnginfo=info)
    assert (b"DMI-PROHIBITED" in raw) is not compressed
    assert kinds(raw) == {"xmp:data-mining": True}


def test_the_same_name_in_another_namespace_is_another_property():
    raw = picture(xmp=packet("", f'xmlns:plus="urn:elsewhere" plus:DataMining="{VOCABULARY}DMI-PROHIBITED"'))
    assert kinds(raw) == {}


@pytest.mark.parametrize(("value", "reserved"), [("1", True), ("0", False), ("perhaps", False)])
def test_reservation_of_tdmrep(value: str, reserved: bool):
    raw = picture(xmp=packet("", f'xmlns:tdm="http://www.w3.org/ns/tdmrep/" tdm:reservation="{value}"'))
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
        ("Machine room of the training ship", True),  # a wrong refusal: the price of reading plain words
    ],
)
def test_notices_reserve_only_where_they_speak_of_mining(text: str, reserved: bool):
    exif = Image.Exif()
    exif[0x8298] = text.encode("latin-1", "replace").decode("latin-1")
    rights = packet(f'<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></dc:rights>')
    rights = rights.replace(b"<rdf:Description", b'<rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"')
    assert kinds(picture(exif=exif)) == {"exif:copyright": reserved}
    assert kinds(picture(xmp=rights)) == {"xmp:rights": reserved}
    assert kinds(picture(exif=exif, xmp=rights)) == {"exif:copyright": reserved, "xmp:rights": reserved}


def test_iptc_notice_in_a_jpeg():
    notice = b"\x1c\x02\x74" + len(b"No AI training").to_bytes(2, "big") + b"No AI training"
    block = b"8BIM\x04\x04\0\0" + len(notice).to_bytes(4, "big") + notice
    body = b"Photoshop 3.0\0" + block
    raw = picture()
    raw = raw[:2] + b"\xff\xed" + (len(body) + 2).to_bytes(2, "big") + body + raw[2:]
    assert kinds(raw) == {"iptc:copyright": True}


def test_web_statement_and_licence_are_told():
    raw = picture(
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
def test_a_broken_packet_that_speaks_of_mining_reserves(xmp: bytes):
    assert kinds(picture(xmp=xmp)).get("xmp:unreadable") is True


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
    png = picture("PNG")
    hostile.append(png[:33] + len(bomb).to_bytes(4, "big") + b"iTXt" + bomb + bytes(4) + png[33:])
    begin = time.perf_counter()
    for raw in hostile:
        metadata_signals(raw)
    assert time.perf_counter() - begin < 5

"""data_tools.rights.metadata_texts: metadata that speaks of rights is found in every form, within one budget."""

import time
import zlib

import numpy as np
import pytest
from PIL import Image
from toys.images import encoded_image

from data_tools.rights.iptc_rights import metadata_signals
from data_tools.samples.image_repair import ImageRule, repair_image

PLUS = 'xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"'
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


def packet(inner: str, attributes: str = "") -> bytes:
    text = f'<rdf:Description rdf:about="" {attributes}>{inner}</rdf:Description>'
    return f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{text}</rdf:RDF>'.encode()


def image_file(kind: str = "JPEG", **settings: object) -> bytes:
    return encoded_image(NOISE, kind, **settings)


def kinds(raw: bytes) -> dict[str, bool]:
    return {signal.kind: signal.reserved for signal in metadata_signals(raw)}


def with_chunk(kind: bytes, body: bytes, behind: bool = False) -> bytes:
    chunk = len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    raw = image_file("PNG")
    return raw + chunk if behind else raw[:33] + chunk + raw[33:]


def raw_profile(name: str, block: bytes) -> bytes:
    return f"Raw profile type {name}\0".encode() + f"\n{name}\n{len(block):8}\n{block.hex()}\n".encode()


PROHIBITED = packet("<plus:DataMining>DMI-PROHIBITED</plus:DataMining>", PLUS)
RECORD = b"\x1c\x02\x74" + len(b"No AI training").to_bytes(2, "big") + b"No AI training"
LONG = PROHIBITED.replace(b"rdf:", b"p" * 300 + b":").replace(b"xmlns:rdf", b"xmlns:" + b"p" * 300)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("offset", [0, 1])
def test_xmp_in_other_encodings(encoding: str, offset: int):
    encoded = bytes(offset) + PROHIBITED.decode().encode(encoding)
    assert kinds(image_file(xmp=encoded)) == {"xmp:data-mining": True}
    assert kinds(image_file("GIF") + encoded) == {"xmp:data-mining": True}


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (image_file("GIF") + packet("") * 30 + PROHIBITED, "xmp:data-mining"),
        (image_file(xmp=LONG), "xmp:data-mining"),
        (with_chunk(b"tEXt", raw_profile("xmp", PROHIBITED)), "xmp:data-mining"),
        (with_chunk(b"tEXt", raw_profile("APP1", b"http://ns.adobe.com/xap/1.0/\0" + PROHIBITED)), "xmp:data-mining"),
        (with_chunk(b"tEXt", raw_profile("iptc", RECORD)), "iptc:copyright"),
        (with_chunk(b"tEXt", b"Copyright\0\xa9 J. Doe, no text and data mining"), "png:copyright"),
        (with_chunk(b"zTXt", b"Copyright\0\0" + zlib.compress(b"no machine learning")), "png:copyright"),
        (with_chunk(b"iTXt", b"Disclaimer\0\1\0\0\0" + zlib.compress(b"no data mining")), "png:disclaimer"),
        (with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(PROHIBITED), True), "xmp:data-mining"),
        (with_chunk(b"tEXt", raw_profile("xmp", PROHIBITED) + b"x"), "xmp:unreadable"),
    ],
)
def test_metadata_in_unusual_places(raw: bytes, kind: str):
    assert kinds(raw) == {kind: True}


def test_compressed_raw_profiles():
    name, _, text = raw_profile("xmp", PROHIBITED).partition(b"\0")
    assert kinds(with_chunk(b"zTXt", name + b"\0\0" + zlib.compress(text))) == {"xmp:data-mining": True}


def test_records_of_iptc_without_a_photoshop_resource():
    raw = image_file()
    body = b"\xff\xed" + (len(RECORD) + 2).to_bytes(2, "big") + RECORD
    assert kinds(raw[:2] + body + raw[2:]) == {"iptc:copyright": True}


def test_extended_xmp_is_joined():
    parts = [PROHIBITED[:150], PROHIBITED[150:300], PROHIBITED[300:]]
    raw, position, inserted = image_file(), 0, b""
    for part in parts:
        body = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + len(PROHIBITED).to_bytes(4, "big")
        body += position.to_bytes(4, "big") + part
        inserted += b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
        position += len(part)
    assert kinds(raw[:2] + inserted + raw[2:])["xmp:data-mining"] is True


def test_what_exceeds_the_budget_reserves_and_costs_little():
    """150 compressed chunks after the end took 103 seconds."""
    many = b"<rdf:RDF xmlns:rdf='urn:x'>" + b"<a/>" * 470_000 + b"</rdf:RDF>"
    body = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(many, 9)
    chunk = len(body).to_bytes(4, "big") + b"iTXt" + body + bytes(4)
    entries = (8).to_bytes(4, "little") + (60_000).to_bytes(2, "little")
    entries += b"".join(
        number.to_bytes(2, "little") + b"\1\0" + (700_000).to_bytes(4, "little") + bytes(4) for number in range(60_000)
    )
    utf16 = "<RDF></RDF>".encode("utf-16-le")
    hostile = [
        image_file("PNG") + chunk * 150,
        image_file("GIF") + packet("<a/>" * 1000) * 500,
        image_file("GIF") + utf16 * 100_000,
        image_file("GIF") + b"<" + b"a" * 999 + b"RDF",
        image_file("GIF") + (b"<" + b"a" * 999) * 10_000 + b"RDF",
        with_chunk(b"tEXt", b"Copyright\0" + b"train " * 500_000),
        image_file(xmp=packet("", " ".join(f'a{n}="1"' for n in range(5000)))),
        with_chunk(b"eXIf", b"II*\0" + entries),
    ]
    for raw in hostile:
        begin = time.perf_counter()
        signals = metadata_signals(raw)
        assert time.perf_counter() - begin < 3, raw[:200]
        assert all(signal.reserved for signal in signals if signal.kind == "xmp:unreadable")
    assert kinds(hostile[0]) == kinds(hostile[1]) == kinds(hostile[2]) == {"xmp:unreadable": True}
    begin = time.perf_counter()
    assert repair_image(hostile[-1], ImageRule()).width == NOISE.width
    assert time.perf_counter() - begin < 3

"""No position stays in XMP of files whose bytes are kept; everything else in them does."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from toys.images import encoded_image, two_coloured_image

from data_tools.rights.file_rights import rights_in_file
from data_tools.samples.private_metadata import strip_private
from leam_mm.data.xmp_positions import without_positions

PACKET = (
    b'<?xpacket begin="" id="W5M0"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" '
    b'xmlns:e="http://ns.adobe.com/exif/1.0/"><rdf:Description rdf:about="" plus:DataMining="DMI-PROHIBITED" '
    b'e:GPSLatitude="48,12.5N" e:GPSLongitude = \'11,34.1E\' e:Flash="GPS"><e:GPSAltitude>519/1</e:GPSAltitude>'
    b'<e:GPSVersionID rdf:resource="2.3.0.0"/><e:GPSTimeStamp>'
    b"<rdf:Seq><rdf:li>12:00</rdf:li></rdf:Seq></e:GPSTimeStamp>"
    b"<e:UserComment>GPS off</e:UserComment></rdf:Description></rdf:RDF></x:xmpmeta>"
)
SECRETS = (b"48,12", b"11,34", b"519/1", b"2.3.0", b"12:00")


def png(kind: str) -> bytes:
    texts = PngImagePlugin.PngInfo()
    if kind == "tEXt":
        texts.add_text("XML:com.adobe.xmp", PACKET.decode())
    else:
        texts.add_itxt("XML:com.adobe.xmp", PACKET.decode(), zip=kind == "compressed")
    return encoded_image(two_coloured_image(), "PNG", pnginfo=texts)


FILES = {
    "jpeg": lambda: encoded_image(two_coloured_image(), "JPEG", xmp=PACKET),
    "webp": lambda: encoded_image(two_coloured_image(), "WEBP", xmp=PACKET, lossless=True),
    "iTXt": lambda: png("iTXt"),
    "compressed": lambda: png("compressed"),
    "tEXt": lambda: png("tEXt"),
}


def opened(raw: bytes) -> tuple[bytes, bytes]:
    """Pixels and XMP packet."""
    image = Image.open(io.BytesIO(raw))
    found = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return np.asarray(image).tobytes(), found.encode() if isinstance(found, str) else found


@pytest.mark.parametrize("kind", FILES)
def test_positions_go_and_pixels_and_reservations_stay(kind: str) -> None:
    raw = FILES[kind]()
    assert all(secret in opened(raw)[1] for secret in SECRETS)
    changed, removed = strip_private(raw)
    assert removed == ["xmp-position"]
    pixels, packet = opened(changed)
    assert pixels == opened(raw)[0] and len(packet) == len(PACKET)
    assert not any(secret in packet or secret in changed for secret in SECRETS)
    assert b'e:Flash="GPS"' in packet and b"<e:UserComment>GPS off</e:UserComment>" in packet
    assert (
        [signal.value for signal in rights_in_file(changed)] == [signal.value for signal in rights_in_file(raw)] != []
    )
    assert strip_private(changed) == (changed, [])


def test_packets_that_cannot_be_told_apart_become_spaces() -> None:
    unclosed = PACKET.replace(b"</e:GPSAltitude>", b"")
    many = b"<e:GPSAltitude/>" * 300
    for packet in (PACKET.decode().encode("utf-16"), unclosed, many):
        assert without_positions(packet) == b" " * len(packet)
    for packet in (b"", b"<a:b>GPS</a:b>", PACKET[: PACKET.index(b"e:GPS")], b"x" * 100_000):
        assert without_positions(packet) == packet


def test_a_compressed_bomb_is_read_up_to_a_limit() -> None:
    bomb = zlib.compress(b"<e:GPSAltitude>" + b" " * 50_000_000)
    body = b"iTXtXML:com.adobe.xmp\0\x01\0\0\0" + bomb
    plain = encoded_image(two_coloured_image(), "PNG")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    changed, removed = strip_private(plain[:33] + chunk + plain[33:])
    assert removed == ["xmp-position"] and len(changed) < len(plain) + 3000

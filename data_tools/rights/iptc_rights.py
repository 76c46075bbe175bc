"""Rights in the embedded metadata of an image (XMP, IPTC, EXIF), read from the bytes as they were fetched.

``plus:DataMining`` (IPTC Photo Metadata Standard 2023.1, vocabulary of the PLUS coalition) reserves rights with every
value except DMI-ALLOWED and DMI-UNSPECIFIED; ``tdm:reservation`` of TDMRep does with 1. Copyright notices, usage terms
and web statements name the owner, which reserves nothing, unless the text mentions mining or training. Whether natural
language is machine-readable is disputed (LG Hamburg, 310 O 227/23, 2024, tends to yes). XMP packets are searched
anywhere in the file (XMP specification part 3), and in compressed text of PNG.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from xml.parsers import expat

from PIL import ExifTags, IptcImagePlugin

from data_tools.rights.reservation_grammar import tdm_value
from data_tools.rights.reservations import Signal
from leam_mm.data.image_file import open_image

PLUS, TDM = "http://ns.useplus.org/ldf/xmp/1.0/", "http://www.w3.org/ns/tdmrep/"
# Qualified names as expat writes them -> kind of the signal.
PROPERTIES = {
    f"{PLUS} DataMining": "xmp:data-mining",
    f"{TDM} reservation": "xmp:tdm-reservation",
    "http://purl.org/dc/elements/1.1/ rights": "xmp:rights",
    "http://ns.adobe.com/xap/1.0/rights/ UsageTerms": "xmp:usage-terms",
    "http://ns.adobe.com/xap/1.0/rights/ WebStatement": "xmp:web-statement",
    "http://creativecommons.org/ns# license": "xmp:licence",
    f"{PLUS} OtherConstraints": "xmp:other-constraints",
}
RESOURCE = "http://www.w3.org/1999/02/22-rdf-syntax-ns# resource"
FREE = ("DMI-ALLOWED", "DMI-UNSPECIFIED")
IPTC = {(2, 40): "iptc:instructions", (2, 116): "iptc:copyright"}  # IIM 4.2 data sets
# Limits: bytes of a packet, characters of a text, packets of a file, nesting, characters of a text in a signal.
MOST_XMP, MOST_WORDS, MOST_PACKETS, DEPTH, SHOWN = 2_000_000, 20_000, 20, 64, 300
_RDF = re.compile(rb"<((?:[A-Za-z_][\w.-]{0,20}:)?)RDF[\s>]")
# Texts that concern us mention mining, the directive, or training near a word for machines; words of the larger
# languages of the Union.
_MACHINES = r"(?:\b(?:ai|ia|ki)\b|artificial intel|intel{1,2}igen\w{1,5} artific|künstliche\w? intel|machine|maschin)"
_TRAINING = r"(?:\btrain|entra.{1,3}ne|\bentren|addestra|\btrein|szkoleni|trénov)"
MINING = re.compile(
    rf"data[ -]?mining|\btdm\b|machine[ -]learning|\bnoai\b|2019/790|44b UrhG|fouille de textes|estrazione di testo"
    rf"|minería de textos|{_TRAINING}.{{0,60}}{_MACHINES}|{_MACHINES}.{{0,60}}{_TRAINING}",
    re.IGNORECASE | re.DOTALL,
)


def metadata_signals(raw: bytes) -> list[Signal]:
    """Return a signal for each rights property in a file, whether it reserves rights or not.

    Args:
        raw: The image file as it was fetched, of any size.
    """
    found: dict[tuple[str, str], None] = {}
    for packet in _packets(raw):
        found |= dict.fromkeys(_read_packet(packet))
    if b"Exif" in raw or b"eXIf" in raw or b"EXIF" in raw or b"8BIM" in raw:
        found |= dict.fromkeys(_pillow_properties(raw))
    return [Signal(kind, value[:SHOWN], "file", _reserves(kind, value)) for kind, value in sorted(found)]


def _reserves(kind: str, value: str) -> bool:
    if kind == "xmp:unreadable":
        return True
    if kind == "xmp:data-mining":
        word = value.strip().rstrip("/").rpartition("/")[2].upper()
        return word not in FREE and value.strip().casefold() != "allowed"
    if kind == "xmp:tdm-reservation":
        return tdm_value(value) is True
    return bool(MINING.search(value[:MOST_WORDS]))


def _packets(raw: bytes) -> Iterator[bytes]:
    """Yield the RDF of each XMP packet in the file."""
    yield from _rdf(raw)
    if raw.startswith(b"\x89PNG") and b"XML:com.adobe.xmp" in raw:
        for text in _compressed_texts(raw):
            yield from _rdf(text)


def _rdf(raw: bytes) -> Iterator[bytes]:
    position = 0
    if b"RDF" not in raw:
        return
    for _ in range(MOST_PACKETS):
        begin = _RDF.search(raw, position)
        if begin is None:
            return
        close = b"</" + begin[1] + b"RDF>"
        end = raw.find(close, begin.end())
        # A packet without an end, or too long, is passed on as it is; the parser will call it unreadable.
        position = min(end + len(close) if end >= 0 else len(raw), begin.start() + MOST_XMP)
        yield raw[begin.start() : position]


def _compressed_texts(raw: bytes) -> Iterator[bytes]:
    """Yield XMP in compressed iTXt chunks (PNG specification, 11.3.3.4)."""
    position = 8
    while position + 12 <= len(raw):
        length, name = struct.unpack(">I4s", raw[position : position + 8])
        body = raw[position + 8 : position + 8 + length]
        if name == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0\1\0"):
            try:
                yield zlib.decompressobj().decompress(body[20:].split(b"\0", 2)[2], MOST_XMP)
            except (zlib.error, IndexError):
                yield b"<rdf:RDF >DataMining"  # unreadable text may hold a reservation
        position += 12 + length


def _read_packet(packet: bytes) -> Iterator[tuple[str, str]]:
    """Yield kind and value of each property in PROPERTIES; a broken packet that mentions mining is ``unreadable``."""
    reader = _PacketReader()
    try:
        reader.read(packet)
    except (expat.ExpatError, ValueError) as error:
        if b"DataMining" in packet or b"reservation" in packet:
            yield "xmp:unreadable", str(error)[:SHOWN]
    yield from reader.found


class _PacketReader:
    """Reads properties from the events of an XML parser: no tree, no entities, limited nesting."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []
        self._open: list[tuple[str | None, list[str]]] = []  # kind of each open element, and its text so far

    def read(self, packet: bytes) -> None:
        if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
            raise ValueError("a packet with a document type")
        parser = expat.ParserCreate("utf-8", " ")
        parser.StartElementHandler, parser.EndElementHandler = self._begin, self._end
        parser.CharacterDataHandler = self._text
        # Packets are cut out at rdf:RDF; their prefixes may be declared in an outer element.
        parser.Parse(_with_prefixes(packet), True)

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) > DEPTH:
            raise ValueError("a packet nested too deeply")
        kind = PROPERTIES.get(name)
        self._open.append((kind, []))
        for attribute, value in attributes.items():
            if attribute in PROPERTIES:
                self.found.append((PROPERTIES[attribute], value))
            elif attribute == RESOURCE and kind:
                self.found.append((kind, value))

    def _text(self, text: str) -> None:
        # Text belongs to the innermost property around it: values may be inside rdf:Alt and rdf:li.
        for kind, parts in reversed(self._open):
            if kind:
                parts.append(text)
                return

    def _end(self, _: str) -> None:
        kind, parts = self._open.pop()
        if kind and (value := " ".join("".join(parts).split())):
            self.found.append((kind, value))


def _with_prefixes(packet: bytes) -> bytes:
    """Wrap a packet in an element that declares the usual prefixes."""
    usual = {
        b"rdf": b"http://www.w3.org/1999/02/22-rdf-syntax-ns#",
        b"plus": PLUS.encode(),
        b"tdm": TDM.encode(),
        b"dc": b"http://purl.org/dc/elements/1.1/",
        b"xmpRights": b"http://ns.adobe.com/xap/1.0/rights/",
    }
    declared = b"".join(b' xmlns:%s="%s"' % pair for pair in usual.items())
    return b"<x%s>%s</x>" % (declared, packet)


def _pillow_properties(raw: bytes) -> Iterator[tuple[str, str]]:
    """Yield EXIF's Copyright and IPTC's notice and instructions; broken metadata of this kind is ignored."""
    try:
        with open_image(raw) as image:
            if text := _plain(image.getexif().get(ExifTags.Base.Copyright)):
                yield "exif:copyright", text
            notes = IptcImagePlugin.getiptcinfo(image) or {} if image.format == "JPEG" else {}
            for key, kind in IPTC.items():
                if text := _plain(notes.get(key)):
                    yield kind, text
    except Exception:  # Pillow's parsers raise many kinds on hostile headers; decoding checks such a file later
        return


def _plain(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join(text.replace("\0", " ").split())

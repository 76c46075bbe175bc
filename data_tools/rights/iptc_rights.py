"""Rights in the embedded metadata of an image (XMP, IPTC, EXIF), read from the bytes as they were fetched.

``plus:DataMining`` (IPTC Photo Metadata Standard 2023.1, vocabulary of the PLUS coalition) reserves rights with every
value except DMI-ALLOWED and DMI-UNSPECIFIED; ``tdm:reservation`` of TDMRep does with 1. Copyright notices, usage terms
and web statements name the owner, which reserves nothing, unless the text mentions mining or training. Whether natural
language is machine-readable is disputed (LG Hamburg, 310 O 227/23, 2024, tends to yes). Metadata that cannot be read
within the limits reserves rights: it may hold a reservation.
"""

import re
from collections.abc import Iterator
from xml.parsers import expat

from PIL import ExifTags

from data_tools.rights.metadata_texts import read_metadata
from data_tools.rights.reservation_grammar import tdm_value
from data_tools.rights.reservations import Signal
from data_tools.work.foreign_error import first_line
from leam_mm.data.exif_size import exif_block, exif_is_small
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
UNREADABLE = "xmp:unreadable"
FREE = ("DMI-ALLOWED", "DMI-UNSPECIFIED")
# Limits: elements and attributes of a file, characters of all statements and of one, nesting, characters in a signal.
MOST_ELEMENTS, MOST_TEXT, MOST_WORDS, DEPTH, SHOWN = 100_000, 400_000, 20_000, 64, 300
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
    metadata, elements = read_metadata(raw), MOST_ELEMENTS
    for packet in metadata.packets:
        reader = _PacketReader(elements)
        found |= dict.fromkeys(_read_packet(reader, packet))
        elements = reader.elements
    found |= dict.fromkeys((kind, text) for kind, given in metadata.notes if (text := _plain(given)))
    if b"Exif" in raw or b"eXIf" in raw or b"EXIF" in raw or b"Raw profile type exif" in raw:
        found |= dict.fromkeys(_exif_properties(raw))
    if metadata.over or elements < 0 or sum(len(value) for _, value in found) > MOST_TEXT:
        return [Signal(UNREADABLE, "more metadata than is read", "file", True)]
    return [Signal(kind, value[:SHOWN], "file", _reserves(kind, value)) for kind, value in sorted(found)]


def _reserves(kind: str, value: str) -> bool:
    if kind == UNREADABLE:
        return True
    if kind == "xmp:data-mining":
        word = value.strip().rstrip("/").rpartition("/")[2].upper()
        return word not in FREE and value.strip().casefold() != "allowed"
    if kind == "xmp:tdm-reservation":
        return tdm_value(value) is True
    return bool(MINING.search(value[:MOST_WORDS]))


def _read_packet(reader: "_PacketReader", packet: bytes) -> Iterator[tuple[str, str]]:
    """Yield kind and value of each property in PROPERTIES; a broken packet that mentions mining is ``unreadable``."""
    try:
        reader.read(packet)
    except (expat.ExpatError, ValueError) as error:
        if b"DataMining" in packet or b"reservation" in packet:
            yield UNREADABLE, first_line(error)[:SHOWN]
    yield from reader.found


class _PacketReader:
    """Reads properties from the events of an XML parser: no tree, no entities, limited nesting."""

    def __init__(self, elements: int) -> None:
        self.elements = elements  # that may still be read, attributes included
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
        self.elements -= 1 + len(attributes)
        if self.elements < 0:
            raise ValueError("a packet of too many elements")
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


def _exif_properties(raw: bytes) -> Iterator[tuple[str, str]]:
    """Yield EXIF's Copyright; a block that cannot be read and mentions mining is unreadable."""
    block = b""
    try:
        with open_image(raw) as image:
            block = exif_block(image)
            if not exif_is_small(block):
                raise ValueError("an EXIF block that claims more than it holds")
            if text := _plain(image.getexif().get(ExifTags.Base.Copyright)):
                yield "exif:copyright", text
    except Exception as error:  # Pillow's parsers raise many kinds on hostile headers; decoding checks the file later
        if MINING.search(block[:MOST_WORDS].decode("latin-1")):
            yield UNREADABLE, first_line(error)[:SHOWN]


def _plain(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    return " ".join(text.replace("\0", " ").split())

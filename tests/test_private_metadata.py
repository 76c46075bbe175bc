"""data_tools.samples.private_metadata: what tells about persons goes; pixels, rights, colours and orientation stay."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from toys.images import ADOBE, encoded_image, matrix_profile, two_coloured_image
from toys.signed_images import sign

from data_tools.rights.iptc_rights import metadata_signals
from data_tools.samples.image_repair import ImageRule, repair_image
from data_tools.samples.private_metadata import strip_private

KINDS = ("JPEG", "PNG", "WEBP")
XMP = b"<rdf:RDF xmlns:rdf='urn:x'><a xmlns:dc='http://purl.org/dc/elements/1.1/' dc:rights='mine'/></rdf:RDF>"


def exif_of(gps: bool = True, note: bool = True, copyright: str = "") -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    if copyright:
        exif[ExifTags.Base.Copyright] = copyright
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (51.0, 3.0, 0.0)
    if note:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = b"SECRET"
    return exif


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copyright", ["", "Jane Doe"])
@pytest.mark.parametrize(("gps", "note"), [(True, False), (False, True), (True, True)])
def test_positions_and_maker_notes_go_and_pixels_and_copyright_stay(
    kind: str, copyright: str, gps: bool, note: bool
) -> None:
    raw = encoded_image(two_coloured_image(), kind, exif=exif_of(gps, note, copyright), xmp=XMP)
    image = repair_image(raw, ImageRule())
    assert image.transforms == ["strip:exif"] and b"SECRET" not in image.content and len(image.content) < len(raw)
    assert np.array_equal(pixels(image.content), pixels(raw))
    kept = Image.open(io.BytesIO(image.content)).getexif()
    assert dict(kept) == ({ExifTags.Base.Copyright: copyright} if copyright else {})
    assert metadata_signals(image.content) == metadata_signals(raw)
    assert repair_image(image.content, ImageRule()).content == image.content


@pytest.mark.parametrize("kind", KINDS)
def test_data_behind_the_end_go(kind: str) -> None:
    raw = encoded_image(two_coloured_image(), kind)
    image = repair_image(raw + b"PK\x03\x04 a hidden archive", ImageRule())
    assert image.content == raw and image.transforms == ["strip:trailing"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_private_metadata_keep_their_bytes(kind: str) -> None:
    profile = matrix_profile(ADOBE, 2.2, "Adobe")
    plain = exif_of(False, False, "Jane Doe")
    options = [{}, {"exif": plain}, {"xmp": XMP}, {"icc_profile": profile}, {"exif": plain, "icc_profile": profile}]
    for option in options:
        raw = encoded_image(two_coloured_image(), kind, **option)
        assert strip_private(raw) == (raw, [])
    if kind == "JPEG":
        raw = encoded_image(two_coloured_image(), kind, progressive=True)
        assert strip_private(raw) == (raw, []) and strip_private(raw[:-9]) == (raw[:-9], [])


def test_orientation_and_colour_profile_stay() -> None:
    exif = exif_of()
    exif[ExifTags.Base.Orientation] = 6
    profile = matrix_profile(ADOBE, 2.2, "Adobe")
    for kind in KINDS:
        content, removed = strip_private(encoded_image(two_coloured_image(), kind, exif=exif, icc_profile=profile))
        image = Image.open(io.BytesIO(content))
        assert removed == ["exif"] and image.getexif()[ExifTags.Base.Orientation] == 6
        assert image.info["icc_profile"] == profile


def test_a_thumbnail_goes() -> None:
    raw = encoded_image(two_coloured_image(), "JPEG")
    small = b"JFXX\0\x10" + encoded_image(two_coloured_image(8, 8), "JPEG")
    assert strip_private(raw[:2] + b"\xff\xe0" + (len(small) + 2).to_bytes(2, "big") + small + raw[2:]) == (
        raw,
        ["thumbnail"],
    )


def test_signed_files_keep_their_bytes() -> None:
    raw = sign(encoded_image(two_coloured_image(), "JPEG", exif=exif_of()))
    assert strip_private(raw) == (raw, [])


def test_any_damage_ends_in_an_answer() -> None:
    random = np.random.default_rng(0)
    for kind in KINDS:
        raw = encoded_image(two_coloured_image(), kind, exif=exif_of(copyright="Jane Doe")) + b"behind"
        for _ in range(150):
            broken = bytearray(raw[: random.integers(1, len(raw) + 1)])
            for place in random.integers(0, len(broken), 4):
                broken[place] = random.integers(0, 256)
            strip_private(bytes(broken))

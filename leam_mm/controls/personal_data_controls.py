"""Controls of personal data: planted identifiers that are valid, and look-alikes that are not."""

import io
import json
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image

from leam_mm.audits.audit import AuditContext, AuditResult, Verdict
from leam_mm.audits.generated_text import GeneratedText
from leam_mm.audits.personal_data import PersonalData
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_shards import control_image, every, write_control_shards
from leam_mm.controls.judged_results import judged
from leam_mm.files import write_bytes

SUBJECT, GENERATED = "audit/personal_data", "audit/personal_data/generated_text"
IMAGES = 40
PLANTED = {  # reserved domains and published examples: they identify nobody
    "e-mail address": ("write to", "anna@example.de"),
    "IBAN": ("account", "DE89 3704 0044 0532 0130 00"),
    "telephone number": ("tel.", "+49 30 901820"),
    "national number beside its word": ("PESEL", "44051401359"),
}
LOOK_ALIKES = (
    "IBAN DE89 3704 0044 0532 0130 01", "x@example.notatld", "stock photo 44051401359", "price 1.299,00 €",
    "12.03.2021", "2048 x 1536 px", "article 4111 1111 1111 1112", "version 1.10.4.2", "3-4-5 triangle",
)  # fmt: skip


class _PixelText:
    """Detector of text that is written into the first row of an image, one character a pixel."""

    def __call__(self, image: Image.Image) -> list[str]:
        row = [image.getpixel((column, 0)) for column in range(image.width)]
        return ["".join(chr(pixel[0]) for pixel in row if isinstance(pixel, tuple) and pixel[0])]


def _written(text: str) -> bytes:
    image = Image.new("RGB", (64, 8))
    for column, letter in enumerate(text):
        image.putpixel((column, 0), (ord(letter), 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _caption(text: str) -> dict[str, object]:
    return {"captions": [{"text": text, "language": "en", "source": "alt", "machine_translated": False}]}


def _revealing(results: list[AuditResult], identifier: str) -> bool:
    """Return whether the results hold what was planted."""
    written = json.dumps([result.as_dict() for result in results], ensure_ascii=False)
    return identifier in written or identifier.replace(" ", "") in written


def _planted(before: str, text: str, folder: Path) -> Outcome:
    shards = write_control_shards(folder / "shards", every(12, _caption(f"a lake, {before} {text}")))
    results = PersonalData().run(AuditContext(None, None, folder, shards=shards))
    outcome = judged(results, {"personal_data": "fail", "personal_data/positions": "pass"})
    return Outcome(f"{outcome.found}; written", False) if _revealing(results, text) else outcome


def _look_alikes(folder: Path) -> Outcome:
    shards = write_control_shards(folder / "shards", lambda number: _caption(LOOK_ALIKES[number % len(LOOK_ALIKES)]))
    return judged(PersonalData().run(AuditContext(None, None, folder, shards=shards)), {"personal_data": "pass"})


def _photograph(number: int, position: bool) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Copyright] = "lake office"
    if position and number == 3:
        exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (52.0, 31.0, 0.0)
    return control_image(number, exif=exif)


def _positions(position: bool, verdict: Verdict, folder: Path) -> Outcome:
    shards = write_control_shards(folder / "shards", images=partial(_photograph, position=position))
    results = PersonalData().run(AuditContext(None, None, folder, shards=shards))
    return judged(results, {"personal_data/positions": verdict})


def _generated(text: str, verdict: Verdict, folder: Path) -> Outcome:
    for number in range(IMAGES):
        write_bytes(folder / "images" / f"{number}.png", _written(text if number == 7 else f"lake {number}"))
    results = GeneratedText(_PixelText(), folder / "images").run(AuditContext(None, None, folder))
    outcome = judged(results, {"personal_data/generated_text": verdict})
    return Outcome(f"{outcome.found}; written", False) if _revealing(results, text) else outcome


def personal_data_controls() -> list[Control]:
    """Return the controls."""
    return [
        *(Control(SUBJECT, f"valid {name} in a caption", True, "fail, and it is not written", partial(_planted, *words))
          for name, words in PLANTED.items()),
        Control(SUBJECT, "look-alikes: wrong checksums, dates, prices, sizes", False, "pass", _look_alikes),
        Control(SUBJECT, "image that says where it was taken", True, "positions fail",
                partial(_positions, True, "fail")),
        Control(SUBJECT, "images with a copyright in EXIF", False, "pass", partial(_positions, False, "pass")),
        Control(GENERATED, "generated image that shows an e-mail address", True, "fail, and it is not written",
                partial(_generated, "anna@example.de", "fail")),
        Control(GENERATED, "generated images that show other text", False, "pass",
                partial(_generated, "no 44051401359", "pass")),
    ]  # fmt: skip

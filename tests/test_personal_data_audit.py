"""Audit of personal data: captions, positions, faces, and text in generated images; nothing reveals what was found."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toys.codecs import tiny_kl
from toys.generators import tiny_generator
from toys.images import encoded_image

from leam_mm.audits.audit import Audit, AuditContext, NotRun
from leam_mm.audits.generated_text import GeneratedText
from leam_mm.audits.identifiers import IdentifierCounts, load_finder, masked
from leam_mm.audits.image_positions import has_position
from leam_mm.audits.personal_data import PersonalData
from leam_mm.controls.control_shards import control_image, every, write_control_shards
from leam_mm.controls.personal_data_controls import _caption as caption
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError

CASES = yaml.safe_load(Path(__file__).with_name("personal_data_cases.yaml").read_text("utf-8"))
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description exif:GPSLatitude="52,31.0N"/></x:xmpmeta>'


def audited(folder: Path, audit: Audit, **inputs: Any) -> dict[str, dict]:
    rows = [
        result.as_dict() for result in audit.run(AuditContext(None, inputs.pop("generator", None), folder, **inputs))
    ]
    return {row["name"]: row for row in rows}


def test_labelled_captions_of_all_countries_are_found_and_not_revealed(tmp_path: Path) -> None:
    """Every labelled case of tests/personal_data_cases.yaml, each the caption of one sample."""
    texts = [
        text for kind, countries in CASES.items() if kind != "none" for case in countries.values() for text in case
    ]
    clean = [text for text in CASES["none"]]
    captions = [re.sub("[{}]", "", text) for text in texts + clean]
    shards = write_control_shards(tmp_path / "shards", lambda n: caption(captions[n]), samples=len(captions))
    found = audited(tmp_path, PersonalData(), shards=shards)["audit/personal_data"]
    with_one = sum("{" in text for text in texts)
    assert found["value"] == with_one > 100 and found["samples"] == len(captions) and found["verdict"] == "fail"
    kinds = {name for name in found["slices"] if name.startswith("kind=")}
    assert kinds == {f"kind={kind}" for kind in CASES if kind != "none"}
    written = json.dumps(found, ensure_ascii=False)
    secrets = {secret for text in texts for secret in re.findall("{(.*?)}", text) if len(secret) > 5}
    assert len(secrets) > 100 and not [secret for secret in secrets if secret in written]
    assert len(found["slices"]["examples"]) == 20


def test_kinds_can_be_chosen(tmp_path: Path) -> None:
    shards = write_control_shards(
        tmp_path / "shards", every(2, caption("by @anna_b"), (caption("x, anna@example.de"),))
    )
    found = audited(tmp_path, PersonalData(kinds=["email"]), shards=shards)["audit/personal_data"]
    assert found["value"] == 12 and "kind=handle" not in found["slices"]
    rate = found["slices"]["texts with one per 10,000"]
    assert rate["value"] == 5000 and rate["low"] < 5000 < rate["high"]
    with pytest.raises(UserError, match="kinds names 'shoe size': give some of email, phone"):
        audited(tmp_path, PersonalData(kinds=["shoe size"]), shards=shards)


def test_masks_keep_the_form_only() -> None:
    assert masked("anna.Björk@example.de") == "xxxx.xxxxx@xxxxxxx.xx" and masked("DE89 3704") == "xx99 9999"
    assert masked("٣٤") == "99" and masked("тел. 12") == "xxx. 99"
    counts = IdentifierCounts()
    counts.add("write to anna@example.de", "sample 7", load_finder(None))
    assert counts.examples[0]["sample"] != "sample 7" and len(counts.examples[0]["sample"]) == 12


def test_without_its_libraries_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "leam_mm.data.personal_data", raising=False)
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    with pytest.raises(NotRun, match=r"phonenumbers is not installed: pip install 'leam_mm\[data\]'"):
        load_finder(None)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_positions_are_read_in_exif_and_xmp(kind: str) -> None:
    image, exif = Image.new("RGB", (8, 8)), Image.Exif()
    exif[0x8298] = "lake office"
    assert (
        has_position(encoded_image(image, kind)) is False
        and has_position(encoded_image(image, kind, exif=exif)) is False
    )
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    assert has_position(encoded_image(image, kind, exif=exif)) is True
    if kind == "PNG":
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP)
        assert has_position(encoded_image(image, kind, pnginfo=info)) is True
    else:
        assert has_position(encoded_image(image, kind, xmp=XMP.encode())) is True


def test_metadata_behind_the_pixels_of_a_png_counts() -> None:
    exif = Image.Exif()
    exif[0x8298], exif.get_ifd(0x8825)[2] = "lake office", (52.0, 31.0, 0.0)
    content = encoded_image(Image.new("RGB", (8, 8)), "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    moved = content[:start] + content[end:last] + content[start:end] + content[last:]
    assert len(moved) == len(content) and moved != content and has_position(moved) is True


@pytest.mark.parametrize("content", [b"", b"GIF89a", control_image(1)[:60], b"\xff\xd8\xff\xe1" + bytes(90)])
def test_damaged_images_are_not_clean(content: bytes, tmp_path: Path) -> None:
    assert has_position(content) is None
    shards = write_control_shards(tmp_path / "shards", images=lambda n: content if n == 3 else control_image(n))
    found = audited(tmp_path, PersonalData(), shards=shards)["audit/personal_data/positions"]
    assert (found["value"], found["samples"], found["verdict"]) == (0, 23, "inconclusive")
    assert found["note"].startswith("1 images cannot be read")


class Faces:
    """Detector that sees a face in images whose first pixel is dark."""

    def find(self, images: list[np.ndarray]) -> list[list[Any]]:
        return [["face"] * 2 if image[0, 0].mean() < 100 else [] for image in images]


def test_faces_are_counted_with_a_detector_of_anybody(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards")
    dark = sum(np.random.default_rng(n).integers(0, 256, (16, 16, 3), np.uint8)[0, 0].mean() < 100 for n in range(24))
    assert 0 < dark < 12
    found = audited(tmp_path, PersonalData(face_detector=Faces()), shards=shards)["audit/personal_data/faces"]
    assert found["value"] == pytest.approx(10_000 * dark / 24) and found["slices"]["faces"] == 2 * dark
    assert found["verdict"] == "inconclusive" and "no largest number was set" in found["note"]
    for most, verdict in ((9999, "pass"), (1, "fail")):
        row = audited(tmp_path, PersonalData(face_detector=Faces(), most_faces=most), shards=shards)
        assert row["audit/personal_data/faces"]["verdict"] == verdict


def test_the_cascade_of_data_tools_finds_the_faces_of_photographs(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    from skimage.data import astronaut, coffee

    from data_tools.vetting.face_cascade import FaceCascade

    files = [encoded_image(Image.fromarray(pixels).resize((256, 256))) for pixels in (astronaut(), coffee())]
    shards = write_control_shards(tmp_path / "shards", images=lambda n: files[n], samples=2)
    found = audited(tmp_path, PersonalData(face_detector=FaceCascade(smallest=30)), shards=shards)
    assert found["audit/personal_data/faces"]["slices"] == {"faces": 1, "images with a face": 1}


class Constant:
    """Detector that reads the same in every image."""

    def __init__(self, text: str) -> None:
        self.text, self.sizes = text, set()

    def __call__(self, image: Image.Image) -> list[str]:
        self.sizes.add((image.mode, image.size))
        return [self.text]


def test_text_in_images_of_the_generator(tmp_path: Path, toy_tokenizer: Path) -> None:
    generator = tiny_generator(toy_tokenizer, tiny_kl(), 1.0)
    shards = write_control_shards(tmp_path / "shards")
    for text, verdict, hits in (("no text", "pass", 0), ("call +49 30 901820", "fail", 32)):
        detector = Constant(text)
        audit = GeneratedText(detector, images=32, sampling=SamplerSettings(1))
        found = audited(tmp_path, audit, generator=generator, shards=shards)["audit/personal_data/generated_text"]
        assert (found["verdict"], found["value"], found["samples"]) == (verdict, hits, 32)
        assert len(detector.sizes) == 1 and next(iter(detector.sizes))[0] == "RGB"
    few = GeneratedText(Constant(""), images=8, sampling=SamplerSettings(1))
    found = audited(tmp_path, few, generator=generator, shards=shards)["audit/personal_data/generated_text"]
    assert found["verdict"] == "inconclusive" and "8 samples, at least 30 are needed" in found["note"]


def test_folders_of_images_and_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images holds no image: give the folder of generated images"):
        audited(tmp_path, GeneratedText(Constant(""), tmp_path / "images"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.png cannot be read .*remove it from the folder"):
        audited(tmp_path, GeneratedText(Constant(""), tmp_path / "images"))
    with pytest.raises(NotRun, match="no shards was given"):
        audited(tmp_path, GeneratedText(Constant("")))
    for wrong in (lambda: PersonalData(samples=0), lambda: GeneratedText(Constant(""), images=0)):
        with pytest.raises(UserError, match="is 0: give at least 1"):
            wrong()


def test_few_samples_drawn_from_many_do_not_pass(tmp_path: Path) -> None:
    shards = write_control_shards(tmp_path / "shards", samples=40)
    for number, verdict in ((1, "inconclusive"), (29, "inconclusive"), (30, "pass"), (None, "pass")):
        context = AuditContext(None, None, tmp_path, shards=shards)
        found = PersonalData(samples=number).run(context)
        assert {result.verdict for result in found} == {verdict}, number

"""Bias of a generator: shares of values, readers and their errors, labels by people, and what is needed to decide."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from toys.images import COLOURS, coloured_square
from toys.shards import write_samples

from leam_mm.audits.attribute_readers import ABSTAINS, AttributeReader, EncoderAttribute, LabelsOfPeople, SceneColours
from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.generator_bias import GeneratorBias
from leam_mm.controls.coded_models import CodedEncoder, CodedGenerator
from leam_mm.controls.control_images import image_numbers, numbered_png
from leam_mm.errors import UserError

TABLE = "languages: {en: {templates: [a '{}', the '{}'], things: {p: pea, q: quince}}, de: {things: {p: x, q: y}}}"


class RedReader(AttributeReader):
    """Reads the red channel: below 100 dark, above 200 bright, between them nothing."""

    attribute, values = "brightness", ["dark", "bright"]

    def __init__(self, exact: bool = False, known: list[tuple[int, str]] | None = None) -> None:
        self.exact, self.given = exact, known

    def read(self, images: torch.Tensor, first: int) -> numpy.ndarray:
        red = images[:, 0, 0, 0].numpy()
        return numpy.select([red < 100, red > 200], [0, 1], ABSTAINS)

    def known(self, side: int):
        if self.given is None:
            return None
        return ((torch.full((1, 3, side, side), red, dtype=torch.uint8), [value]) for red, value in self.given)


def generator(red) -> CodedGenerator:
    return CodedGenerator(lambda prompt, number: torch.full((3, 8, 8), red(prompt, number) / 255))


def table(folder: Path, text: str = TABLE.replace("[a '{}', the '{}']", "['a {}', 'the {}']")) -> Path:
    (folder / "prompts.yaml").write_text(text)
    return folder / "prompts.yaml"


def audit(folder: Path, reader: AttributeReader | None, **changes: object) -> GeneratorBias:
    settings = {"prompts": table(folder), "section": "things", "images": 100} | changes
    return GeneratorBias(reader, **settings)


def test_shares_by_value_language_and_prompt(tmp_path: Path) -> None:
    seen: list[str] = []

    def red(prompt: str, number: int) -> int:
        seen.append(prompt)
        return 255 if prompt in ("the pea", "y") else 0 if number % 10 else 150

    (result,) = audit(tmp_path, RedReader(exact=True)).run(AuditContext(None, generator(red), tmp_path))
    assert result.audit == "generator_bias/brightness"
    assert [seen.count(text) for text in ("a pea", "the pea", "a quince", "the quince", "x", "y")] == [50] * 4 + [
        100
    ] * 2
    bright = 50 + 100
    answered = result.samples
    assert result.slices["bright"]["samples"] == bright
    assert result.slices["bright"]["value"] == pytest.approx(bright / answered)
    assert result.value == pytest.approx(abs(bright / answered - 0.5))
    assert result.slices["bright"]["amplification"] == pytest.approx(abs(bright / answered - 0.5) / 0.5)
    assert result.slices["prompt q"]["value"] == pytest.approx(abs(100 / result.slices["prompt q"]["samples"] - 0.5))
    assert result.slices["language en"]["most_frequent"] == "dark"


def test_errors_of_the_reader_are_corrected_or_keep_the_verdict_back(tmp_path: Path) -> None:
    context = AuditContext(None, generator(lambda prompt, number: 255 * (number % 4 == 0)), tmp_path)
    (unknown,) = audit(tmp_path, RedReader()).run(context)
    assert unknown.verdict == "inconclusive" and "give it a labelled set" in unknown.undecided
    # Half of the bright ones look dark: a quarter seen is a half in truth.
    known = [(0, "dark")] * 400 + [(0, "bright"), (255, "bright")] * 200
    (result,) = audit(tmp_path, RedReader(known=known), most_distance=0.15).run(context)
    assert result.value == pytest.approx(0.0, abs=1e-9) and result.verdict == "pass"
    (naive,) = audit(tmp_path, RedReader(exact=True), most_distance=0.15).run(context)
    assert naive.value == 0.25 and naive.verdict == "fail"
    with pytest.raises(UserError, match="labelled set has the value 'green'"):
        audit(tmp_path, RedReader(known=[(0, "green")])).run(context)


def test_references_and_too_many_abstentions(tmp_path: Path) -> None:
    context = AuditContext(None, generator(lambda prompt, number: 255 * (number % 4 == 0)), tmp_path)
    reference = tmp_path / "reference.yaml"
    reference.write_text("{bright: 1, dark: 3}")
    (result,) = audit(tmp_path, RedReader(exact=True), reference=reference).run(context)
    assert result.value == 0.0 and result.verdict == "pass"
    reference.write_text("{bright: 1, blue: 3}")
    with pytest.raises(UserError, match="the reader's values are dark, bright"):
        audit(tmp_path, RedReader(exact=True), reference=reference).run(context)
    silent = AuditContext(None, generator(lambda prompt, number: 150 if number % 3 else 255), tmp_path)
    (result,) = audit(tmp_path, RedReader(exact=True)).run(silent)
    assert result.verdict == "inconclusive" and "from 66% of the images" in result.undecided
    nothing = AuditContext(None, generator(lambda prompt, number: 150), tmp_path)
    assert audit(tmp_path, RedReader(exact=True)).run(nothing)[0].value is None


def test_what_is_missing_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="add --generator"):
        audit(tmp_path, None).run(AuditContext(None, None, tmp_path))
    context = AuditContext(None, generator(lambda prompt, number: 0), tmp_path)
    with pytest.raises(NotRun, match="set `reader`"):
        audit(tmp_path, None).run(context)
    with pytest.raises(NotRun, match="add --clip"):
        audit(tmp_path, EncoderAttribute()).run(context)
    with pytest.raises(UserError, match="images is 0"):
        GeneratorBias(images=0)
    with pytest.raises(UserError, match="labels need `images`"):
        EncoderAttribute(labels=tmp_path)


def test_people_label_what_a_first_run_has_written(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    context = AuditContext(None, generator(lambda prompt, number: 255 * (number % 2)), tmp_path)
    small = audit(tmp_path, LabelsOfPeople(labels, ["woman", "man"]), images=2, languages=["de"], fewest=4)
    with pytest.raises(NotRun, match="people must label the images"):
        small.run(context)
    names = sorted(path.name for path in (tmp_path / "generator_bias").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png", "00003.png"]
    labels.write_text("image,value\n" + "".join(f"{name},woman\n" for name in names[:3]))
    with pytest.raises(UserError, match=r"00003\.png is missing: give each image one of woman, man, abstain"):
        small.run(context)
    values = dict(zip(names, ["woman"] * 3 + ["abstain"], strict=True))
    labels.write_text("image,value\n" + "".join(f"{name},{value}\n" for name, value in values.items()))
    (result,) = small.run(context)
    assert result.samples == 3 and result.value == 0.5 and result.slices["woman"]["samples"] == 3
    with pytest.raises(UserError, match="give at least two"):
        LabelsOfPeople(labels, ["woman"])


def test_encoder_reads_what_it_is_sure_of(tmp_path: Path) -> None:
    codes = torch.eye(2)

    def embed(image: torch.Tensor) -> torch.Tensor:
        share = (image_numbers(image) / 255)[:, None]
        return share * codes[0] + (1 - share) * codes[1]

    clip = CodedEncoder(embed, lambda text: codes[0 if "woman" in text else 1], scale=4.0)
    (tmp_path / "faces").mkdir()
    for number in (0, 250):
        (tmp_path / f"faces/{number}.png").write_bytes(numbered_png(number))
    (tmp_path / "known.csv").write_text("file,value\n0.png,man\n250.png,woman\n")
    reader = EncoderAttribute(labels=tmp_path / "known.csv", images=tmp_path / "faces")
    reader.open(AuditContext(clip, None, tmp_path))
    assert reader.values == ["woman", "man"]
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[:, 0] = torch.tensor([0, 128, 255])[:, None, None]
    assert reader.read(images, 0).tolist() == [1, ABSTAINS, 0]
    assert reader.errors(8).tolist() == [[1, 0], [0, 1]]


def test_scene_colours_are_read_and_checked_on_scenes(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    description = {"colours": COLOURS, "prompts": [], "shapes": ["square"]}
    (scenes / "scenes.json").write_text(json.dumps(description))
    numpy.savez(scenes / "shapes.npz", square=numpy.full((16, 16), 255, numpy.uint8))
    samples = []
    for number, colour in enumerate([*COLOURS] * 3):
        metadata = {"kind": "single", "objects": [{"colour": colour}]}
        content = json.dumps({"captions": [], "metadata": metadata}).encode()
        samples.append({"png": coloured_square(colour, number), "json": content})
    reader = SceneColours(scenes, write_samples(tmp_path / "shards", samples))
    reader.open(AuditContext(None, None, tmp_path))
    assert reader.read(torch.full((1, 3, 16, 16), 250, dtype=torch.uint8), 0).tolist() == [ABSTAINS]
    assert reader.errors(16).tolist() == (3 * numpy.eye(4)).tolist()

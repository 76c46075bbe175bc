"""What scores generated images sees the pixels that a user receives; what asks for memorization sees those before."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from data_tools.corpora.scene_corpus import write_descriptions
from leam_mm.audits.attribute_readers import AttributeReader, LabelsOfPeople
from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.audited_samples import generated_images
from leam_mm.audits.generated_text import GeneratedText
from leam_mm.audits.generator_bias import GeneratorBias
from leam_mm.controls.coded_models import CodedGenerator
from leam_mm.controls.judge_controls import CONCEPTS, LANGUAGES, SceneGenerator, write_scenes
from leam_mm.controls.smooth_images import smooth_images, write_image_shards
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.evaluators.compositional import ASKED, Compositional
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.generation import Generation
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.evaluators.results import settings
from leam_mm.evaluators.text_to_image import IMAGES as FOLDER
from leam_mm.evaluators.text_to_image import TextToImage
from leam_mm.intervals.compared_results import other_settings
from leam_mm.marking.generated_image import WATERMARK, marked_pixels, save_generated
from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.known_images import drawn_scenes
from leam_mm.prompts.scene_reader import SceneReader

IMAGES = smooth_images(16, 5)
TABLE = "languages: {en: {templates: ['a {}'], things: {p: pea, q: quince}}}"


def generator() -> CodedGenerator:
    return CodedGenerator(lambda prompt, number: IMAGES[number % len(IMAGES)].float() / 255)


def pixels(image: torch.Tensor) -> numpy.ndarray:
    return image.permute(1, 2, 0).numpy()


def drawn(count: int) -> torch.Tensor:
    return generate(generator(), ["x"] * count, SamplerSettings(1), 0)


def is_published(images: Any, count: int) -> bool:
    """Return whether images (B, H, W, 3) are the generator's with the mark; fails if they are something else."""
    plain, marked = (part.permute(0, 2, 3, 1).numpy() for part in (drawn(count), published(drawn(count))))
    assert not numpy.array_equal(plain, marked)
    found = numpy.stack(list(images))
    assert numpy.array_equal(found, marked) or numpy.array_equal(found, plain)
    return numpy.array_equal(found, marked)


def test_published_pixels_are_those_of_the_file_and_are_marked_once(tmp_path: Path) -> None:
    (image,) = published(drawn(1))
    save_generated(Image.fromarray(pixels(drawn(1)[0])), tmp_path / "plain.png", "m")
    save_generated(Image.fromarray(pixels(image)), tmp_path / "marked.png", "m", marked=True)
    for name in ("plain.png", "marked.png"):
        with Image.open(tmp_path / name) as found:
            numpy.testing.assert_array_equal(numpy.asarray(found), pixels(image))
            assert found.info["DigitalSourceType"]
    assert WATERMARK.score(pixels(image)) > WATERMARK.score(pixels(drawn(1)[0])) + 1


class Noted(ImageFeatures):
    """Mean colours; keeps the images."""

    protocol = "mean colour"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return images.double().mean(dim=(2, 3))


def test_generation_scores_published_images(tmp_path: Path) -> None:
    shards = write_image_shards(tmp_path / "s", smooth_images(32, 6), ["x"] * 32)
    features = Noted()
    evaluator = Generation(shards, shards, features, samples=16)
    metrics = evaluator.run(EvaluationContext(None, generator(), tmp_path))
    own = features.seen[-1]  # real images come first
    assert is_published(own.permute(0, 2, 3, 1).numpy(), 16)
    assert metrics[0].name == "generation/frechet_distance/generated" and PUBLISHED in metrics[1].note
    # Results from before are compared only where other settings are allowed.
    now = {"settings": settings(evaluator)}
    before = {"settings": {name: value for name, value in now["settings"].items() if name != "scored"}}
    assert other_settings(before, now) == ["scored"] and other_settings(now, now) == []


def test_compositional_reads_published_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_descriptions(tmp_path, size=32, seed=0)
    plain, seen = SceneReader.read, []

    def read(self: SceneReader, image: numpy.ndarray) -> Any:
        seen.append(image)
        return plain(self, image)

    monkeypatch.setattr(SceneReader, "read", read)
    Compositional(tmp_path, prompts_per_kind=2).run(EvaluationContext(None, generator(), tmp_path / "out"))
    assert len(seen) == 6 and is_published(seen, 6)
    # The sheet shows the same pixels, which are not marked twice.
    with Image.open(tmp_path / "out" / "compositional" / "000.png") as shown:
        numpy.testing.assert_array_equal(numpy.asarray(shown), seen[0])


class NotedJudge(ImageJudge):
    """Is never sure; keeps the images."""

    name, protocol = "noted", "keeps images"

    def __init__(self) -> None:
        self.seen: list[numpy.ndarray] = []

    def answer(self, images: torch.Tensor, atom: Atom) -> torch.Tensor:
        self.seen += [pixels(image) for image in images]
        return torch.full((len(images),), 0.5, dtype=torch.float64)


def test_judges_are_tested_on_images_as_published_if_such_are_scored(tmp_path: Path) -> None:
    _, scenes = write_scenes(tmp_path)
    known = [image for image, _ in drawn_scenes(20, 48)]
    drawn = SceneGenerator({f"{code} {number}": scenes[number] for code in LANGUAGES for number in range(CONCEPTS)})

    def seen(images: Path | None, output: Path) -> list[numpy.ndarray]:
        judge = NotedJudge()
        settings: dict[str, Any] = {"known_limit": 20, "known_size": 48, "sampling": SamplerSettings(1)}
        evaluator = TextToImage([judge], tmp_path / "prompts.json", images=images, **settings)
        evaluator.run(EvaluationContext(None, None if images else drawn, output))
        return judge.seen[:20]

    numpy.testing.assert_array_equal(seen(None, tmp_path / "a"), [marked_pixels(image) for image in known])
    numpy.testing.assert_array_equal(seen(tmp_path / "a" / FOLDER, tmp_path / "b"), known)  # of another program


def test_the_scene_reader_is_measured_on_published_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_descriptions(tmp_path, size=32, seed=0)
    image, seen = pixels(IMAGES[0]), []
    scene, verdict = {"kind": "single"}, dict.fromkeys(ASKED["single"], True)
    monkeypatch.setattr("leam_mm.evaluators.compositional.shard_scenes", lambda folder, most: [(image, scene)])
    monkeypatch.setattr("leam_mm.evaluators.compositional.score", lambda found, scene: verdict)
    monkeypatch.setattr(SceneReader, "read", lambda self, image: seen.append(image))
    Compositional(tmp_path, real_shards=tmp_path).run(EvaluationContext(None, None, tmp_path / "out"))
    numpy.testing.assert_array_equal(seen, [marked_pixels(image)])


class NotedReader(AttributeReader):
    """Reads nothing; keeps the images."""

    attribute, values, exact = "x", ["a", "b"], True

    def __init__(self) -> None:
        self.seen: list[numpy.ndarray] = []

    def read(self, images: torch.Tensor, first: int) -> numpy.ndarray:
        self.seen += list(images.permute(0, 2, 3, 1).numpy())
        return numpy.zeros(len(images), int)


def test_audits_of_bias_and_text_read_published_images_and_those_of_memorization_do_not(tmp_path: Path) -> None:
    (tmp_path / "prompts.yaml").write_text(TABLE)
    reader = NotedReader()
    context = AuditContext(None, generator(), tmp_path)

    def bias(reader: AttributeReader) -> GeneratorBias:
        return GeneratorBias(reader, tmp_path / "prompts.yaml", "things", ["en"], images=3)

    (result,) = bias(reader).run(context)
    assert is_published(reader.seen, 6) and PUBLISHED in result.reason
    with pytest.raises(NotRun, match="people must label"):
        bias(LabelsOfPeople(tmp_path / "labels.csv", ["a", "b"])).run(context)
    files = sorted((tmp_path / "generator_bias").glob("*.png"))
    assert is_published([numpy.asarray(Image.open(file)) for file in files], 6)

    shards = write_image_shards(tmp_path / "s", IMAGES[:1], ["x"])
    seen: list[numpy.ndarray] = []

    def detector(image: Image.Image) -> list[str]:
        seen.append(numpy.asarray(image))
        return []

    GeneratedText(detector, images=5).run(AuditContext(None, generator(), tmp_path, shards=shards))
    assert is_published(seen, 5)
    weights = generated_images(generator(), ["x"] * 5, SamplerSettings(1), 0)
    assert not is_published(weights.permute(0, 2, 3, 1).numpy(), 5)

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from data_tools.corpora.scene_corpus import make_scene, render, write_descriptions
from data_tools.corpora.scene_drawing import SceneObject, draw_scene
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError
from leam_mm.evaluators.compositional import Compositional
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.prompts.scene_reader import ReadObject, SceneReader, rgb_to_lab, score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    write_descriptions(path, size=32, seed=0)
    return path


@pytest.fixture(scope="module")
def reader(folder: Path) -> SceneReader:
    return SceneReader(folder)


def picture(split: str, number: int, size: int = 32) -> np.ndarray:
    raw = render(make_scene(split, 0, number), 0, split, number, size)
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))


def accuracy(
    reader: SceneReader, split: str, samples: int, blur: float = 0, noise: float = 0, size: int = 32
) -> dict[str, float]:
    generator, hits = np.random.default_rng(0), {}
    for number in range(samples):
        image = picture(split, number, size).astype(float)
        if blur:
            image = ndimage.gaussian_filter(image, (blur, blur, 0))
        image = np.clip(image + generator.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        for key, right in score(reader.read(image), make_scene(split, 0, number).metadata()).items():
            hits.setdefault(key, []).append(right)
    return {key: float(np.mean(right)) for key, right in hits.items()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_reader_is_right_on_real_scenes(reader: SceneReader, split: str) -> None:
    right = accuracy(reader, split, 150)
    assert set(right) == {"colour", "shape", "colour_shape", "count", "relation", "both_objects"}
    assert min(right.values()) >= 0.99, right


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_reader_is_right_on_a_thousand_scenes(reader: SceneReader, split: str) -> None:
    assert min(accuracy(reader, split, 1000).values()) >= 0.99


def test_the_reader_reads_blurry_noisy_images(reader: SceneReader) -> None:
    assert min(accuracy(reader, "train", 60, blur=0.8, noise=6).values()) >= 0.98
    assert min(accuracy(reader, "train", 60, blur=1.2, noise=10).values()) >= 0.93


def test_the_reader_reads_larger_images(reader: SceneReader) -> None:
    assert min(accuracy(reader, "test", 20, size=128).values()) == 1


def test_the_reader_finds_nothing_in_an_empty_image(reader: SceneReader) -> None:
    for grey in (0, 128, 255):
        assert reader.read(np.full((32, 32, 3), grey, np.uint8)) == []


def test_the_reader_survives_noise_and_refuses_other_arrays(reader: SceneReader) -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        for thing in reader.read(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)):
            assert 0 <= thing.x <= 1
            assert 0 <= thing.y <= 1
    with pytest.raises(ValueError, match="uint8"):
        reader.read(np.zeros((32, 32, 3)))


def test_position_and_area_are_measured(reader: SceneReader) -> None:
    (thing,) = reader.read(np.asarray(draw_scene([SceneObject("green", "square", 0.3, 0.6, 0.25)], 32)))
    assert (thing.colour, thing.shape) == ("green", "square")
    assert thing.x == pytest.approx(0.3, abs=0.01)
    assert thing.y == pytest.approx(0.6, abs=0.01)
    assert thing.area == pytest.approx((2 * 0.25 * 0.84) ** 2, rel=0.1)


def test_lab_of_known_colours() -> None:
    # White and black by definition; sRGB red after CIE 15 is about (53.2, 80.1, 67.2).
    found = rgb_to_lab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]]))
    assert found == pytest.approx(np.array([[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2]]), abs=0.2)


def thing(colour: str, shape: str, x: float = 0.5, y: float = 0.5, area: float = 0.1) -> ReadObject:
    return ReadObject(colour, shape, x, y, area, 1.0)


def prompt(kind: str, *things: tuple[str, str], relation: str | None = None) -> dict:
    objects = [{"colour": colour, "shape": shape} for colour, shape in things]
    return {"kind": kind, "objects": objects, "relation": relation, "count": len(things)}


def test_a_single_object_is_compared_with_the_largest_found() -> None:
    asked = prompt("single", ("red", "star"))
    verdict = score([thing("red", "star", area=0.2), thing("blue", "ring", area=0.01)], asked)
    assert verdict == {"count": False, "colour": True, "shape": True, "colour_shape": True}
    verdict = score([thing("red", "star", area=0.02), thing("blue", "ring", area=0.2)], asked)
    assert not any(verdict.values())
    assert not any(score([], asked).values())


def test_a_pair_must_bind_colours_to_shapes_in_the_named_relation() -> None:
    asked = prompt("pair", ("red", "star"), ("blue", "ring"), relation="left_of")
    right = [thing("red", "star", 0.2), thing("blue", "ring", 0.8)]
    assert all(score(right, asked).values())
    mirrored = score([thing("red", "star", 0.8), thing("blue", "ring", 0.2)], asked)
    assert mirrored["both_objects"]
    assert not mirrored["relation"]
    swapped = score([thing("blue", "star", 0.2), thing("red", "ring", 0.8)], asked)
    assert swapped["colour"] and swapped["shape"]
    assert not swapped["colour_shape"] and not swapped["relation"]
    assert not score([thing("red", "star", 0.4, 0.1), thing("blue", "ring", 0.5, 0.9)], asked)["relation"]


@pytest.mark.parametrize(
    ("relation", "x", "y"), [("left_of", 0.9, 0.5), ("right_of", 0.1, 0.5), ("above", 0.5, 0.9), ("below", 0.5, 0.1)]
)
def test_relations_name_the_position_of_the_first_object(relation: str, x: float, y: float) -> None:
    reading = [thing("red", "star"), thing("blue", "ring", x, y)]
    for asked in ("left_of", "right_of", "above", "below"):
        verdict = score(reading, prompt("pair", ("red", "star"), ("blue", "ring"), relation=asked))
        assert verdict["relation"] == (asked == relation)


def test_a_count_needs_the_number_and_each_object_once() -> None:
    asked = prompt("count", *[("red", "star")] * 3)
    assert all(score([thing("red", "star")] * 3, asked).values())
    assert score([thing("red", "star")] * 4, asked)["count"] is False
    verdict = score([thing("red", "star")] * 2 + [thing("red", "ring")], asked)
    assert verdict["count"] and verdict["colour"]
    assert not verdict["shape"]


@dataclass
class SceneGenerator:
    """Generates what the prompts say, or always the same circle."""

    prompts: list[dict]
    obedient: bool = True
    calls: list[int] = field(default_factory=list)

    def sample(self, prompts: list[str], seed: int, steps: int, guidance: float, first_index: int) -> torch.Tensor:
        assert first_index == sum(self.calls)
        self.calls.append(len(prompts))
        answers = {prompt["text"]: prompt for prompt in self.prompts}
        images = [np.asarray(draw_scene(self._things(answers[text]), 32)) for text in prompts]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255

    def _things(self, prompt: dict) -> list[SceneObject]:
        if not self.obedient:
            return [SceneObject("red", "circle", 0.5, 0.5, 0.3)]
        places = {"left": (0.26, 0.5), "right": (0.74, 0.5), "top": (0.5, 0.26), "bottom": (0.5, 0.74)}
        grid = [(0.26, 0.26), (0.74, 0.26), (0.26, 0.74), (0.74, 0.74)]
        return [
            SceneObject(item["colour"], item["shape"], *places.get(item["position"], grid[k]), 0.18)
            for k, item in enumerate(prompt["objects"])
        ]


def test_a_perfect_generator_scores_one_and_a_constant_one_does_not(folder: Path, tmp_path: Path) -> None:
    prompts = json.loads((folder / "scenes.json").read_text())["prompts"]
    evaluator = Compositional(folder, prompts_per_kind=16, batch_size=20)
    perfect = SceneGenerator(prompts)
    metrics = {m.name: m for m in evaluator.run(EvaluationContext(None, perfect, tmp_path))}
    unmeasured = metrics.pop("compositional/real")
    assert (unmeasured.value, unmeasured.samples) == (None, 0)
    assert perfect.calls == [20, 20, 8]
    assert {f"compositional/generated/{name}" for name in (
        "single/colour", "single/shape", "single/colour_shape", "pair/relation", "pair/both_objects", "count/count"
    )} <= set(metrics)  # fmt: skip
    for metric in metrics.values():
        assert (metric.value, metric.samples, metric.unit) == (1.0, 16, "fraction")
        assert metric.low is not None and 0.75 < metric.low < 1
        languages = [part for key, part in metric.slices.items() if key.startswith("language=")]
        assert sum(part["samples"] for part in languages) == 16
    sheet = json.loads((tmp_path / "compositional.json").read_text())
    assert len(sheet["images"]) == 36 and all(entry["right"] and not entry["wrong"] for entry in sheet["images"])
    with Image.open(tmp_path / sheet["images"][0]["image"]) as image:
        assert image.size == (32, 32) and image.info["Comment"] == "generated by an AI model"
    deaf = evaluator.run(EvaluationContext(None, SceneGenerator(prompts, obedient=False), tmp_path))
    values = {metric.name: metric.value for metric in deaf}
    assert values["compositional/generated/pair/relation"] == 0
    assert values["compositional/generated/single/colour_shape"] < 0.3


def test_real_scenes_come_from_the_shards(folder: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "test", 25) as writer:
        for number in range(40):
            scene = make_scene("test", 0, number)
            members = {
                "png": render(scene, 0, "test", number, 32),
                "json": json.dumps({"metadata": scene.metadata()}).encode(),
            }
            writer.write(f"{number:04d}", members)
    metrics = Compositional(folder, tmp_path / "test").run(EvaluationContext(None, None, tmp_path))
    values = {metric.name: metric.value for metric in metrics}
    assert values.pop("compositional/generated") is None
    assert set(values) == {
        f"compositional/real/{k}" for k in ("colour", "shape", "colour_shape", "count", "both_objects", "relation")
    }
    assert set(values.values()) == {1.0}


def test_wrong_settings_and_folders_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scene corpus"):
        SceneReader(tmp_path)
    with pytest.raises(UserError, match="prompts_per_kind is 0"):
        Compositional(folder, prompts_per_kind=0)
    with ShardWriter(tmp_path / "other", 5) as writer:
        writer.write("a", {"json": b"{}"})
    with pytest.raises(UserError, match="holds no scenes"):
        Compositional(folder, tmp_path / "other").run(EvaluationContext(None, None, tmp_path))

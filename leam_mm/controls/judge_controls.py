"""Controls of text to image: judges with known faults, and generators whose images are known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.controls.control import Control, Outcome
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.evaluators.scene_judge import SceneJudge
from leam_mm.evaluators.text_to_image import IMAGES, TextToImage
from leam_mm.intervals.indicative import INDICATIVE
from leam_mm.prompts.atoms import Atom
from leam_mm.prompts.known_images import COLOURS, SHAPES, Scene, draw, make_scene, shape_masks
from leam_mm.prompts.prompt_set import PromptSet, read_prompt_set
from leam_mm.prompts.scene_facts import placed_objects

SIZE, CONCEPTS, KNOWN = 48, 12, 80
LANGUAGES = ("de", "en", "fi", "mt")


def judge_controls() -> list[Control]:
    """Return the controls of judges, Soft-TIFA scores, parity and consistency."""
    score, judge = "metric/text_to_image", "metric/text_to_image/judge"
    return [
        Control(judge, "scene reader on drawn scenes", False, "right, and no doubt", _good_judge),
        Control(judge, "judge that always says yes", True, "accuracy of chance, and scores marked", _agreeing_judge),
        Control(score, "generator that draws the scene", False, "scores, parity and likeness near 1", _true_generator),
        Control(score, "generator that reads English only", True, "low parity and likeness", _english_generator),
        Control(score, "images of other prompts", True, "scores of chance", _shuffled_images),
    ]


class SceneGenerator:
    """Stands for a generator: draws the scene of a prompt, or of another concept in some languages.

    Args:
        scenes: Scene of each text.
    """

    def __init__(self, scenes: dict[str, Scene]) -> None:
        """See the class for the arguments."""
        self.scenes = scenes

    def sample(self, prompts: Sequence[str], **settings: Any) -> Tensor:
        """Return (B, 3, H, W) in [0, 1]."""
        images = numpy.stack([draw(self.scenes[text], SIZE) for text in prompts])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


class AgreeingJudge(ImageJudge):
    """Says yes to everything."""

    name, protocol = "agreeing", "always yes"

    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        """Return 1 for every image."""
        return torch.ones(len(images))


class PixelFeatures(ImageFeatures):
    """Pixels at a quarter of the size, with the mean removed."""

    protocol = "pixels"

    def extract(self, images: Tensor) -> Tensor:
        """Return (B, D)."""
        small = torch.nn.functional.avg_pool2d(images.double(), 4)
        return (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1)


def write_scenes(folder: Path) -> tuple[Path, list[Scene]]:
    """Write scenes.json, shapes.npz and prompts.json into a folder; return the file of prompts and its scenes."""
    random = numpy.random.default_rng(0)
    things = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    order = random.permutation(len(things)).tolist()
    scenes = [
        make_scene(("single", "pair", "count")[k % 3], [things[order[k]], things[order[k - 1]]], random)
        for k in range(CONCEPTS)
    ]
    concepts = [
        {"id": f"scene_{k}", "kind": scene["kind"], "scene": scene, "texts": {c: f"{c} {k}" for c in LANGUAGES}}
        for k, scene in enumerate(scenes)
    ]
    content = {"colours": COLOURS, "shapes": SHAPES, "prompts": []}
    (folder / "scenes.json").write_text(json.dumps(content), encoding="utf-8")
    masks: dict[str, Any] = dict(shape_masks())
    numpy.savez_compressed(folder / "shapes.npz", **masks)
    path = folder / "prompts.json"
    path.write_text(json.dumps({"languages": LANGUAGES, "concepts": concepts}), encoding="utf-8")
    return path, scenes


def _measure(folder: Path, shift: dict[str, int], judge: ImageJudge | None = None) -> dict[str, Metric]:
    """Return the metrics of a generator that draws, by language, the scene so many concepts further on."""
    path, scenes = write_scenes(folder)
    texts = {f"{code} {k}": scenes[(k + shift[code]) % CONCEPTS] for code in LANGUAGES for k in range(CONCEPTS)}
    evaluator = TextToImage(
        [judge or SceneJudge(folder)], path, known_limit=KNOWN, known_size=SIZE, features=PixelFeatures()
    )
    found = evaluator.run(EvaluationContext(None, SceneGenerator(texts), folder / "output"))
    return {metric.name.removeprefix("text_to_image/"): metric for metric in found}


def _good_judge(folder: Path) -> Outcome:
    accuracy = _measure(folder, dict.fromkeys(LANGUAGES, 0))["scene_reader/judge/accuracy"]
    doubted = INDICATIVE in accuracy.note
    return Outcome(f"accuracy {accuracy.value:.3f}, from {accuracy.low:.3f}", (accuracy.low or 0) > 0.9 and not doubted)


def _agreeing_judge(folder: Path) -> Outcome:
    found = _measure(folder, dict.fromkeys(LANGUAGES, 0), AgreeingJudge())
    accuracy, score = found["agreeing/judge/accuracy"], found["agreeing/soft_tifa/mean"]
    low, high = accuracy.low or 0.0, accuracy.high or 0.0
    marked = all(INDICATIVE in metric.note for name, metric in found.items() if "/soft_tifa/" in name)
    words = f"accuracy {accuracy.value:.2f}, score {score.value:.2f}, {'marked' if marked else 'not marked'}"
    return Outcome(words, low < 0.5 < high and marked)


def _true_generator(folder: Path) -> Outcome:
    found = _measure(folder, dict.fromkeys(LANGUAGES, 0))
    names = ("scene_reader/soft_tifa/mean", "scene_reader/all_atoms/mean", "scene_reader/soft_tifa/min_over_mean",
             "scene_reader/parity", "image_likeness")  # fmt: skip
    values = [found[name].value or 0.0 for name in names]
    return Outcome(f"smallest of {len(values)} values {min(values):.3f}", min(values) > 0.97)


def _english_generator(folder: Path) -> Outcome:
    found = _measure(folder, {code: 0 if code == "en" else 1 for code in LANGUAGES})
    english = found["scene_reader/soft_tifa/en"].value or 0.0
    parity, likeness = found["scene_reader/parity"], found["image_likeness"]
    words = f"English {english:.2f}, parity {parity.value:.2f}, likeness {likeness.value:.2f}"
    return Outcome(words, english > 0.97 and (parity.high or 1) < 0.8 and (likeness.value or 0) < 0.3)


def _shuffled_images(folder: Path) -> Outcome:
    path, scenes = write_scenes(folder)
    prompts = read_prompt_set(path)
    drawn = folder / IMAGES
    for k, concept in enumerate(prompts.concepts):
        (drawn / concept.id).mkdir(parents=True)
        for number, code in enumerate(LANGUAGES, start=1):
            Image.fromarray(draw(scenes[(k + number) % CONCEPTS], SIZE)).save(drawn / concept.id / f"{code}_0.png")
    evaluator = TextToImage([SceneJudge(folder)], path, known_limit=KNOWN, known_size=SIZE, images=drawn)
    found = {metric.name: metric for metric in evaluator.run(EvaluationContext(None, None, folder / "output"))}
    score, chance = found["text_to_image/scene_reader/soft_tifa/mean"], _chance(prompts, scenes)
    low, high = score.low or 0.0, score.high or 0.0
    return Outcome(f"score {score.value:.2f}, chance {chance:.2f}", low <= chance <= high and high < 0.8)


def _chance(prompts: PromptSet, scenes: Sequence[Scene]) -> float:
    """Return the mean share of a concept's atoms that hold in the scene of another concept."""
    held = [
        atom.fact is not None and atom.fact.holds(placed_objects(scene))
        for k, concept in enumerate(prompts.concepts)
        for j, scene in enumerate(scenes)
        if j != k
        for atom in concept.atoms
    ]
    return float(numpy.mean(held))

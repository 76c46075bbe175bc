"""Parallel prompts end to end: drawing, resuming, scoring, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys.images import deep_png

import evaluate
from leam_mm.controls.judge_controls import (
    CONCEPTS,
    LANGUAGES,
    AgreeingJudge,
    PixelFeatures,
    SceneGenerator,
    judge_controls,
    write_scenes,
)
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.prompt_images import DIGEST, PromptImages
from leam_mm.evaluators.results import read_results
from leam_mm.evaluators.scene_judge import SceneJudge
from leam_mm.evaluators.text_to_image import IMAGES, SCORES, TextToImage
from leam_mm.marking.generated_image import SOURCE_TYPE
from leam_mm.prompts.known_images import draw
from leam_mm.prompts.prompt_set import read_prompt_set

CPU = torch.device("cpu")


class CountingGenerator(SceneGenerator):
    """Draws the scene of a text, and keeps what it was asked."""

    def __init__(self, scenes: dict[str, Any], sha256: str = "0" * 64) -> None:
        super().__init__(scenes)
        self.checkpoint_evidence = {"path": "runs/x/generator", "sha256": sha256}
        self.asked: list[tuple[list[str], dict[str, Any]]] = []

    def sample(self, prompts: list[str], **settings: Any) -> Tensor:  # type: ignore[override]
        self.asked.append((prompts, settings))
        return super().sample(prompts, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus")
    write_scenes(path)
    return path


def generator(folder: Path, **settings: Any) -> CountingGenerator:
    _, scenes = write_scenes(folder)
    return CountingGenerator({f"{code} {k}": scenes[k] for code in LANGUAGES for k in range(CONCEPTS)}, **settings)


def evaluator(folder: Path, **settings: Any) -> TextToImage:
    given = {"known_limit": 30, "known_size": 48, "sampling": SamplerSettings(3), **settings}
    return TextToImage([SceneJudge(folder)], folder / "prompts.json", **given)


def run(evaluator: TextToImage, output: Path, generator: Any) -> dict[str, Metric]:
    return {metric.name: metric for metric in evaluator.run(EvaluationContext(None, generator, output))}


def test_scores_by_language_kind_and_judge(folder: Path, tmp_path: Path) -> None:
    wrong = generator(folder)
    wrong.scenes["fi 0"] = wrong.scenes["fi 1"]  # one of twelve prompts in Finnish
    found = run(evaluator(folder, features=PixelFeatures(), images_per_prompt=2), tmp_path, wrong)
    lines = [json.loads(line) for line in (tmp_path / SCORES).read_text(encoding="utf-8").splitlines()]
    assert len(lines) == CONCEPTS * len(LANGUAGES) * 2 and {line["seed"] for line in lines} == {0, 1}
    below = [line for line in lines if line["judges"]["scene_reader"]["soft_tifa"] < 1]
    assert {(line["concept"], line["language"]) for line in below} == {("scene_0", "fi")}
    share, prefix = below[0]["judges"]["scene_reader"]["soft_tifa"], "text_to_image/scene_reader"
    assert found[f"{prefix}/soft_tifa/fi"].value == pytest.approx((CONCEPTS - 1 + share) / CONCEPTS)
    assert found[f"{prefix}/all_atoms/fi"].value == pytest.approx((CONCEPTS - 1) / CONCEPTS)
    assert found[f"{prefix}/soft_tifa/de"].value == 1 and found[f"{prefix}/kind/pair"].value == 1
    assert "worst language: fi" in found[f"{prefix}/soft_tifa/min"].note
    single = found[f"{prefix}/kind/single"]  # of four concepts only
    assert single.low < 0.5 and single.value < single.high < 1
    parity = found[f"{prefix}/parity"].slices
    assert parity["language=fi"]["value"] == pytest.approx((CONCEPTS - 1 + share) / CONCEPTS)
    assert found[f"{prefix}/atom_agreement"].slices["language=mt"]["value"] == 1
    assert found["text_to_image/image_likeness"].slices["language=de"]["value"] == pytest.approx(1)
    assert found["text_to_image/image_likeness"].slices["language=fi"]["value"] < 1
    assert all("judge right in" in m.note for name, m in found.items() if name.startswith(f"{prefix}/soft_tifa"))


def test_a_concept_has_one_noise_in_all_languages(folder: Path, tmp_path: Path) -> None:
    asked = generator(folder)
    run(evaluator(folder, images_per_prompt=2, seed=5), tmp_path, asked)
    assert len(asked.asked) == 2 * CONCEPTS
    for number, (texts, settings) in enumerate(asked.asked):
        assert texts == [f"{code} {number // 2}" for code in LANGUAGES]
        assert settings["numbers"] == [number // 2] * len(LANGUAGES) and settings["seed"] == 5 + number % 2


def test_a_second_run_draws_only_what_is_missing(folder: Path, tmp_path: Path) -> None:
    first = run(evaluator(folder), tmp_path, generator(folder))
    image = tmp_path / IMAGES / "scene_3" / "de_0.png"
    texts = Image.open(image).info
    assert DIGEST in texts and texts["DigitalSourceType"] == SOURCE_TYPE
    again = generator(folder)
    assert run(evaluator(folder), tmp_path, again) == first and not again.asked
    image.unlink()
    run(evaluator(folder), tmp_path, again)
    assert [texts[0] for texts, _ in again.asked] == ["de 3"]
    for changed, settings in (
        (generator(folder, sha256="1" * 64), {}),
        (generator(folder), {"sampling": SamplerSettings(4)}),
    ):
        run(evaluator(folder, **settings), tmp_path, changed)
        assert len(changed.asked) == CONCEPTS


def test_fewer_concepts_of_each_kind(folder: Path, tmp_path: Path) -> None:
    asked = generator(folder)
    found = run(evaluator(folder, per_kind=2), tmp_path, asked)
    assert len(asked.asked) == 6 and found["text_to_image/scene_reader/soft_tifa/mean"].samples == 6


def write_images(folder: Path, drawn: Path) -> None:
    path, scenes = write_scenes(folder)
    for scene, concept in zip(scenes, read_prompt_set(path).concepts, strict=True):
        (drawn / concept.id).mkdir(parents=True)
        for code in LANGUAGES:
            Image.fromarray(draw(scene, 48)).save(drawn / concept.id / f"{code}_0.png")


def test_images_of_another_program(folder: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    write_images(folder, drawn)
    found = run(evaluator(folder, images=drawn), tmp_path / "out", None)
    assert found["text_to_image/scene_reader/all_atoms/mean"].value == 1
    Image.fromarray(numpy.zeros((16, 16, 3), numpy.uint8)).save(drawn / "scene_2" / "de_0.png")
    with pytest.raises(UserError, match="scene_2: images have different sizes"):
        run(evaluator(folder, images=drawn), tmp_path / "out", None)
    (drawn / "scene_2" / "de_0.png").write_bytes(deep_png(1, 700))
    with pytest.raises(UserError, match="more than 8 bits"):
        run(evaluator(folder, images=drawn), tmp_path / "out", None)
    (drawn / "scene_2" / "de_0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"de_0\.png: cannot be read"):
        run(evaluator(folder, images=drawn), tmp_path / "out", None)
    (drawn / "scene_2" / "de_0.png").unlink()
    with pytest.raises(UserError, match=r"de_0\.png is missing"):
        run(evaluator(folder, images=drawn), tmp_path / "out", None)


def test_settings_that_make_no_sense(folder: Path) -> None:
    with pytest.raises(UserError, match="at least one judge"):
        TextToImage([])
    with pytest.raises(UserError, match="`name` of its own"):
        TextToImage([AgreeingJudge(), AgreeingJudge()])
    with pytest.raises(UserError, match="per_kind is -1"):
        TextToImage([AgreeingJudge()], per_kind=-1)


def test_without_a_digest_nothing_is_kept(folder: Path, tmp_path: Path) -> None:
    prompts, asked = read_prompt_set(folder / "prompts.json"), generator(folder, sha256="")
    for _ in range(2):
        PromptImages(tmp_path, prompts, SamplerSettings(), [0], asked, CPU).of_concept(0)
    assert len(asked.asked) == 2


def test_the_command_scores_images_of_another_program(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, output = tmp_path / "drawn", tmp_path / "out"
    write_images(folder, drawn)
    words = {"images": drawn, "prompts": folder / "prompts.json", "judge": folder, "known-limit": 30, "output": output}
    evaluate.main(["text_to_image", *(word for key, value in words.items() for word in (f"--{key}", str(value)))])
    results = read_results(output)
    assert results["text_to_image/scene_reader/soft_tifa/mean"]["value"] == 1
    assert results["text_to_image/image_likeness"]["value"] == pytest.approx(1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "soft_tifa/mean" in line]
    assert (output / "report.html").is_file() and line.endswith("indicative only")  # 30 known images are too few


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "x"], "at least one --judge"),
        (["--judge", "x"], "either --generator"),
        (["--judge", "x", "--images", "x", "--generator", "x"], "either --generator"),
        (["--judge", "missing", "--images", "x"], "--judge missing: there is no model at missing"),
        (["--judge", "x", "--images", "x", "--guidance", "-1"], "--guidance is -1"),
        (["--judge", "x", "--images", "x", "--least-accuracy", "2"], "--least-accuracy is 2"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path: Path, words: list[str], message: str) -> None:
    output = tmp_path / "out"
    with pytest.raises(UserError, match=message) as error:
        evaluate.main(["text_to_image", "--output", str(output), *words])
    assert "\n" not in str(error.value) and not output.exists()


@pytest.mark.parametrize("number", range(5))
def test_controls_are_on_the_right_side(tmp_path: Path, number: int) -> None:
    outcome = judge_controls()[number].run(tmp_path)
    assert outcome.right, outcome.found

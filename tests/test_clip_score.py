"""CLIPScore against its formula, chance and real images beside it, and outcomes that can be paired."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leam_mm.controls.coded_models import CodedEncoder, CodedGenerator
from leam_mm.controls.control_images import image_numbers, numbered_image, numbered_png, write_numbered_shards
from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError
from leam_mm.evaluators.clip_score import ClipScore, clip_score, reference_clip_score
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.intervals.outcomes import read_outcomes

COUNT, LANGUAGES = 12, ["de", "fi"]
CODES = torch.nn.functional.normalize(torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0)), dim=1)


def read(caption: str) -> Tensor:
    return CODES[int(caption.split()[-1])]


def measure(folder: Path, image: CodedGenerator, **settings: object) -> dict[str, Metric]:
    shards = write_numbered_shards(folder / "shards", COUNT, LANGUAGES, lambda code, number: f"{code} {number}")
    context = EvaluationContext(CodedEncoder(lambda x: CODES[image_numbers(x)], read), image, folder)
    found = ClipScore(shards, LANGUAGES, **settings).run(context)  # type: ignore[arg-type]
    return {metric.name: metric for metric in found}


def test_scores_are_those_of_the_formula() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    assert clip_score(image, text) == pytest.approx([0.0, 1.5])  # 2.5 max(-1, 0), 2.5 * 0.6
    references = [torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.8, 0.6]])]
    assert reference_clip_score(image, text, references) == pytest.approx([0.0, 2 * 1.5 * 0.8 / 2.3])


def test_generated_shuffled_and_real(tmp_path: Path) -> None:
    made = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    found = measure(tmp_path, CodedGenerator(lambda prompt, number: numbered_image(made[number])), batch_size=5)
    cosine = CODES.double() @ CODES.double().T
    expected = [2.5 * max(0.0, float(cosine[made[k], k])) for k in range(COUNT)]
    mean = found["clip_score/generated/de"]
    assert mean.value == pytest.approx(sum(expected) / COUNT, abs=1e-5) and mean.samples == COUNT
    outcomes = read_outcomes(mean.as_dict())
    assert outcomes is not None and outcomes.values == pytest.approx(expected, abs=1e-4)
    others = [2.5 * max(0.0, float(cosine[made[k], j])) for k in range(COUNT) for j in range(COUNT) if j != k]
    assert found["clip_score/shuffled"].value == pytest.approx(sum(others) / len(others), abs=1e-5)
    assert found["clip_score/real"].value == pytest.approx(2.5, abs=1e-5)
    assert "clip_score/references/mean" not in found
    assert found["clip_score/generated/min"].low is not None


def test_further_captions_are_references(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shards", 8) as writer:
        for number in range(6):
            texts = [f"de {number}", f"de {(number + 1) % 6}"]
            record = {"captions": [{"text": text, "language": "de"} for text in texts]}
            writer.write(f"{number:02d}", {"png": numbered_png(number), "json": json.dumps(record).encode()})
    encoder = CodedEncoder(lambda x: CODES[image_numbers(x)], read)
    right = CodedGenerator(lambda prompt, number: numbered_image(number))
    found = ClipScore(tmp_path / "shards", ["de"]).run(EvaluationContext(encoder, right, tmp_path))
    near = [max(0.0, float(CODES[k] @ CODES[(k + 1) % 6])) for k in range(6)]
    expected = [2 * 2.5 * value / (2.5 + value) for value in near]
    metric = next(metric for metric in found if metric.name == "clip_score/references/de")
    assert metric.value == pytest.approx(sum(expected) / 6, abs=1e-5)


def test_a_language_that_the_generator_does_not_read_is_the_worst(tmp_path: Path) -> None:
    def draw(prompt: str, number: int) -> Tensor:
        return numbered_image(int(prompt.split()[-1]) if prompt.startswith("de") else 0)

    found = measure(tmp_path, CodedGenerator(draw), samples=6)
    assert found["clip_score/generated/de"].value == pytest.approx(2.5, abs=1e-5)
    assert found["clip_score/generated/min"].value == found["clip_score/generated/fi"].value
    assert "worst language: fi" in found["clip_score/generated/min"].note
    assert found["clip_score/generated/de"].samples == 6


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one language"):
        ClipScore(tmp_path, [])
    shards = write_numbered_shards(tmp_path / "s", 3, ["de"], lambda code, number: f"{code} {number}")
    with pytest.raises(UserError, match="no sample has a caption in each of de, fi"):
        ClipScore(shards, LANGUAGES).run(EvaluationContext(CodedEncoder(lambda x: x, read), None, tmp_path))

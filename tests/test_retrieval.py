"""Retrieval: known ranks, ties against the encoder, equal captions as one, languages apart."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from toys.encoders import RiggedEncoder
from toys.images import encoded_image

from leam_mm.data.shard_index import ShardWriter
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.retrieval import Retrieval, ranks_both_ways


def rigged(spoken: str) -> RiggedEncoder:
    """An image's number is its grey value, a text's number its digits if its first word is spoken, else 31."""

    def number(text: str) -> int:
        return int(text.split()[1]) if text.split()[0] in spoken else 31

    return RiggedEncoder(lambda image: image.mean(dim=(1, 2, 3)).long(), number, 32, image_size=4)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "test", 8) as writer:
        for number in range(20):
            image = encoded_image(Image.new("RGB", (4, 4), (number % 15,) * 3))
            captions = [{"text": f"{code} {number % 15}", "language": code[:2]} for code in ("en", "en2", "de")]
            if number == 3:
                captions = captions[:2]
            record = json.dumps({"captions": captions}).encode()
            writer.write(f"{number:03d}", {"png": image, "json": record})
    return tmp_path / "test"


def measure(shards: Path, spoken: str, limit: int | None = None) -> dict[str, Metric]:
    context = EvaluationContext(rigged(spoken), None, shards.parent)
    metrics = Retrieval(shards, ["en", "de"], limit=limit, batch_size=3).run(context)
    return {metric.name: metric for metric in metrics}


def test_right_encoder_finds_everything_although_captions_repeat(shards: Path) -> None:
    metrics = measure(shards, "en en2 de")
    for direction in ("image_to_text", "text_to_image"):
        for code in ("en", "de"):
            assert metrics[f"retrieval/{direction}/r1/{code}"].value == 1.0
    assert metrics["retrieval/image_to_text/r1/de"].samples == 19
    assert metrics["retrieval/image_to_text/r1/mean"].samples == 19
    assert "20 pictures" in metrics["retrieval/image_to_text/r1/en"].note


def test_deaf_language_finds_nothing(shards: Path) -> None:
    metrics = measure(shards, "en en2")
    assert metrics["retrieval/text_to_image/r10/de"].value == 0.0
    assert metrics["retrieval/image_to_text/r10/de"].value == 0.0
    assert metrics["retrieval/image_to_text/r1/min_over_mean"].value == 0.0
    # Half of the English captions are known: each image finds one of its own, and half of the captions find theirs.
    half = measure(shards, "en")
    assert half["retrieval/image_to_text/r1/en"].value == 1.0
    assert half["retrieval/text_to_image/r1/en"].value == 0.5


def test_limit_spreads_over_the_folder(shards: Path) -> None:
    assert measure(shards, "en en2 de", limit=5)["retrieval/image_to_text/r1/en"].samples == 5


def test_ranks_against_a_slow_count() -> None:
    generator = numpy.random.default_rng(2)
    image = torch.from_numpy(generator.integers(-2, 3, (30, 4)).astype("float32"))
    text = torch.from_numpy(generator.integers(-2, 3, (25, 4)).astype("float32"))
    owned = [torch.tensor([row % 25, (row * 7 + 1) % 25]) for row in range(30)]
    forward, backward = ranks_both_ways(image, text, owned)
    score = image @ text.T
    for row in range(30):
        right = set(owned[row].tolist())
        best = max(float(score[row, column]) for column in right)
        assert int(forward[row]) == sum(float(score[row, c]) >= best for c in range(25) if c not in right)
    for column in range(25):
        right = {row for row in range(30) if column in owned[row].tolist()}
        best = max(float(score[row, column]) for row in right)
        assert int(backward[column]) == sum(float(score[r, column]) >= best for r in range(30) if r not in right)


def test_constant_encoder_finds_nothing() -> None:
    forward, backward = ranks_both_ways(torch.ones(6, 3), torch.ones(6, 3), [torch.tensor([i]) for i in range(6)])
    assert forward.tolist() == backward.tolist() == [5] * 6


def test_no_caption_in_the_language(shards: Path) -> None:
    with pytest.raises(UserError, match="no sample has a caption in fi"):
        Retrieval(shards, ["fi"]).run(EvaluationContext(rigged("en"), None, shards.parent))

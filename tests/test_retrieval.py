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
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import read_outcomes

EQUAL = "retrieval_equal_captions_right"


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
            assert metrics[f"{EQUAL}/{direction}/r1/{code}"].value == 1.0
    assert metrics["retrieval/image_to_text/r1/de"].samples == 19
    assert metrics["retrieval/image_to_text/r1/mean"].samples == 19
    assert "20 images and 19 to 40 captions" in metrics["retrieval/image_to_text/r1/en"].note
    assert "the published protocol" in metrics["retrieval/image_to_text/r1/en"].note
    assert "not the published protocol" in metrics[f"{EQUAL}/image_to_text/r1/en"].note


def test_equal_captions_of_other_images_are_wrong_by_the_published_protocol(shards: Path) -> None:
    """Numbers 0 to 4 occur twice: at rank 1 ten of 20 images have a rival; at rank 5 none is lost."""
    metrics = measure(shards, "en en2 de")
    for direction in ("image_to_text", "text_to_image"):
        assert metrics[f"retrieval/{direction}/r1/en"].value == 0.5
        assert metrics[f"retrieval/{direction}/r5/en"].value == 1.0
        assert metrics[f"{EQUAL}/{direction}/r1/en"].value == 1.0
    # One hit a sample is stored: from it a reader recomputes value and interval.
    metric = metrics["retrieval/image_to_text/r1/en"]
    outcomes = read_outcomes(metric.as_dict())
    assert outcomes is not None and outcomes.values.tolist() == [0.0] * 5 + [1.0] * 10 + [0.0] * 5
    assert (metric.low, metric.high) == wilson_interval(int(outcomes.values.sum()), len(outcomes.values))


def test_deaf_language_finds_nothing(shards: Path) -> None:
    metrics = measure(shards, "en en2")
    assert metrics["retrieval/text_to_image/r10/de"].value == 0.0
    assert metrics["retrieval/image_to_text/r10/de"].value == 0.0
    assert metrics["retrieval/image_to_text/r1/min_over_mean"].value == 0.0
    # Half of the English captions are known: each image finds one of its own, and half of the captions find theirs.
    half = measure(shards, "en")
    assert half[f"{EQUAL}/image_to_text/r1/en"].value == 1.0
    assert half[f"{EQUAL}/text_to_image/r1/en"].value == 0.5


def test_limit_spreads_over_the_folder(shards: Path) -> None:
    assert measure(shards, "en en2 de", limit=5)["retrieval/image_to_text/r1/en"].samples == 5


def test_ranks_against_a_slow_count() -> None:
    generator = numpy.random.default_rng(2)
    image = torch.from_numpy(generator.integers(-2, 3, (30, 4)).astype("float32"))
    text = torch.from_numpy(generator.integers(-2, 3, (25, 4)).astype("float32"))
    # Some images have one caption, some two, and some twice the same.
    owned = [torch.tensor([row % 25, (row * 7 + 1) % 25, row % 25][: 1 + row % 3]) for row in range(30)]
    missing = sorted(set(range(25)) - {n for numbers in owned for n in numbers.tolist()})
    owned[0] = torch.tensor([0, *missing])
    score = (image @ text.T).tolist()
    every = [(row, number) for row, numbers in enumerate(owned) for number in numbers.tolist()]
    published, equal = ranks_both_ways(image, text, owned)
    for row, numbers in enumerate(owned):
        right = set(numbers.tolist())
        best = max(score[row][number] for number in right)
        assert published[0][row].tolist() == [sum(score[row][n] >= best for other, n in every if other != row)]
        assert equal[0][row].tolist() == [sum(score[row][n] >= best for n in range(25) if n not in right)]
        for place, number in enumerate(numbers.tolist()):
            own = score[row][number]
            assert int(published[1][row][place]) == sum(score[o][number] >= own for o in range(30) if o != row)
            owners = {o for o, n in every if n == number}
            best = max(score[o][number] for o in owners)
            assert int(equal[1][row][place]) == sum(score[o][number] >= best for o in range(30) if o not in owners)


def test_constant_encoder_finds_nothing() -> None:
    for protocol in ranks_both_ways(torch.ones(6, 3), torch.ones(6, 3), [torch.tensor([i]) for i in range(6)]):
        for direction in protocol:
            assert torch.cat(direction).tolist() == [5] * 6


def test_no_caption_in_the_language(shards: Path) -> None:
    with pytest.raises(UserError, match="no sample has a caption in fi"):
        Retrieval(shards, ["fi"]).run(EvaluationContext(rigged("en"), None, shards.parent))

"""Zero-shot: a right encoder scores 100 %, an English-only one a low minimum; ties, ambiguity and gaps are counted."""

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
from leam_mm.evaluators.zero_shot import MOST_CLASSES, ZeroShot, confusion_table, rank_of_target, read_classes

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (250, 250, 10), (10, 250, 250), (250, 10, 250), (90, 90, 90)]
NAMES = {
    "en": ["red", "green", "blue", "yellow", "cyan", "magenta", "grey"],
    "de": ["rot", "grün", "blau", "gelb", "türkis", "lila", "grau"],
    "mt": ["aħmar", "aħdar", "blu", "isfar", "", "vjola", "griż"],
}


def rigged(spoken: list[str]) -> RiggedEncoder:
    """An encoder that recognises colours, and the colour words of some languages; all other texts are number 7."""
    words = {word: number for code in spoken for number, word in enumerate(NAMES[code]) if word}

    def colour(image: torch.Tensor) -> torch.Tensor:
        return torch.cdist(image.mean(dim=(2, 3)), torch.tensor(COLOURS).float()).argmin(dim=1)

    return RiggedEncoder(colour, lambda text: next((n for word, n in words.items() if word in text.split()), 7), 8)


def png(colour: tuple[int, int, int]) -> bytes:
    return encoded_image(Image.new("RGB", (8, 8), colour))


@pytest.fixture
def world(tmp_path: Path) -> tuple[Path, Path]:
    with ShardWriter(tmp_path / "test", 10) as writer:
        for number in range(21):
            record = {"captions": [], "metadata": {"class_id": f"c{number % 7}"}}
            writer.write(f"{number:04d}", {"png": png(COLOURS[number % 7]), "json": json.dumps(record).encode()})
        writer.write("other", {"png": png(COLOURS[0]), "json": b'{"captions": [], "metadata": {}}'})
    languages = {
        code: {"templates": ["{}", "a {} thing"], "names": {f"c{i}": [n] for i, n in enumerate(names) if n}}
        for code, names in NAMES.items()
    }
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"classes": [f"c{i}" for i in range(7)], "languages": languages}))
    return tmp_path / "test", classes


def measure(world: tuple[Path, Path], spoken: list[str], languages: list[str] | None = None) -> dict[str, Metric]:
    context = EvaluationContext(rigged(spoken), None, world[0].parent)
    metrics = ZeroShot(*world, languages=languages, batch_size=4, name="colour").run(context)
    return {metric.name: metric for metric in metrics}


def test_right_encoder_gets_everything(world: tuple[Path, Path]) -> None:
    metrics = measure(world, ["en", "de", "mt"])
    for code in ("en", "de"):
        metric = metrics[f"colour/top1/{code}"]
        assert (metric.value, metric.samples) == (1.0, 21)
        assert metric.low is not None and metric.low < 1 and metric.high == 1.0
        assert metric.slices["confusions"] == []
    # Maltese has no name for one class: its three images are not measured there, nor in the comparison.
    assert metrics["colour/top1/mt"].samples == 18
    assert metrics["colour/top1/mean"].samples == 18
    assert metrics["colour/top1/min_over_mean"].value == 1.0
    assert "6 classes that all of them name" in metrics["colour/top1/mean"].note
    assert metrics["colour/top5/en"].value == 1.0
    assert "chance 14.29%" in metrics["colour/top1/en"].note


def test_english_only_encoder_shows_in_the_minimum(world: tuple[Path, Path]) -> None:
    metrics = measure(world, ["en"], ["de", "en"])
    assert metrics["colour/top1/en"].value == 1.0
    # All German classes have the same embedding: every class ties, and a tie is no hit.
    assert metrics["colour/top1/de"].value == 0.0
    assert metrics["colour/top1/mean"].value == 0.5
    assert metrics["colour/top1/min_over_mean"].value == 0.0
    assert "worst language: de" in metrics["colour/top1/min"].note
    assert sum(row["count"] for row in metrics["colour/top1/de"].slices["confusions"]) == 21


def test_ambiguous_classes_are_right_for_one_another(world: tuple[Path, Path]) -> None:
    content = json.loads(world[1].read_text())
    content["languages"]["de"]["names"]["c1"] = ["rot"]  # spelled like c0
    content["languages"]["en"]["ambiguous"] = [["c2", "c3"], ["c3", "unknown"]]
    world[1].write_text(json.dumps(content))
    languages = read_classes(world[1], None)[1]
    assert languages["de"].group[0] == languages["de"].group[1] != languages["de"].group[2]
    assert languages["en"].group[2] == languages["en"].group[3] != languages["en"].group[0]
    # Green images score 0 for "rot" and for all others: a tie, so not right; red ones are.
    assert measure(world, ["de"], ["de"])["colour/top1/de"].value == pytest.approx(6 / 7)


def test_confusion_table_counts_every_measured_image(world: tuple[Path, Path]) -> None:
    table = measure(world, ["en"], ["en", "mt"])["colour/top1/mt"].slices["confusion_table"]
    counts = numpy.array(table["counts"])
    assert table["classes"] == [f"c{number}" for number in range(7)]
    # Maltese is not spoken and has no name for c4: its three images are not measured, and none is right.
    assert counts.sum(axis=1).tolist() == [3, 3, 3, 3, 0, 3, 3]
    assert counts.trace() == 0 and counts[:, 4].sum() == 0
    right = measure(world, ["en"], ["en"])["colour/top1/en"].slices["confusion_table"]["counts"]
    assert right == (3 * numpy.eye(7, dtype=int)).tolist()
    many = [str(number) for number in range(MOST_CLASSES + 1)]
    assert confusion_table(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), many) == {}


def test_rank_is_pessimistic_and_respects_groups() -> None:
    text = torch.eye(4)
    image = torch.tensor([[0.9, 0.9, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    target = torch.tensor([0, 0, 2])
    every = torch.ones(4, dtype=torch.bool)
    rank, predicted = rank_of_target(image, text, target, torch.arange(4), every)
    assert rank.tolist() == [1, 3, 3]
    assert predicted.tolist() == [1, 3, 0]
    rank, _ = rank_of_target(image, text, target, torch.tensor([0, 0, 2, 0]), every)
    assert rank.tolist() == [0, 0, 3]
    known = torch.tensor([True, False, False, True])
    rank, _ = rank_of_target(image, text, target, torch.arange(4), known)
    assert rank.tolist() == [0, 1, -1]


def test_rank_against_a_slow_count() -> None:
    generator = numpy.random.default_rng(0)
    image = torch.from_numpy(generator.integers(0, 3, (40, 5)).astype("float32"))
    text = torch.from_numpy(generator.integers(0, 3, (9, 5)).astype("float32"))
    target = torch.from_numpy(generator.integers(0, 9, 40))
    rank, _ = rank_of_target(image, text, target, torch.arange(9), torch.ones(9, dtype=torch.bool))
    for row in range(40):
        scores = (image[row] @ text.T).tolist()
        own = scores[int(target[row])]
        assert int(rank[row]) == sum(score >= own for score in scores) - 1


@pytest.mark.parametrize("content", ["{", '{"classes": []}', "", "[]"])
def test_broken_class_file_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "classes.json"
    path.write_text(content)
    with pytest.raises(UserError, match="not a class file") as caught:
        read_classes(path, None)
    assert "\n" not in str(caught.value)


def test_missing_language_and_missing_classes(world: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"has no language xx; it has de, en, mt"):
        read_classes(world[1], ["xx"])
    world[1].write_text('{"classes": ["z"], "languages": {"en": {"templates": ["{}"], "names": {"z": ["z"]}}}}')
    with pytest.raises(UserError, match="no sample has a metadata"):
        measure(world, ["en"])


def test_template_cannot_reach_attributes(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    entry = {"templates": ["{0.__class__} {}"], "names": {"a": ["{1}"]}}
    path.write_text(json.dumps({"classes": ["a"], "languages": {"en": entry}}))
    assert read_classes(path, ["en"])[1]["en"].prompts == [["{0.__class__} {1}"]]

"""Controls of retrieval, CLIPScore, intervals and comparisons: inputs whose right answer is known."""

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor

from leam_mm.controls.coded_models import CodedEncoder, CodedGenerator
from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.control_images import image_numbers, numbered_image, write_numbered_shards
from leam_mm.evaluators.clip_score import WEIGHT, ClipScore
from leam_mm.evaluators.evaluator import EvaluationContext, Metric
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.retrieval import Retrieval
from leam_mm.intervals.compared_results import compare_rows
from leam_mm.intervals.intervals import bootstrap_interval, share_interval
from leam_mm.intervals.worst_language import worst_interval

IMAGES, LANGUAGES, REPEATS = 96, ["de", "fi"], 100
RETRIEVAL, SCORE, INTERVAL, COMPARE = "metric/retrieval", "metric/clip_score", "metric/intervals", "metric/compare"


def score_controls() -> list[Control]:
    """Return the controls of the metrics of single samples and their intervals."""
    return [
        Control(INTERVAL, "100 hits of 100", False, "an interval with a width", _constant),
        Control(INTERVAL, "24 equal languages", False, "the worst language's interval holds", _worst_language),
        Control(INTERVAL, "bootstrap of a minimum", True, "seen not to hold", _bootstrap_of_a_minimum),
        Control(COMPARE, "a model and itself", False, "no difference", _same_model),
        Control(COMPARE, "10 points more", True, "a difference that is not chance", _better_model),
        Control(RETRIEVAL, "encoder that reads all captions", False, "recall 1", _right_captions),
        Control(RETRIEVAL, "encoder that reads nothing", True, "recall of chance", _random_captions),
        Control(RETRIEVAL, "captions that occur twice", True, "lower by the published protocol", _repeated_captions),
        Control(SCORE, "generator that draws its prompt", False, "score of the real images", _drawn_prompts),
        Control(SCORE, "generator that ignores its prompt", True, "score of other prompts", _ignored_prompts),
    ]


def _encoder(read: Callable[[str], int] | None = None) -> CodedEncoder:
    """Return an encoder that gives image and caption of a number one code, or captions a code of their own."""
    codes = torch.nn.functional.normalize(torch.randn(IMAGES, 64, generator=torch.Generator().manual_seed(0)), dim=1)

    def text(caption: str) -> Tensor:
        if read is not None:
            return codes[read(caption)]
        own = torch.Generator().manual_seed(int.from_bytes(caption.encode(), "big") % 2**31)
        return torch.nn.functional.normalize(torch.randn(64, generator=own), dim=0)

    return CodedEncoder(lambda image: codes[image_numbers(image)], text)


def _number(caption: str) -> int:
    return int(caption.split()[1])


def _retrieval(folder: Path, encoder: CodedEncoder, period: int = IMAGES) -> dict[str, Metric]:
    shards = write_numbered_shards(folder / "s", IMAGES, LANGUAGES, lambda code, number: f"{code} {number % period}")
    found = Retrieval(shards, LANGUAGES).run(EvaluationContext(encoder, None, folder))
    return {metric.name.replace("image_to_text/", ""): metric for metric in found}


def _right_captions(folder: Path) -> Outcome:
    value = _retrieval(folder, _encoder(_number))["retrieval/r1/min"].value
    return Outcome(f"recall at 1 {value:.3f}", value == 1)


def _random_captions(folder: Path) -> Outcome:
    found, chance = _retrieval(folder, _encoder())["retrieval/r5/mean"], 5 / IMAGES
    low, high = found.low or 0.0, found.high or 0.0
    words = f"recall at 5 {found.value:.3f} ({low:.3f} to {high:.3f}), chance {chance:.3f}"
    return Outcome(words, low <= chance <= high < 0.2)


def _repeated_captions(folder: Path) -> Outcome:
    found = _retrieval(folder, _encoder(_number), IMAGES // 2)
    published, equal = (found[f"retrieval{kind}/r10/mean"].value or 0.0 for kind in ("", "_equal_captions_right"))
    first = found["retrieval/r1/mean"].value or 0.0
    words = f"published protocol {first:.2f} at 1, {published:.2f} at 10; equal captions right {equal:.2f} at 10"
    return Outcome(words, first <= 0.5 and equal >= published)


def _score(folder: Path, image: Callable[[str, int], Tensor]) -> dict[str, Metric]:
    shards = write_numbered_shards(folder / "s", IMAGES, LANGUAGES, lambda code, number: f"{code} {number}")
    context = EvaluationContext(_encoder(_number), CodedGenerator(image), folder)
    found = ClipScore(shards, LANGUAGES, samples=32).run(context)
    return {metric.name.removeprefix("clip_score/"): metric for metric in found}


def _drawn_prompts(folder: Path) -> Outcome:
    found = _score(folder, lambda prompt, number: numbered_image(_number(prompt)))
    made, real, other = (found[name].value or 0.0 for name in ("generated/min", "real", "shuffled"))
    words = f"score {made:.2f}, real images {real:.2f}, other prompts {other:.2f}"
    return Outcome(words, abs(made - WEIGHT) < 1e-3 and abs(real - WEIGHT) < 1e-3 and other < 0.5)


def _ignored_prompts(folder: Path) -> Outcome:
    found = _score(folder, lambda prompt, number: numbered_image((number * 7 + 3) % IMAGES))
    made, other = found["generated/mean"], found["shuffled"].value or 0.0
    low, high = made.low or 0.0, made.high or 0.0
    words = f"score {made.value:.2f} ({low:.2f} to {high:.2f}), other prompts {other:.2f}"
    return Outcome(words, low <= other <= high and high < 1)


def _constant(folder: Path) -> Outcome:
    low, high = share_interval(numpy.ones(100))
    return Outcome(f"{low:.3f} to {high:.3f}", 0.95 < low < 0.97 and high == 1)


def _held(interval: Callable[[numpy.ndarray], tuple[float, float]], truth: float) -> float:
    """Return how often the interval holds the share of 24 equal languages."""
    held = 0
    for seed in range(REPEATS):
        rng = numpy.random.default_rng(seed)
        hits = rng.normal(size=(200, 1)) + rng.normal(size=(200, 24)) < 1.5
        low, high = interval(hits.astype(float))
        held += low <= truth <= high
    return held / REPEATS


def _share() -> float:
    return float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.5 / 2**0.5)))


def _worst_language(folder: Path) -> Outcome:
    held = _held(worst_interval, _share())
    return Outcome(f"held in {held:.0%} of {REPEATS}", held >= 0.9)


def _bootstrap_of_a_minimum(folder: Path) -> Outcome:
    def smallest(values: numpy.ndarray) -> float:
        return float(values.mean(axis=0).min())

    held = _held(lambda hits: bootstrap_interval(hits, smallest, repeats=100), _share())
    return Outcome(f"held in {held:.0%} of {REPEATS}", held < 0.7)


def _compared(gain: float) -> tuple[float, str]:
    """Return corrected p value and kind of two models of which B is better by a gain."""
    rng, count = numpy.random.default_rng(0), 400
    hard, keys = rng.random(count), [str(number) for number in range(count)]
    rows = []
    for limit in (0.4, 0.4 - gain):
        hits = (hard + rng.normal(0, 0.02 if gain else 0.0, count) > limit).astype(float)[:, None]
        rows.append([metric.as_dict() for metric in language_metrics("x", hits, ["de"], keys=keys)])
    found = {metric.name: metric for metric in compare_rows(rows[0], rows[1])}["x/de"]
    return 1.0 if found.adjusted is None else found.adjusted, found.difference.kind


def _same_model(folder: Path) -> Outcome:
    p, kind = _compared(0.0)
    return Outcome(f"{kind}, p {p:.3f}", p == 1 and kind == "paired")


def _better_model(folder: Path) -> Outcome:
    p, kind = _compared(0.1)
    return Outcome(f"{kind}, p {p:.1e}", p < 1e-3 and kind == "paired")

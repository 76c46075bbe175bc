"""Language parity: known encoders, chance, missing languages, and the spread over languages in closed form."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from toys.shards import write_samples

from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.language_parity import LanguageParity, parallel_samples, recall_at_one
from leam_mm.audits.language_spread import parity_result
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.control_images import image_numbers, numbered_png, write_numbered_shards
from leam_mm.errors import UserError

COUNT = 40
CODES = torch.eye(COUNT + 1)


def encoder(*spoken: str) -> CodedEncoder:
    def text(caption: str) -> torch.Tensor:
        code, number = caption.split()
        return CODES[int(number) if code in spoken else COUNT]

    return CodedEncoder(lambda image: CODES[image_numbers(image)], text)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_numbered_shards(tmp_path / "test", COUNT, ["de", "en", "fi"], lambda code, number: f"{code} {number}")


def test_worst_language_over_the_mean_is_corrected_for_chance(shards: Path) -> None:
    context = AuditContext(encoder("en", "de"), None, shards.parent, held_out=shards, shards=shards)
    parity, fertility, cut = LanguageParity(["de", "en", "fi"], fewest=1).run(context)
    # A Finnish caption scores 0 for its image; the chance of a random order is 1 of 40.
    assert parity.slices["fi"]["value"] == 0.0
    assert parity.value == pytest.approx((0 - 1 / COUNT) / (2 / 3 - 1 / COUNT))
    assert parity.slices["en"]["value"] == 1.0
    assert parity.slices["en"]["pairs"] == COUNT
    assert parity.slices["en"]["chance"] == pytest.approx(1 / COUNT)
    assert parity.verdict == "fail" and "fi" in parity.reason
    assert fertility.value == 1.0 and fertility.verdict == "pass"
    assert cut.value == 0.0 and cut.samples == COUNT
    everybody = AuditContext(encoder("en", "de", "fi"), None, shards.parent, held_out=shards)
    assert LanguageParity(["de", "en", "fi"], fewest=1).run(everybody)[0].verdict == "pass"
    assert LanguageParity(["de", "en", "fi"]).run(everybody)[0].verdict == "inconclusive"  # 40 images are too few


def test_encoder_that_finds_nothing_is_undecided(shards: Path) -> None:
    context = AuditContext(encoder(), None, shards.parent, held_out=shards)
    parity = LanguageParity(["de", "en", "fi"], fewest=1).run(context)[0]
    assert parity.verdict == "inconclusive" and "not above chance" in parity.undecided


def test_missing_language_cannot_pass(shards: Path) -> None:
    context = AuditContext(encoder("en", "de", "fi"), None, shards.parent, held_out=shards)
    parity = LanguageParity(["de", "en", "fi", "mt"], fewest=1).run(context)[0]
    assert parity.verdict == "inconclusive" and "no captions in mt" in parity.undecided


def test_inputs_are_required_and_parallel(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRun, match="add --held_out"):
        LanguageParity().run(AuditContext(encoder(), None, tmp_path))
    with pytest.raises(NotRun, match="add --clip"):
        LanguageParity().run(AuditContext(None, None, tmp_path, held_out=shards))
    with pytest.raises(NotRun, match="one language only"):
        parallel_samples(shards, ["en", "mt"], None)
    apart = [
        {"png": numbered_png(n), "json": json.dumps({"captions": [{"text": "a", "language": code}]}).encode()}
        for n, code in enumerate(["en", "de"])
    ]
    with pytest.raises(NotRun, match="no image has captions in all of en, de"):
        parallel_samples(write_samples(tmp_path / "apart", apart), ["en", "de"], None)
    with pytest.raises(UserError, match="at least two to compare"):
        LanguageParity(["en", "en"])


def test_embeddings_that_are_not_finite_are_one_line(shards: Path) -> None:
    broken = CodedEncoder(lambda image: torch.full((len(image), 4), torch.nan), lambda text: torch.ones(4))
    with pytest.raises(UserError, match="embeddings that are not finite"):
        LanguageParity(["de", "en"]).run(AuditContext(broken, None, shards.parent, held_out=shards))


def test_chance_is_the_score_of_random_embeddings() -> None:
    owned = [torch.tensor([row // 2]) for row in range(12)]  # two images share each of six captions
    owned[0] = torch.tensor([0, 5])
    found = []
    for seed in range(3000):
        generator = torch.Generator().manual_seed(seed)
        image, text = torch.randn(12, 24, generator=generator), torch.randn(6, 24, generator=generator)
        hits, chance = recall_at_one(image, text, owned, torch.device("cpu"))
        found.append(hits.mean())
    assert numpy.mean(found) == pytest.approx(chance, abs=4 * numpy.std(found) / 3000**0.5)


def test_spread_has_closed_forms() -> None:
    share = numpy.array([0.2, 0.4, 0.6, 0.8])
    hits = (numpy.arange(100)[:, None] < 100 * share).astype(float)
    pairs = {"a": 10, "b": 100, "c": 1000, "d": 10_000}
    result = parity_result("x", hits, numpy.zeros(4), ["a", "b", "c", "d"], 0.8, "", pairs)
    assert result.value == pytest.approx(0.4)
    assert result.low is not None and result.high is not None and 0.2 < result.low < 0.4 < result.high < 0.6
    assert result.slices["coefficient of variation"]["value"] == pytest.approx(numpy.std(share) / 0.5)
    assert result.slices["Gini coefficient"]["value"] == pytest.approx(0.25)  # sum of |x - y| is 4 over 2 x 16 x 0.5
    slope = result.slices["slope per tenfold pairs"]
    assert slope["value"] == pytest.approx(0.2) and slope["low"] == pytest.approx(0.2)
    even = parity_result("x", hits, numpy.zeros(4), ["a", "b", "c", "d"], 0.8, "", dict.fromkeys(pairs, 7))
    assert even.slices["slope per tenfold pairs"]["value"] is None


def row(name: str, value: float, **more: object) -> dict[str, object]:
    return {"name": name, "value": value, "low": value - 0.02, "high": value + 0.02, "samples": 99, "slices": {}} | more


def test_earlier_results_are_audited_too(shards: Path, tmp_path: Path) -> None:
    classes = {"slices": {"classes": 10}}
    rows = [
        row("zero_shot/top1/mean", 0.7), row("zero_shot/top1/min_over_mean", 0.9, note="worst language: fi; x"),
        row("zero_shot/top1/en", 0.8, **classes), row("zero_shot/top1/fi", 0.63, **classes),
        row("zero_shot/top1/de", 0.67, **classes),
        row("text_to_image/scene/soft_tifa/mean", 0.5), row("text_to_image/scene/soft_tifa/min_over_mean", 0.6),
        row("text_to_image/own/soft_tifa/mean", 0.5),
        row("text_to_image/own/soft_tifa/min_over_mean", 0.6, note="worst language: fi; indicative only: x"),
    ]  # fmt: skip
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    context = AuditContext(encoder("en", "de", "fi"), None, tmp_path, held_out=shards, results=tmp_path)
    found = {result.audit: result for result in LanguageParity(["de", "en", "fi"], fewest=1).run(context)[3:]}
    assert list(found) == ["language_parity/zero_shot"]  # no generator is audited
    zero_shot = found["language_parity/zero_shot"]
    assert zero_shot.value == pytest.approx((0.63 - 0.1) / (0.7 - 0.1)) and zero_shot.verdict == "pass"
    assert zero_shot.slices["fi"]["value"] == 0.63
    context.generator, context.results = object(), tmp_path / "results.jsonl"
    found = {result.audit: result for result in LanguageParity(["de", "en", "fi"], fewest=1).run(context)[3:]}
    assert found["language_parity/text_to_image/scene"].verdict == "fail"
    assert found["language_parity/text_to_image/own"].verdict == "inconclusive"
    context.results = None
    (missing,) = LanguageParity(["de", "en", "fi"], fewest=1).run(context)[3:]
    assert (missing.audit, missing.verdict) == ("language_parity/text_to_image", "not_run")
    context.results = tmp_path / "none"
    with pytest.raises(UserError, match="there is no results"):
        LanguageParity(["de", "en", "fi"], fewest=1).run(context)


def test_a_ratio_over_one_language_or_without_samples_does_not_pass(shards: Path, tmp_path: Path) -> None:
    classes = {"slices": {"classes": 10}}
    english = [row("zero_shot/top1/mean", 0.9), row("zero_shot/top1/min_over_mean", 0.97)]
    english += [row("zero_shot/top1/en", 0.9, **classes)]
    every = [*english, row("zero_shot/top1/fi", 0.9, **classes), row("zero_shot/top1/de", 0.9, **classes)]
    nobody = [entry | {"samples": None} for entry in every]
    without_mean = [every[0] | {"value": None}, *every[1:]]
    for rows, verdict in ((english, "inconclusive"), (every, "pass"), (nobody, "inconclusive"),
                          (without_mean, "inconclusive")):  # fmt: skip
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
        context = AuditContext(encoder("en", "de", "fi"), None, tmp_path, held_out=shards, results=tmp_path)
        (found,) = LanguageParity(["de", "en", "fi"], fewest=1).run(context)[3:]
        assert found.verdict == verdict, rows
    with pytest.raises(UserError, match="limit is 0"):
        LanguageParity(limit=0)

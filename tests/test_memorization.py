"""Parts of the memorization audit on generators whose memory is known, and the rules of the whole audit."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from leam_mm.audits.audit import AuditContext, AuditResult, Threshold
from leam_mm.audits.canaries import Canaries
from leam_mm.audits.canary_exposure import exposure
from leam_mm.audits.combined_result import combined_result
from leam_mm.audits.extraction import Extraction, largest_clique, most_frequent_captions
from leam_mm.audits.first_step_signal import FirstStepSignal, first_step_difference
from leam_mm.audits.memorization import Memorization
from leam_mm.audits.near_copies import NearCopies, calibrated
from leam_mm.controls.coded_models import CodedGenerator
from leam_mm.controls.empirical_generator import EmpiricalGenerator
from leam_mm.controls.memorization_controls import memorization_controls, write_canaries
from leam_mm.controls.smooth_images import SIDE, smooth_images, write_image_shards
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError


def result(name: str, value: float | None, most: float = 0.5, **settings: object) -> AuditResult:
    threshold = None if value is None else Threshold(most=most)
    return AuditResult(f"memorization/{name}", value, value, value, "", 10, threshold, **settings)  # type: ignore[arg-type]


def test_the_whole_passes_only_if_each_part_passes() -> None:
    good, bad = result("a", 0.1), result("b", 0.9)
    open_part, missing = (
        result("c", 0.1, undecided="weak control"),
        result("d", None, reason="no canaries", not_run=True),
    )
    for parts, verdict in [
        ([good], "pass"),
        ([good, bad], "fail"),
        ([good, open_part], "inconclusive"),
        ([good, missing], "inconclusive"),
        ([bad, open_part, missing], "fail"),
        ([missing], "not_run"),
    ]:
        assert combined_result("memorization", parts).verdict == verdict
    assert "not decided: c, d" in combined_result("memorization", [good, open_part, missing]).as_dict()["note"]


def context(folder: Path, generator: object, training: int = 60, held_out: int = 200) -> AuditContext:
    train = write_image_shards(
        folder / "train", smooth_images(training, 1), [f"image {n % 20}" for n in range(training)]
    )
    held = write_image_shards(folder / "held", smooth_images(held_out, 2), [f"other {n}" for n in range(held_out)])
    return AuditContext(None, generator, folder, shards=train, held_out=held)


def memorizing(images: torch.Tensor) -> CodedGenerator:
    return CodedGenerator(lambda prompt, number: images[number % len(images)].float() / 255)


def test_held_out_images_that_were_trained_on_are_refused_with_their_number(tmp_path: Path) -> None:
    given = context(tmp_path, memorizing(smooth_images(5, 3)))
    shared = torch.cat([smooth_images(60, 1)[:4], smooth_images(6, 9)])
    given.held_out = write_image_shards(tmp_path / "shared", shared, ["x"] * 10)
    with pytest.raises(UserError, match="4 of 10 images of held_out"):
        Memorization([NearCopies(samples=20)]).run(given)


def test_inputs_that_are_missing_are_named(tmp_path: Path) -> None:
    audit = Memorization([NearCopies(samples=20), Canaries()])
    whole, near, canaries = audit.run(AuditContext(None, memorizing(smooth_images(5, 3)), tmp_path))
    assert [each.verdict for each in (whole, near, canaries)] == ["not_run"] * 3
    assert "no shards was given: add --shards" in near.reason and "plant_canaries.py" in canaries.reason
    with pytest.raises(Exception, match="no generator was given: add --generator"):
        audit.run(AuditContext(None, None, tmp_path))
    with pytest.raises(UserError, match="at least one test"):
        Memorization([])


def test_too_few_held_out_images_decide_nothing(tmp_path: Path) -> None:
    given = context(tmp_path, memorizing(smooth_images(40, 3)))
    found = NearCopies(samples=40, held_out=50, copies=10).measure(given)
    assert found.verdict == "inconclusive" and "50 held-out images cannot calibrate" in found.undecided


def test_a_search_that_misses_copies_cannot_pass_but_can_fail() -> None:
    """Copies through the codec score as held-out images do: no threshold separates them."""
    scores = {
        "held_out": torch.linspace(0, 1, 1001),
        "codec": torch.full((10,), 0.5),
        "noise": torch.full((10,), 1e-4),
        "generated": torch.tensor([0.0, 0.7, 0.9]),
    }
    search = calibrated(scores, 1e-3)
    assert search.weakest == 0 and search.held_out == 1 and search.flagged.tolist() == [True, False, False]


def test_the_threshold_is_no_larger_than_copies_need() -> None:
    near, far = torch.full((100,), 0.01), torch.linspace(1, 2, 1000)
    search = calibrated({"held_out": far, "codec": near, "noise": near, "generated": torch.ones(5)}, 1e-3)
    assert search.threshold == pytest.approx(0.02) and search.held_out == 0 and search.weakest == 1


def test_the_clique_is_one_and_large() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        near = np.triu(generator.random((9, 9)) < 0.55, 1)
        near = near | near.T | np.eye(9, dtype=bool)
        members = largest_clique(torch.from_numpy(near))
        assert len(set(members)) == len(members) and near[np.ix_(members, members)].all()
        largest = max(
            size for size in range(1, 10) for rows in itertools.combinations(range(9), size)
            if near[np.ix_(rows, rows)].all()
        )  # fmt: skip
        assert largest - 1 <= len(members) <= largest
    assert len(largest_clique(torch.ones(12, 12, dtype=torch.bool))) == 12


def test_captions_are_counted_once_for_each_sample(tmp_path: Path) -> None:
    shards = write_image_shards(tmp_path / "train", smooth_images(6, 1), ["b", "a", "b", "c", "a", "b"])
    assert most_frequent_captions(shards, 2, "de") == [("b", 3), ("a", 2)]


def test_repeating_an_image_that_nobody_trained_on_is_no_extraction(tmp_path: Path) -> None:
    one = smooth_images(1, 99)
    found = Extraction(captions=5, samples=10, held_out=200, false_positives=0.01, copies=10).measure(
        context(tmp_path, memorizing(one))
    )
    assert found.value == 0 and found.slices["repeated"]["value"] == 1


def test_exposure_is_the_logarithm_of_the_rank() -> None:
    losses = torch.arange(16.0)
    assert exposure(losses) == 4 and exposure(losses.flip(0)) == 0
    assert exposure(torch.tensor([1.0, 0, 2, 3])) == 1
    assert exposure(torch.ones(7)) == pytest.approx(math.log2(7) - 2)  # the mean rank of seven equal ones


def test_the_curve_over_duplication_shows_what_was_memorized(tmp_path: Path) -> None:
    found = write_canaries(tmp_path / "canaries", [1] * 24 + [16] * 12 + [0] * 40)
    memory = {caption: image for caption, image, copies in found if copies == 16}
    part = Canaries(
        tmp_path / "canaries", samples=2, most_held_out=16, candidates=15, draws=1, sampling=SamplerSettings(8, 3.0)
    )
    curve = part.measure(AuditContext(None, EmpiricalGenerator(SIDE, memory), tmp_path))
    assert curve.verdict == "pass" and "12 of 12 at 16" in curve.reason
    shares = {name: row["value"] for name, row in curve.slices.items()}
    assert shares == {"duplication_0": 0, "duplication_1": 0, "duplication_16": 1}
    exposures = {name: row["exposure_bits"]["value"] for name, row in curve.slices.items()}
    assert exposures["duplication_16"] == 4 > 2.5 > exposures["duplication_1"]
    assert (tmp_path / "canaries.json").exists()


def test_the_first_step_moves_by_what_the_caption_is_known_to_move() -> None:
    image = smooth_images(1, 1)[0]
    module = EmpiricalGenerator(SIDE, {"known": image})
    known, other = first_step_difference(module, ["known", "a caption that it never saw"], 3, 8, 0).tolist()
    latent = module.memory["known"]
    assert known == pytest.approx(float(latent.square().mean().sqrt()), rel=0.05)  # pure noise shows nothing else
    assert other == pytest.approx(0.2, rel=0.15)  # the strength of a caption


def test_captions_that_differ_by_themselves_decide_nothing(tmp_path: Path) -> None:
    given = context(tmp_path, EmpiricalGenerator(SIDE))
    found = FirstStepSignal(captions=20, steps=8).measure(given)
    assert found.verdict == "inconclusive" and "captions alone tell the groups apart" in found.undecided


@pytest.mark.parametrize("control", memorization_controls(), ids=lambda control: control.name)
def test_controls_are_on_the_right_side(tmp_path: Path, control: object) -> None:
    outcome = control.run(tmp_path)  # type: ignore[attr-defined]
    assert outcome.right, outcome.found

"""Membership inference: scores, guard, missing and wrong inputs, and controls."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.membership_inference import MembershipInference
from leam_mm.audits.membership_scores import encoder_scores, generator_scores
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.empirical_generator import EmpiricalGenerator
from leam_mm.controls.membership_controls import membership_controls
from leam_mm.controls.smooth_images import SIDE, png, smooth_images, write_image_shards
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample


def context(folder: Path, members: int = 40, others: int = 40, **models: object) -> AuditContext:
    images = smooth_images(members + others, 1)
    texts = [f"image {number % 7}" for number in range(members + others)]
    train = write_image_shards(folder / "train", images[:members], texts[:members])
    held = write_image_shards(folder / "held", images[members:], texts[members:])
    given = {"clip": None, "generator": None} | models
    return AuditContext(**given, output=folder, shards=train, held_out=held)  # type: ignore[arg-type]


def test_an_overfitted_generator_gives_its_members_the_higher_scores() -> None:
    images = smooth_images(40, 1)
    scores = generator_scores(EmpiricalGenerator(SIDE, overfitted=images[:20]), images, ["x"] * 40, 1, 0)
    assert scores["loss"][:20].min() > scores["loss"][20:].max()
    assert np.allclose(scores["caption_gain"], 0)  # it ignores captions


def test_a_caption_that_is_remembered_gains_for_its_image_alone() -> None:
    images = smooth_images(20, 1)
    texts = [f"image {number}" for number in range(20)]
    module = EmpiricalGenerator(SIDE, {texts[0]: images[0]})
    gain = generator_scores(module, images, texts, 2, 0)["caption_gain"]
    assert gain[0] > gain[1:].max()


def test_the_scores_of_an_encoder_are_cosines() -> None:
    images = smooth_images(6, 1)
    table = {str(number): torch.randn(12, generator=torch.Generator().manual_seed(number)) for number in range(6)}
    encoder = CodedEncoder(lambda image: image[:, :, ::16, ::16].flatten(1).float() - 100, table.get, image_size=SIDE)  # type: ignore[arg-type]
    texts = ["0", "1", "2", "3", "3", "5"]
    samples = [ImageSample(str(number), png(image), {}) for number, image in enumerate(images)]
    scores = encoder_scores(encoder, samples, texts, torch.device("cpu"))
    rows = images[:, :, ::16, ::16].flatten(1).float() - 100
    cosines = F.cosine_similarity(rows[:, None], torch.stack([table[text] for text in texts])[None], dim=2)
    np.testing.assert_allclose(scores["cosine"], cosines.diagonal(), atol=1e-5)
    others = [row for row in range(6) if texts[row] != "3"]  # an equal caption is no other one
    assert scores["margin"][3] == pytest.approx(float(cosines[3, 3] - cosines[3, others].mean()), abs=1e-5)


def test_few_samples_are_inconclusive_and_the_numbers_are_there(tmp_path: Path) -> None:
    module = EmpiricalGenerator(SIDE, overfitted=smooth_images(40, 1))
    whole, part = MembershipInference(samples=40, draws=1).run(context(tmp_path, generator=module))
    assert part.audit == "membership_inference/generator" and part.verdict == whole.verdict == "inconclusive"
    assert "40 samples, at least 500 are needed" in part.as_dict()["note"]
    assert part.value == 1 and part.slices["loss/area"]["value"] == 1
    assert set(part.slices) >= {"blind_classifier", "loss/found_at_0.001", "caption_gain/found_at_0.01"}


@pytest.mark.parametrize(
    ("guard", "said"),
    [
        ((0.5, 0.47, 0.54), ""),
        ((0.475, 0.25, 0.70), "too few to know whether"),
        ((0.7, 0.60, 0.80), "tells the sets apart (area 0.700, 0.600 to 0.800; at most 0.55)"),
    ],
)
def test_only_an_interval_above_the_limit_says_that_the_sets_differ(
    guard: tuple[float, float, float], said: str
) -> None:
    scores = {"loss": np.random.default_rng(0).normal(size=1200)}
    result = MembershipInference(samples=600)._result("generator", scores, 600, guard)
    assert said in result.undecided and bool(result.undecided) == bool(said)
    assert ("tells the sets apart" in result.as_dict()["note"]) == (guard[1] > 0.55)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    audit = MembershipInference()
    with pytest.raises(NotRun, match="no model was given"):
        audit.run(context(tmp_path / "a"))
    with pytest.raises(NotRun, match="no held out was given: add --held_out"):
        audit.run(AuditContext(None, EmpiricalGenerator(SIDE), tmp_path, shards=tmp_path / "a" / "train"))
    with pytest.raises(NotRun, match="40 members and 5 non-members are too few"):
        audit.run(context(tmp_path / "b", others=5, generator=EmpiricalGenerator(SIDE)))


def test_members_among_the_held_out_images_are_refused(tmp_path: Path) -> None:
    given = context(tmp_path, generator=EmpiricalGenerator(SIDE))
    given.held_out = given.shards
    with pytest.raises(UserError, match="40 of 40 images of held_out"):
        MembershipInference().run(given)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"samples": 5}, {"false_positives": 0.0}):
        with pytest.raises(UserError, match="samples must be at least 20"):
            MembershipInference(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("control", membership_controls(), ids=lambda control: control.name)
def test_controls_are_on_the_right_side(tmp_path: Path, control: object) -> None:
    outcome = control.run(tmp_path)  # type: ignore[attr-defined]
    assert outcome.right, outcome.found

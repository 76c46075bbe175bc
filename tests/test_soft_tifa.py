import numpy
import pytest

from leam_mm.evaluators.language_consistency import against_anchor, atom_agreement, image_likeness, score_parity
from leam_mm.evaluators.soft_tifa import arithmetic_mean, geometric_mean, right_probability


def test_the_right_answer_may_be_no() -> None:
    found = right_probability(numpy.array([[0.9, 0.9], [0.2, 0.2]]), numpy.array([True, False]))
    assert found == pytest.approx(numpy.array([[0.9, 0.1], [0.2, 0.8]]))


def test_means_over_atoms_in_closed_form() -> None:
    right = numpy.array([[0.9, 0.4, 0.1], [1.0, 1.0, 0.0], [0.5, 0.5, numpy.nan], [1.0, 1.0, 1.0]])
    assert arithmetic_mean(right) == pytest.approx([1.4 / 3, 2 / 3, 0.5, 1])
    assert geometric_mean(right) == pytest.approx([0.036 ** (1 / 3), 0, 0.5, 1])


def test_the_geometric_mean_is_the_smaller_one() -> None:
    right = numpy.random.default_rng(0).random((200, 4))
    assert (geometric_mean(right) <= arithmetic_mean(right) + 1e-12).all()


def test_equal_images_are_alike_and_images_of_other_concepts_are_not() -> None:
    random = numpy.random.default_rng(0)
    shared = random.normal(size=64) * 3  # all images have something in common, as embeddings do
    concepts = random.normal(size=(40, 1, 64)) + shared
    # English, a language with equal images, and one that draws the concept that follows.
    features = numpy.stack([concepts, concepts, numpy.roll(concepts, 1, axis=0)], axis=2)
    found = image_likeness(features, anchor=0)
    assert found[:, :2] == pytest.approx(1) and found[:, 2].mean() == pytest.approx(0, abs=0.05)


def test_likeness_by_hand() -> None:
    angle = numpy.array([[0.0, 0.3], [1.2, 1.0]])  # (concepts, languages)
    features = numpy.stack([numpy.cos(angle), numpy.sin(angle)], axis=-1)[:, None]
    own, chance = numpy.cos(0.2), numpy.cos(1.0)
    assert image_likeness(features, 0)[1, 1] == pytest.approx((own - chance) / (1 - chance))


def test_agreement_counts_equal_answers_of_real_atoms() -> None:
    yes = numpy.array([[[[0.9, 0.1, numpy.nan], [0.6, 0.7, numpy.nan]]]])  # one concept, one seed, two languages
    assert atom_agreement(yes, 0) == pytest.approx(numpy.array([[1.0, 0.5]]))


def test_parity_is_the_ratio_of_means() -> None:
    scores = numpy.random.default_rng(0).random((30, 3))
    found = score_parity("parity", scores, ["de", "en", "fi"], 1, "")
    means = scores.mean(axis=0)
    assert found.value == pytest.approx((means[0] + means[2]) / 2 / means[1])
    assert found.slices["language=fi"]["value"] == pytest.approx(means[2] / means[1])
    assert found.low < found.value < found.high and "language=en" not in found.slices
    equal = score_parity("parity", numpy.repeat(scores[:, :1], 3, axis=1), ["de", "en", "fi"], 1, "")
    assert (equal.low, equal.value, equal.high) == pytest.approx((1, 1, 1))


def test_the_interval_of_parity_covers_the_ratio() -> None:
    random, covered = numpy.random.default_rng(1), 0
    for _ in range(300):
        score = random.beta(1.2, 0.8, size=(24, 1)) * [1, 0.9, 0.8] + random.normal(0, 0.12, size=(24, 3))
        found = score_parity("parity", score, ["en", "de", "fi"], 0, "")
        covered += found.low <= 0.85 <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_what_cannot_be_compared_is_not_measured() -> None:
    assert score_parity("parity", numpy.zeros((9, 2)), ["en", "de"], 0, "").value is None
    alone = against_anchor("likeness", numpy.ones((9, 1)), ["en"], 0, "ratio", "")
    assert alone.value is None and "no second language" in alone.note

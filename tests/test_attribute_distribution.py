"""Distributions of attributes: closed forms, correction of a classifier's errors, and coverage in simulation."""

import numpy
import pytest

from leam_mm.audits.attribute_distribution import corrected, distance, entropy, fault_of_errors, total_variation

UNIFORM = numpy.full(4, 0.25)


def test_closed_forms() -> None:
    one = numpy.array([1.0, 0, 0, 0])
    assert total_variation(one, UNIFORM) == 0.75
    assert entropy(UNIFORM) == pytest.approx(1.0) and entropy(one) == 0.0
    found = distance(numpy.array([100, 0, 0, 0]), UNIFORM)
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)


def test_known_errors_are_taken_out() -> None:
    confusion = numpy.array([[0.9, 0.1], [0.3, 0.7]])
    true = numpy.array([0.2, 0.8])
    assert corrected(true @ confusion, confusion) == pytest.approx(true)
    many = numpy.array([1.0, 0.0])  # beyond what the errors allow: clipped
    assert corrected(many, confusion).tolist() == [1.0, 0.0]
    counts = numpy.rint(10_000 * (true @ confusion))
    found = distance(counts, numpy.array([0.5, 0.5]), 1000 * confusion)
    assert found.value == pytest.approx(0.3, abs=1e-3) and found.low < 0.3 < found.high
    naive = distance(counts, numpy.array([0.5, 0.5]))
    assert naive.value == pytest.approx(abs((true @ confusion)[0] - 0.5))
    assert found.high - found.low > naive.high - naive.low  # errors that were measured on few images widen it


@pytest.mark.parametrize("values", [2, 8])
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.1, 0.3])
def test_interval_covers(values: int, shift: float) -> None:
    generator, covered, repeats = numpy.random.default_rng(1), 0, 100
    reference = numpy.full(values, 1 / values)
    true = reference + numpy.where(numpy.arange(values) < values // 2, 1, -1) * 2 * shift / values
    for _ in range(repeats):
        found = distance(generator.multinomial(400, true), reference)
        covered += found.low <= shift + 1e-12 and shift <= found.high
    assert covered >= 92


def test_errors_that_cannot_be_corrected_are_named() -> None:
    assert "give it a labelled set" in fault_of_errors(None, ["a", "b"])
    assert "image of b" in fault_of_errors(numpy.array([[3, 1], [0, 0]]), ["a", "b"])
    assert "too badly" in fault_of_errors(numpy.array([[50, 50], [49, 51]]), ["a", "b"])
    assert fault_of_errors(numpy.array([[9, 1], [2, 8]]), ["a", "b"]) == ""

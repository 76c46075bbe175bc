"""Training, validation and test images: equal files never lie on two sides."""

import numpy

from leam_mm.evaluators.probe_data import divide_by_content, new_to_test, validation_rows

DIGESTS = [f"{number * 7919 % 101:03d}" for number in range(60)] + ["003", "003", "both", "both"]
LABELS = numpy.array([*(number % 3 for number in range(60)), 0, 0, 1, 2])


def test_division_keeps_equal_files_together() -> None:
    digests = [*DIGESTS, *DIGESTS[:10]]
    label = numpy.concatenate([LABELS, LABELS[:10]])
    train, test = divide_by_content(digests, label)
    sides = {digests[row] for row in train}, {digests[row] for row in test}
    assert not sides[0] & sides[1]
    assert "both" not in sides[0] | sides[1]  # it stands in two classes
    for own in range(3):
        halves = [len({digests[row] for row in rows if label[row] == own}) for rows in (train, test)]
        assert halves[0] in (halves[1], halves[1] - 1), own
    shuffled = numpy.random.default_rng(0).permutation(len(digests))
    again, _ = divide_by_content([digests[row] for row in shuffled], label[shuffled])
    assert {digests[shuffled[row]] for row in again} == sides[0]


def test_test_files_are_taken_from_training() -> None:
    assert new_to_test(["a", "b", "a", "c"], ["a", "x"]) == [1, 3]


def test_validation_is_a_fifth_of_each_class() -> None:
    digests, label = [f"{number}" for number in range(90)] * 2, numpy.arange(180) % 3
    held = validation_rows(digests, label)
    assert not {digests[row] for row in numpy.flatnonzero(held)} & {digests[row] for row in numpy.flatnonzero(~held)}
    assert [int(held[label == own].sum()) for own in range(3)] == [12, 12, 12]
    assert not validation_rows(["a", "b"], numpy.array([0, 1])).any()

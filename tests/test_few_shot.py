"""Few-shot: shots are different training images, draws differ, more shots help, and the test split is not seen."""

import dataclasses

import numpy
import pytest
from toys.embeddings import clouds

from leam_mm.evaluators import few_shot as module
from leam_mm.evaluators.few_shot import draw_shots, few_shot


def test_shots_are_different_files_of_each_class() -> None:
    data = clouds(each=6)
    # Each file stands twice among the training images.
    data = dataclasses.replace(
        data, train=numpy.repeat(data.train, 2, axis=0), train_label=numpy.repeat(data.train_label, 2),
        train_digests=[digest for digest in data.train_digests for _ in range(2)],
    )  # fmt: skip
    rows = draw_shots(data, 4, 0)
    assert rows is not None
    assert len({data.train_digests[row] for row in rows}) == 28
    assert numpy.bincount(data.train_label[rows]).tolist() == [4] * 7
    other = draw_shots(data, 4, 1)
    assert other is not None and set(other.tolist()) != set(rows.tolist())
    assert draw_shots(data, 7, 0) is None


def test_more_shots_help() -> None:
    data = clouds(each=20, noise=0.5)
    metrics = few_shot("few", data, [1, 16, 32], 5)
    assert [metric.name for metric in metrics] == ["few/1_shots/top1", "few/16_shots/top1", "few/32_shots/top1"]
    one, many, missing = metrics
    assert one.value is not None and many.value is not None and one.low is not None and many.high is not None
    assert 1 / 7 < one.value < many.value <= many.high
    assert len(one.slices["by_draw"]) == 5
    assert sum(one.slices["by_draw"]) / 5 == pytest.approx(one.value, abs=1e-5)
    assert missing.value is None and "fewer than 32 different training images" in missing.note


def test_weights_do_not_depend_on_the_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[bytes] = []
    fit = module.fit_probe

    def recorded(*args: object) -> object:
        probe = fit(*args)  # type: ignore[arg-type]
        weights.append(probe.weight.numpy().tobytes())
        return probe

    monkeypatch.setattr(module, "fit_probe", recorded)
    data = clouds(each=8)
    few_shot("few", data, [1, 4], 3)
    label = numpy.random.default_rng(0).permutation(data.test_label)
    few_shot("few", dataclasses.replace(data, test=data.test[::-1].copy(), test_label=label), [1, 4], 3)
    assert len(weights) == 12 and weights[:6] == weights[6:] and len(set(weights)) == 6

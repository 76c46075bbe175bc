"""The probe reaches the minimum of its loss, chooses its regularisation on training images, and never sees the test."""

import dataclasses

import numpy
import pytest
import torch
from scipy.special import log_softmax
from toys.embeddings import clouds

from leam_mm.evaluators import linear_probe as module
from leam_mm.evaluators.linear_probe import STRENGTHS, choose_strength, fit_probe, linear_probe, ranks
from leam_mm.evaluators.probe_data import ProbeData


def loss(flat: numpy.ndarray, data: ProbeData, strength: float) -> float:
    weight = flat.reshape(13, -1)
    share = log_softmax(data.train @ weight[:-1] + weight[-1], axis=1)
    picked = share[numpy.arange(len(share)), data.train_label]
    return float(-picked.mean() + strength / 2 * (weight[:-1] ** 2).sum())


@pytest.mark.parametrize("strength", [1.0, 1e-3])
def test_no_direction_lowers_the_loss(strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 50)  # several parts
    data = clouds()
    probe = fit_probe(data.train, data.train_label, 7, strength)
    best, generator = loss(probe.weight.numpy().ravel(), data, strength), numpy.random.default_rng(0)
    assert probe.converged and best < loss(numpy.zeros(13 * 7), data, strength)
    for scale in (1e-1, 1e-3):
        for _ in range(20):
            other = probe.weight.numpy().ravel() + scale * generator.normal(size=13 * 7)
            assert loss(other, data, strength) > best


def test_it_agrees_with_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    data, strength = clouds(), 1e-2
    peer = linear_model.LogisticRegression(C=1 / (strength * len(data.train)), tol=1e-10, max_iter=5000)
    peer.fit(data.train, data.train_label)
    probe = fit_probe(data.train, data.train_label, 7, strength)
    logits = probe.logits(data.test)
    share = torch.softmax(logits, dim=1).numpy()
    assert share == pytest.approx(peer.predict_proba(data.test), abs=1e-5)


def test_weights_do_not_depend_on_the_test_images() -> None:
    """Permuted test labels and other test images give the same weights, bit for bit."""
    data, generator = clouds(), numpy.random.default_rng(1)
    found = []
    for test, label in (
        (data.test, data.test_label),
        (data.test, generator.permutation(data.test_label)),
        (generator.normal(size=data.test.shape), data.test_label),
    ):
        other = dataclasses.replace(data, test=test, test_label=label)
        strength, how = choose_strength(other)
        probe = fit_probe(other.train, other.train_label, 7, strength)
        found.append((strength, how, probe.weight.numpy().tobytes()))
    assert found[0] == found[1] == found[2]


def test_the_strength_is_chosen_on_held_out_training_images() -> None:
    clean, noisy = clouds(each=40, noise=0.1), clouds(each=6, noise=1.5)
    labels = numpy.random.default_rng(0).permutation(noisy.train_label)
    strength, how = choose_strength(clean)
    assert strength in STRENGTHS and "chosen on 56 of 280 training images" in how
    accuracy = []
    for one in STRENGTHS:
        probe = fit_probe(noisy.train, labels, 7, one)
        accuracy.append(int((ranks(probe, noisy.train, labels)[0] == 0).sum()))
    # On its own training images weak regularisation always looks best: a choice made there would take the last.
    assert accuracy[-1] == max(accuracy) > accuracy[0]
    single = dataclasses.replace(clean, train=clean.train[::40], train_label=clean.train_label[::40],
                                 train_digests=clean.train_digests[::40])  # fmt: skip
    assert "not chosen" in choose_strength(single)[1]


def test_metrics_of_separable_classes() -> None:
    data = clouds(noise=0.02)
    metrics = {metric.name: metric for metric in linear_probe("probe", data)}
    assert list(metrics) == ["probe/top1", "probe/top5", "probe/mean_per_class"]
    assert all(metric.value == 1.0 and metric.samples == 210 for metric in metrics.values())
    top1 = metrics["probe/top1"]
    assert top1.low is not None and 0.97 < top1.low < 1
    assert "chance 14.29% with 7 classes" in top1.note and "toy" in top1.note
    assert top1.slices["confusion_table"]["counts"] == (30 * numpy.eye(7, dtype=int)).tolist()
    assert "top5" not in " ".join(metric.name for metric in linear_probe("probe", clouds(classes=5)))


def test_ties_count_against_the_probe() -> None:
    data = clouds()
    probe = dataclasses.replace(fit_probe(data.train, data.train_label, 7, 1.0), weight=torch.zeros(13, 7).double())
    rank, chosen = ranks(probe, data.test, data.test_label)
    assert rank.tolist() == [6] * 210
    assert not (chosen.numpy() == data.test_label).any()

"""The classifier that sees no model: chance on one distribution, above it on two."""

import numpy as np
import torch
from scipy.optimize import check_grad

from leam_mm.audits.blind_classifier import (
    PENALTY,
    blind_area,
    caption_features,
    cross_validated_scores,
    fit_logistic,
)
from leam_mm.controls.smooth_images import smooth_images


def captions(count: int, seed: int, words: list[str]) -> list[str]:
    return [" ".join(row) for row in np.random.default_rng(seed).choice(words, (count, 3))]


WORDS = ["red", "green", "blue", "circle", "square", "star", "left", "right"]


def test_one_distribution_is_not_told_apart() -> None:
    area, low, high = blind_area(
        (smooth_images(400, 1), captions(400, 1, WORDS)), (smooth_images(400, 2), captions(400, 2, WORDS))
    )
    assert 0.42 < area < 0.58 and low < 0.5 and high < 0.6


def test_the_interval_covers_chance_on_one_distribution() -> None:
    inside = []
    for seed in range(20):
        one, other = ((smooth_images(60, 2 * seed + each), captions(60, 2 * seed + each, WORDS)) for each in (0, 1))
        _, low, high = blind_area(one, other, seed)
        inside.append(low <= 0.5 <= high)
    assert np.mean(inside) >= 0.85


def test_other_pixels_or_other_words_are_told_apart() -> None:
    images, texts = smooth_images(200, 1), captions(200, 1, WORDS)
    darker = (smooth_images(200, 2).float() * 0.8).to(torch.uint8)
    assert blind_area((images, texts), (darker, captions(200, 2, WORDS)))[1] > 0.6
    other = captions(200, 2, [*WORDS, "hexagon", "pentagon"])
    assert blind_area((images, texts), (smooth_images(200, 2), other))[1] > 0.6


def test_the_fit_is_a_stationary_point_of_its_loss() -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(300, 5))
    labels = (rows[:, 0] + generator.normal(size=300) > 0).astype(float)
    weights = fit_logistic(rows, labels)
    sign = 2 * labels - 1

    def loss(values: np.ndarray) -> float:
        return float(
            np.logaddexp(0, -sign * (rows @ values[:-1] + values[-1])).sum() + PENALTY / 2 * values[:-1] @ values[:-1]
        )

    def gradient(values: np.ndarray) -> np.ndarray:
        pull = -sign / (1 + np.exp(sign * (rows @ values[:-1] + values[-1])))
        return np.append(rows.T @ pull + PENALTY * values[:-1], pull.sum())

    start = np.append(weights, 0.0)
    constant = np.linspace(-1, 1, 2001)
    start[-1] = min(constant, key=lambda value: loss(np.append(weights, value)))
    assert check_grad(loss, gradient, start) < 1e-3
    assert np.abs(gradient(start)).max() < 0.2 and weights[0] > 5 * np.abs(weights[1:]).max()


def test_no_row_is_scored_by_a_fit_that_saw_it() -> None:
    """With more features than rows, a fit separates random labels, but no score of an unseen row can."""
    rows = np.random.default_rng(0).normal(size=(100, 300))
    labels = np.repeat([0.0, 1.0], 50)
    scores = cross_validated_scores(rows, labels, 0)
    assert abs(np.corrcoef(scores, labels)[0, 1]) < 0.35
    assert np.corrcoef(rows @ fit_logistic(rows, labels), labels)[0, 1] > 0.9


def test_words_are_counted_whatever_their_case() -> None:
    first, second = caption_features(["Red star", "red STAR"])
    assert (first == second).all() and first.sum() == 3  # two words and their pair

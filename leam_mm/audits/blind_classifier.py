"""Guard of membership inference: a classifier that never sees the model must not tell members from non-members.

If it does, the two sets differ in their data, and a score of the model may show that difference instead of membership
(Duan et al. 2024, 2402.07841; Das, Zhang and Tramèr 2024, 2406.16201).
"""

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise

import numpy
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import interpolate

from leam_mm.audits.receiver_operating import area_under_curve

SIDE = 8  # pixels of the reduced image
SLOTS = 256  # of hashed words and pairs of words
FOLDS = 5
MOST_AREA = 0.55  # of two sets that count as comparable
PENALTY = 30.0  # of the squared weights of standardised features


def blind_area(
    members: tuple[Tensor, list[str]], others: tuple[Tensor, list[str]], seed: int = 0
) -> tuple[float, float, float]:
    """Return the area under the curve of a logistic regression on pixels and captions, by cross-validation.

    Args:
        members: Images (B, 3, H, W) uint8 and their captions.
        others: The same of non-members.
        seed: Seed of the folds.

    Returns:
        Area and its 95 % interval; 0.5 means that nothing distinguishes the sets. The interval is that of independent
        scores, widened as Nadeau and Bengio (2003) do, since the fits of the folds share most of their rows.
    """
    rows = numpy.concatenate([blind_features(*members), blind_features(*others)])
    labels = numpy.repeat([1.0, 0.0], [len(members[1]), len(others[1])])
    scores = cross_validated_scores(rows, labels, seed)
    area, low, high = area_under_curve(scores[labels == 1], scores[labels == 0])
    widening = math.sqrt(1 + FOLDS / (FOLDS - 1))
    return area, max(0.0, area - widening * (area - low)), min(1.0, area + widening * (high - area))


def refuse_shift(area: tuple[float, float, float]) -> str:
    """Return why held-out images cannot calibrate a threshold; empty if the classifier gives no reason.

    Args:
        area: Of ``blind_area`` on training and held-out images. Only a lower end above ``MOST_AREA`` is a reason.
    """
    if area[1] <= MOST_AREA:
        return ""
    return (
        f"held-out and training images differ (a classifier that sees no model: area {area[0]:.3f}, {area[1]:.3f} to "
        f"{area[2]:.3f}): hold out a random part of the same source"
    )


def blind_features(images: Tensor, texts: Sequence[str]) -> numpy.ndarray:
    """Return (B, 3 * 64 + 256) features: the image at 8 x 8 pixels, and hashed words of the caption."""
    small = interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1).numpy()
    return numpy.concatenate([small, caption_features(texts)], axis=1)


def caption_features(texts: Sequence[str]) -> numpy.ndarray:
    """Return (B, 256) counts of hashed words and pairs of neighbouring words."""
    found = numpy.zeros((len(texts), SLOTS))
    for row, text in enumerate(texts):
        words = text.casefold().split()
        for term in [*words, *(f"{one} {two}" for one, two in pairwise(words))]:
            found[row, zlib.crc32(term.encode()) % SLOTS] += 1
    return found


def cross_validated_scores(rows: numpy.ndarray, labels: numpy.ndarray, seed: int) -> numpy.ndarray:
    """Return the score (B,) of each row by a logistic regression that was fitted without its fold.

    Args:
        rows: (B, D) features.
        labels: (B,) of 0 and 1.
        seed: Seed of the folds, each of which holds its share of both labels.
    """
    generator = numpy.random.default_rng(seed)
    fold = numpy.empty(len(labels), dtype=int)
    for label in (0, 1):
        chosen = generator.permutation(numpy.flatnonzero(labels == label))
        fold[chosen] = numpy.arange(len(chosen)) % FOLDS
    scores = numpy.empty(len(labels))
    for number in range(FOLDS):
        test = fold == number
        mean, deviation = rows[~test].mean(0), rows[~test].std(0)
        scaled = (rows - mean) / numpy.where(deviation > 1e-9, deviation, numpy.inf)
        weights = fit_logistic(scaled[~test], labels[~test])
        scores[test] = scaled[test] @ weights
    return scores


def fit_logistic(rows: numpy.ndarray, labels: numpy.ndarray) -> numpy.ndarray:
    """Return the weights (D,) of a logistic regression with an L2 penalty and a free constant, which is left out."""
    x, y = torch.from_numpy(rows), torch.from_numpy(2 * labels - 1)

    def loss(values: numpy.ndarray) -> tuple[float, numpy.ndarray]:
        weights = torch.from_numpy(values[:-1])
        margin = y * (x @ weights + values[-1])
        value = torch.nn.functional.softplus(-margin).sum() + PENALTY / 2 * weights.square().sum()
        gradient_of_margin = -y * torch.sigmoid(-margin)
        gradient = torch.cat([x.T @ gradient_of_margin + PENALTY * weights, gradient_of_margin.sum()[None]])
        return float(value), gradient.numpy()

    start = numpy.zeros(rows.shape[1] + 1)
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x[:-1]

"""Inception Score: exp of the mean Kullback-Leibler divergence of p(class | image) from p(class).

Salimans et al. 1606.03498, section 4; mean over ten parts as published. Real images are not looked at: the score tells
sharp, varied images of the classes of ImageNet from others, and nothing else.
"""

import math

import numpy
from torch import Tensor

SPLITS, SEED = 10, 2020  # SEED, generator and splits are those of torch-fidelity


def inception_score(logits: Tensor, splits: int = SPLITS, seed: int = SEED) -> float:
    """Return the mean score of random parts of the images.

    Args:
        logits: (B, C) of the Inception network, without the bias of its last layer in published numbers.
        splits: Number of parts, each of at least one image.
        seed: Seed of the division into parts.

    Returns:
        The score, between 1 and C.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"an Inception Score of {splits} parts needs as many images, there are {count}")
    shuffled = logits[numpy.random.RandomState(seed).permutation(count)].double()
    scores = []
    for number in range(splits):
        part = shuffled[number * count // splits : (number + 1) * count // splits]
        log = part.log_softmax(dim=1)
        log_mean = log.logsumexp(dim=0) - math.log(len(part))
        divergence = (log.exp() * (log - log_mean)).sum(dim=1)
        scores.append(float(divergence.mean().exp()))
    return float(numpy.mean(scores))

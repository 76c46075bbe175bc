"""Inception Score: its range and closed forms."""

import math

import pytest
import torch

from leam_mm.distances.inception_score import inception_score


def test_closed_forms() -> None:
    classes = 8
    # Certain of a class each, all classes alike: the score is the number of classes.
    sure = 1e3 * torch.eye(classes).repeat(10, 1)
    assert inception_score(sure, splits=1) == pytest.approx(classes)
    # Equal probabilities for all images: 1.
    assert inception_score(torch.zeros(50, classes)) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(50, 1)) == pytest.approx(1)
    # Two kinds of images with p = (a, 1 - a) and its mirror image.
    a = 0.9
    two = torch.tensor([[a, 1 - a], [1 - a, a]]).log().repeat(20, 1)
    entropy = -(a * math.log(a) + (1 - a) * math.log(1 - a))
    assert inception_score(two, splits=1) == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-6)


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    assert inception_score(logits.double() + 7) == pytest.approx(inception_score(logits), rel=1e-12)
    assert inception_score(logits, seed=1) != inception_score(logits)
    with pytest.raises(ValueError, match="10 parts needs as many images, there are 9"):
        inception_score(logits[:9])

"""How far a generator does the same in all languages: ratio of scores, likeness of images, agreement of atoms.

All three compare a language with an anchor language (English), for the same concept and the same noise.
"""

import math
from collections.abc import Sequence

import numpy

from leam_mm.evaluators.evaluator import Metric
from leam_mm.intervals.intervals import mean_interval

BOUNDS = {"fraction": (0.0, 1.0), "ratio": (0.0, math.inf)}  # of a value, by its unit


def image_likeness(features: numpy.ndarray, anchor: int) -> numpy.ndarray:
    """Return the likeness of each image to that of the anchor language, corrected for chance.

    (cos - chance) / (1 - chance), where chance is the mean cosine to the anchor's images of all other concepts: 1 for
    equal images, 0 for images that are as alike as those of other concepts.

    Args:
        features: (concepts, seeds, languages, D) of at least two concepts, none zero.
        anchor: Number of the anchor language.

    Returns:
        (concepts, languages), averaged over seeds.
    """
    unit = features / numpy.linalg.norm(features, axis=-1, keepdims=True)
    count = len(unit)
    # Cosine of (concept, language) and the anchor's image of another concept, both with the same seed.
    cosine = numpy.einsum("csld,ksd->cksl", unit, unit[:, :, anchor]).mean(axis=2)
    own = numpy.einsum("ccl->cl", cosine)
    chance = (cosine.sum(axis=1) - own) / (count - 1)
    return (own - chance) / numpy.maximum(1 - chance, 1e-12)


def atom_agreement(yes: numpy.ndarray, anchor: int) -> numpy.ndarray:
    """Return the share of atoms to which the judge gives the same answer as for the anchor language.

    Args:
        yes: (concepts, seeds, languages, A) probability of "yes"; NaN where a concept has fewer atoms.
        anchor: Number of the anchor language.

    Returns:
        (concepts, languages), averaged over seeds.
    """
    same = ((yes > 0.5) == (yes[:, :, [anchor]] > 0.5)).astype(float)
    return numpy.nanmean(numpy.where(numpy.isnan(yes), numpy.nan, same), axis=(1, 3))


def against_anchor(
    name: str, values: numpy.ndarray, languages: Sequence[str], anchor: int, unit: str, note: str
) -> Metric:
    """Return the mean over all other languages of values that compare them with the anchor.

    Args:
        name: Name of the metric.
        values: (concepts, languages).
        languages: Codes of the columns.
        anchor: Number of the anchor language, which is left out.
        unit: Unit of the values.
        note: Note of the metric.

    Returns:
        Its interval is one over concepts, each with its languages; each language is a slice.
    """
    ones = numpy.ones(len(values))
    return _summary(name, values, ones, languages, anchor, unit, note)


def score_parity(name: str, scores: numpy.ndarray, languages: Sequence[str], anchor: int, note: str) -> Metric:
    """Return the ratio of the score in other languages to that in the anchor language.

    Args:
        name: Name of the metric.
        scores: (concepts, languages).
        languages: Codes of the columns.
        anchor: Number of the anchor language.
        note: Note of the metric.
    """
    if not scores[:, anchor].any():
        text = f"not measured: no score in {languages[anchor]}; {note}"
        return Metric(name, None, None, None, "ratio", len(scores), note=text)
    return _summary(name, scores, scores[:, anchor], languages, anchor, "ratio", note)


def _summary(
    name: str,
    values: numpy.ndarray,
    below: numpy.ndarray,
    languages: Sequence[str],
    anchor: int,
    unit: str,
    note: str,
) -> Metric:
    """Return the mean of the other languages over that of ``below`` (concepts), with an interval over concepts."""
    others = [number for number in range(len(languages)) if number != anchor]
    count = len(values)
    if not others or not count:
        return Metric(name, None, None, None, unit, 0, note=f"not measured: there is no second language; {note}")
    columns = [values[:, others].mean(axis=1), *values[:, others].T]
    found = []
    for column in columns:
        ratio = float(column.mean() / below.mean())
        # Linear part of the ratio's error (delta method); for a plain mean it is the error itself.
        low, high = mean_interval((column - ratio * below) / below.mean())
        least, most = BOUNDS.get(unit, (-math.inf, math.inf))
        found.append(
            {"value": ratio, "low": max(ratio + low, least), "high": min(ratio + high, most), "samples": count}
        )
    slices = {f"language={languages[number]}": entry for number, entry in zip(others, found[1:], strict=True)}
    return Metric(name, found[0]["value"], found[0]["low"], found[0]["high"], unit, count, slices, note)

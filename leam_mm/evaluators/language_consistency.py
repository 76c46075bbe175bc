"""How far a generator does the same in all languages: ratio of scores, likeness of images, agreement of atoms.

All three compare a language with an anchor language (English), for the same concept and the same noise.
"""

from collections.abc import Sequence

import numpy

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.intervals import FEWEST

DRAWS = 1000  # of the bootstrap


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
        Its interval is that of a bootstrap over concepts, each with its languages; each language is a slice.
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
    """Return the mean of the other languages' values over that of ``below`` (concepts); both are drawn together."""
    others = [number for number in range(len(languages)) if number != anchor]
    count = len(values)
    if not others or not count:
        return Metric(name, None, None, None, unit, 0, note=f"not measured: there is no second language; {note}")
    columns = numpy.concatenate([values[:, others].mean(axis=1, keepdims=True), values[:, others]], axis=1)
    found = columns.mean(axis=0) / below.mean()
    rows = numpy.random.default_rng(0).integers(0, count, (DRAWS, count))
    weights = numpy.stack([numpy.bincount(row, minlength=count) for row in rows]) / count
    with numpy.errstate(divide="ignore", invalid="ignore"):
        # A draw without any score in the anchor language has no ratio.
        draws = (weights @ columns) / (weights @ below)[:, None]
    ends = numpy.nanquantile(draws, (0.025, 0.975), axis=0)
    low, high = ends if count >= FEWEST else numpy.full_like(ends, numpy.nan)
    slices = {
        f"language={languages[number]}": {
            "value": float(found[column]), "low": float(low[column]), "high": float(high[column]), "samples": count,
        }
        for column, number in enumerate(others, start=1)
    }  # fmt: skip
    return Metric(name, float(found[0]), float(low[0]), float(high[0]), unit, count, slices, note)

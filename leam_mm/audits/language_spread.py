"""How evenly a score is spread over languages: worst over mean, coefficient of variation, Gini, and use of data."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from scipy.stats import linregress, t

from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.evaluators.intervals import bootstrap_interval
from leam_mm.evaluators.language_summary import language_metrics

LEAST_SPREAD = 0.1  # of log10 of the training pairs, below which a slope over them means nothing


def parity_result(
    name: str,
    hits: numpy.ndarray,
    chance: numpy.ndarray,
    languages: Sequence[str],
    least: float,
    reason: str,
    pairs: Mapping[str, int] | None = None,
    undecided: str = "",
) -> AuditResult:
    """Return the audit of the worst language over the mean, after correction for chance: s' = (s - c) / (1 - c).

    Args:
        name: Name of the result.
        hits: (B, languages) score of each image in [0, 1]; an image is drawn with its scores in all languages.
        chance: (languages,) score of an encoder that knows nothing, below 1.
        languages: Codes of the columns.
        least: Smallest ratio that passes.
        reason: Protocol, for the reader.
        pairs: Training captions by language, for the slope of the score over log10 of their number; None if not known.
        undecided: Why the numbers cannot decide, for example since a language is missing.
    """
    corrected = (hits - chance) / (1 - chance)
    rows = {metric.name.rpartition("/")[2]: metric for metric in language_metrics(name, corrected, list(languages))}
    ratio, mean = rows["min_over_mean"], rows["mean"]
    if mean.low is None or not mean.low > 0:
        undecided = undecided or "the mean of the languages is not above chance: their ratio has no meaning"
    slices: dict[str, Any] = {
        key: {"value": row.value, "low": row.low, "high": row.high, "samples": row.samples}
        for key, row in rows.items() if key != "min_over_mean"
    }  # fmt: skip
    for code, own in zip(languages, chance, strict=True):
        slices[code]["chance"] = float(own)
        if pairs is not None:
            slices[code]["pairs"] = pairs.get(code, 0)
    for key, statistic in (("coefficient of variation", _variation), ("Gini coefficient", _gini)):
        low, high = bootstrap_interval(corrected, statistic)
        slices[key] = {"value": statistic(corrected), "low": low, "high": high, "samples": len(hits)}
    slices["slope per tenfold pairs"] = _slope(corrected.mean(axis=0), languages, pairs)
    return AuditResult(
        name, ratio.value, ratio.low, ratio.high, "ratio", len(hits), Threshold(least=least), slices,
        "; ".join(part for part in (ratio.note, "corrected for chance", reason) if part), undecided=undecided,
    )  # fmt: skip


def _variation(hits: numpy.ndarray) -> float:
    share = hits.mean(axis=0)
    return float(share.std() / share.mean()) if share.mean() else 0.0


def _gini(hits: numpy.ndarray) -> float:
    """Return the mean absolute difference of two languages over twice the mean; 0 if all are equal."""
    share = hits.mean(axis=0)
    difference = numpy.abs(share[:, None] - share[None, :]).mean()
    return float(difference / (2 * share.mean())) if share.mean() else 0.0


def _slope(share: numpy.ndarray, languages: Sequence[str], pairs: Mapping[str, int] | None) -> dict[str, Any]:
    """Return the least-squares slope of the score over log10 of the training captions, with its t interval."""
    if pairs is None:
        return {"value": None, "note": "not measured: no training shards were given"}
    known = [i for i, code in enumerate(languages) if pairs.get(code)]
    amount = numpy.log10([pairs[languages[i]] for i in known])
    if len(known) < 4 or numpy.ptp(amount) < LEAST_SPREAD:
        return {"value": None, "note": "not measured: the languages have nearly equal numbers of training captions"}
    fit = linregress(amount, share[known])
    half = float(t.ppf(0.975, len(known) - 2)) * fit.stderr
    return {"value": fit.slope, "low": fit.slope - half, "high": fit.slope + half, "samples": len(known)}

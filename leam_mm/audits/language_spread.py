"""How evenly a score is spread over languages: worst over mean, coefficient of variation, Gini, and use of data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy
from scipy.stats import linregress, t

from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.intervals.indicative import is_indicative
from leam_mm.languages import LANGUAGE_NAMES

LEAST_SPREAD = 0.1  # of log10 of the training pairs, below which a slope over them means nothing
RATIO = "/min_over_mean"  # end of the name of a metric


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
    """Return the audit of the worst language over the mean, corrected for chance.

    Args:
        name: Name of the result.
        hits: (B, languages) score of each image in [0, 1]; an image counts with its scores in all languages.
        chance: (languages,) score of an encoder that knows nothing, below 1.
        languages: Codes of the columns.
        least: Smallest ratio that passes.
        reason: Protocol, for the reader.
        pairs: Training captions by language, for the slope of the score over log10 of their number; None if not known.
        undecided: Why the numbers cannot decide, for example since a language is missing.
    """
    rows = {metric.name.rpartition("/")[2]: metric for metric in language_metrics(name, hits, list(languages))}
    slices: dict[str, Any] = {
        key: {"value": row.value, "low": row.low, "high": row.high, "samples": row.samples}
        for key, row in rows.items() if key != RATIO[1:]
    }  # fmt: skip
    for code, own in zip(languages, chance, strict=True):
        slices[code]["chance"] = float(own)
        if pairs is not None:
            slices[code]["pairs"] = pairs.get(code, 0)
    share = (hits.mean(axis=0) - chance) / (1 - chance)
    note = "of the scores above chance, with the noise of the samples"
    slices["coefficient of variation"] = {"value": _ratio(share.std(), share.mean()), "note": note}
    difference = numpy.abs(share[:, None] - share[None, :]).mean()
    slices["Gini coefficient"] = {"value": _ratio(difference / 2, share.mean()), "note": note}
    slices["slope per tenfold pairs"] = _slope(share, languages, pairs)
    return ratio_result(name, rows[RATIO[1:]].as_dict(), rows["mean"].as_dict(), float(chance.max()), least, reason,
                        slices, undecided)  # fmt: skip


def ratio_result(
    name: str,
    ratio: Mapping[str, Any],
    mean: Mapping[str, Any],
    chance: float,
    least: float,
    reason: str,
    slices: dict[str, Any],
    undecided: str = "",
) -> AuditResult:
    """Return the audit of a ratio of worst language and mean: r' = (r m - c) / (m - c), with the mean m and chance c.

    Args:
        name: Name of the result.
        ratio: Metric `min_over_mean`, with its interval.
        mean: Metric `mean`, with its interval.
        chance: Largest score by chance of any language, in [0, 1).
        least: Smallest ratio that passes.
        reason: Protocol, for the reader.
        slices: Parts of the result.
        undecided: Why the numbers cannot decide.
    """
    value, low, high = (ratio[key] for key in ("value", "low", "high"))
    samples, note = int(ratio["samples"] or 0), str(ratio.get("note") or "").partition("; ")[0]
    if mean["value"] is None or mean["low"] is None or mean["low"] <= chance or value is None:
        undecided = undecided or "the mean of the languages is not above chance: their ratio has no meaning"
        value = low = high = None
    else:
        centre = float(mean["value"])
        value, low, high = (
            None if end is None else (end * centre - chance) / (centre - chance) for end in (value, low, high)
        )
    text = "; ".join(part for part in (note, f"corrected for chance, {chance:.2%}", reason) if part)
    return AuditResult(name, value, low, high, "ratio", samples, Threshold(least=least), slices, text, fewest=1,
                       undecided=undecided)  # fmt: skip


def results_of_evaluations(
    name: str, found: Mapping[str, Mapping[str, Any]], wanted: Sequence[str], generates: bool, least: float
) -> list[AuditResult]:
    """Return the audits of ratios that evaluate.py has measured: zero-shot top 1, and scores of text to image.

    A ratio over fewer languages than wanted cannot pass: one language alone is as good as the mean of one.

    Args:
        name: Start of the results' names.
        found: Lines of results.jsonl by name.
        wanted: Codes that the ratio must be over to pass.
        generates: Whether scores of a generator are audited, too.
        least: Smallest ratio that passes.
    """
    results = []
    for key, ratio in found.items():
        family = key.removesuffix(RATIO)
        top1, score = family.endswith("/top1"), family.endswith("/soft_tifa")
        if not key.endswith(RATIO) or not (top1 or (score and generates)) or f"{family}/mean" not in found:
            continue
        languages = {code: found[f"{family}/{code}"] for code in LANGUAGE_NAMES if f"{family}/{code}" in found}
        slices = {
            code: {part: row.get(part) for part in ("value", "low", "high", "samples")}
            for code, row in languages.items()
        }  # fmt: skip
        classes = [(row.get("slices") or {}).get("classes") for row in languages.values()]
        counts = [count for count in classes if type(count) is int and count > 1]
        note = str(ratio.get("note") or "")
        undecided = "no number of classes is recorded" if top1 and not counts else ""
        if is_indicative(ratio):
            undecided = "the judge is not right often enough on images whose answer is known"
        chance = 1 / min(counts) if top1 and counts else 0.0
        reason = f"{family} of earlier results; {note.partition('; ')[2]}".rstrip("; ")
        own = f"{name}/{family.removesuffix('/top1').removesuffix('/soft_tifa')}"
        result = ratio_result(own, ratio, found[f"{family}/mean"], chance, least, reason, slices, undecided)
        missing = [code for code in wanted if languages.get(code, {}).get("value") is None]
        if missing and result.verdict == "pass":
            result = replace(result, undecided=f"not measured in {', '.join(missing)}")
        results.append(result)
    if generates and not any(key.endswith(f"/soft_tifa{RATIO}") for key in found):
        why = "no scores of text to image were given: evaluate with TextToImage first, and add --results"
        results.append(
            AuditResult(f"{name}/text_to_image", None, None, None, "ratio", 0, None, reason=why, not_run=True)
        )
    return results


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


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

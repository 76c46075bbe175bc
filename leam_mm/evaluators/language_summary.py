"""From values per image and language to metrics: each language, their mean, the worst, and worst over mean."""

from collections.abc import Sequence

import numpy

from leam_mm.evaluators.evaluator import Metric
from leam_mm.intervals.intervals import mean_interval, share_interval
from leam_mm.intervals.outcomes import write_outcomes
from leam_mm.intervals.worst_language import DRAWS, worst_interval, worst_mean_interval, worst_ratio_interval


def language_metrics(
    name: str,
    hits: numpy.ndarray,
    languages: list[str],
    note: str = "",
    paired: numpy.ndarray | None = None,
    slices: dict[str, dict] | None = None,
    seed: int = 0,
    repeats: int = DRAWS,
    keys: Sequence[str] = (),
) -> list[Metric]:
    """Summarise hits over languages.

    Languages have Wilson intervals if all hits are 0 or 1. The interval of their mean is one over images, each with its
    hits in all languages, since the same image is hard in all of them. Those of min and min over mean are conservative,
    see leam_mm/intervals/worst_language.py. The minimum of many noisy shares is slightly below the share of the truly
    worst language.

    Args:
        name: Prefix of the metrics' names, for example `scenes/top1`.
        hits: (B, languages) share of hits of each image, in [0, 1]; NaN where the image is not measured in a language.
        languages: Codes of the columns.
        note: Note of every metric.
        paired: Like `hits`, for the comparison of languages if it uses fewer classes; None uses `hits`.
        slices: Language code to slices of its metric.
        seed: Seed of the draws that the intervals of the worst language need.
        repeats: Number of these draws.
        keys: Names of the images; with them, each metric but min and min over mean keeps its outcomes for paired
            comparisons of models.

    Returns:
        `name/mean`, `name/min`, `name/min_over_mean`, then `name/<language>` for each.
    """
    every = [_one_language(f"{name}/{code}", hits[:, i], note, (slices or {}).get(code, {}), keys)
             for i, code in enumerate(languages)]  # fmt: skip
    compared = hits if paired is None else paired
    # An image that some language cannot name would weigh languages differently, so it is skipped here.
    complete = ~numpy.isnan(compared).any(axis=1)
    compared, count = compared[complete], int(complete.sum())
    if count == 0:
        why = "no picture has all languages: the languages cannot be compared"
        return [Metric(f"{name}/{kind}", None, None, None, "fraction", 0, note=why)
                for kind in ("mean", "min", "min_over_mean")] + every  # fmt: skip
    mean, share = compared.mean(axis=1), compared.mean(axis=0)
    outcomes = write_outcomes(mean, _kept(keys, complete)) if keys else None
    summary = [Metric(f"{name}/mean", float(mean.mean()), *share_interval(mean), "fraction", count, note=note,
                      outcomes=outcomes)]  # fmt: skip
    text = "; ".join(filter(None, (f"worst language: {languages[int(share.argmin())]}", note)))
    ends = worst_interval(compared, seed, repeats)
    summary.append(Metric(f"{name}/min", float(share.min()), *ends, "fraction", count, note=text))
    ratio = f"{name}/min_over_mean"
    if len(languages) < 2:
        summary.append(
            Metric(ratio, None, None, None, "ratio", count, note="one language: there is nothing to compare")
        )
    elif share.any():
        value = min(1.0, float(share.min() / share.mean()))  # equal ones may differ by rounding
        summary.append(Metric(ratio, value, *worst_ratio_interval(compared, seed, repeats), "ratio", count, note=text))
    else:
        summary.append(Metric(ratio, None, None, None, "ratio", count, note="no hit in any language"))
    return summary + every


def language_scores(
    name: str, scores: numpy.ndarray, languages: list[str], unit: str, note: str, keys: Sequence[str], seed: int = 0
) -> list[Metric]:
    """Summarise scores without bounds over languages.

    Args:
        name: Prefix of the metrics' names.
        scores: (B, languages), all measured.
        languages: Codes of the columns.
        unit: Unit of the scores.
        note: Note of every metric.
        keys: Names of the samples.
        seed: Seed of the draws of the interval of the worst language.

    Returns:
        `name/mean`, `name/min`, then `name/<language>` for each.
    """
    mean, worst = scores.mean(axis=1), scores.mean(axis=0)
    low, high = worst_mean_interval(scores, seed) if len(scores) > 1 else (None, None)
    text = "; ".join(filter(None, (f"worst language: {languages[int(worst.argmin())]}", note)))
    return [
        Metric(f"{name}/mean", float(mean.mean()), *mean_interval(mean), unit, len(scores), note=note,
               outcomes=write_outcomes(mean, keys)),
        Metric(f"{name}/min", float(worst.min()), low, high, unit, len(scores), note=text),
        *(Metric(f"{name}/{code}", float(column.mean()), *mean_interval(column), unit, len(column), note=note,
                 outcomes=write_outcomes(column, keys))
          for code, column in zip(languages, scores.T, strict=True)),
    ]  # fmt: skip


def _one_language(name: str, hits: numpy.ndarray, note: str, slices: dict, keys: Sequence[str]) -> Metric:
    measured = ~numpy.isnan(hits)
    hits = hits[measured]
    if not len(hits):
        return Metric(name, None, None, None, "fraction", 0, slices, "no picture has this language")
    outcomes = write_outcomes(hits, _kept(keys, measured)) if keys else None
    return Metric(name, float(hits.mean()), *share_interval(hits), "fraction", len(hits), slices, note, outcomes)


def _kept(keys: Sequence[str], kept: numpy.ndarray) -> list[str]:
    return [key for key, keep in zip(keys, kept, strict=True) if keep]

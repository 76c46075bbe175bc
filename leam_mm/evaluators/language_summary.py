"""From hits per image and language to metrics: each language, their mean, the worst, and worst over mean."""

from collections.abc import Sequence

import numpy

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.intervals import bootstrap_interval, wilson_interval
from leam_mm.evaluators.outcomes import write_outcomes


def language_metrics(
    name: str,
    hits: numpy.ndarray,
    languages: list[str],
    note: str = "",
    paired: numpy.ndarray | None = None,
    slices: dict[str, dict] | None = None,
    seed: int = 0,
    repeats: int = 1000,
    keys: Sequence[str] = (),
) -> list[Metric]:
    """Summarise hits over languages.

    Languages get Wilson intervals if all hits are 0 or 1, else bootstrap intervals. Mean, min and min over mean get a
    cluster bootstrap over images: an image is drawn with its hits in all languages, since the same image is hard in all
    of them. The minimum of many noisy shares is slightly below the share of the truly worst language.

    Args:
        name: Prefix of the metrics' names, for example `scenes/top1`.
        hits: (B, languages) share of hits of each image, in [0, 1]; NaN where the image is not measured in a language.
        languages: Codes of the columns.
        note: Note of every metric.
        paired: Like `hits`, for the comparison of languages if it uses fewer classes; None uses `hits`.
        slices: Language code to slices of its metric.
        seed: Seed of the bootstrap.
        repeats: Draws of the bootstrap.
        keys: Names of the images; with them, each language keeps its outcomes for paired comparisons of models.

    Returns:
        `name/mean`, `name/min`, `name/min_over_mean`, then `name/<language>` for each.
    """
    every = [_one_language(f"{name}/{code}", hits[:, i], note, (slices or {}).get(code, {}), seed, repeats, keys)
             for i, code in enumerate(languages)]  # fmt: skip
    compared = hits if paired is None else paired
    # An image that some language cannot name would weigh languages differently, so it is skipped here.
    compared = compared[~numpy.isnan(compared).any(axis=1)]
    count = len(compared)
    if count == 0:
        why = "no picture has all languages: the languages cannot be compared"
        return [Metric(f"{name}/{kind}", None, None, None, "fraction", 0, note=why)
                for kind in ("mean", "min", "min_over_mean")] + every  # fmt: skip
    share = compared.mean(axis=0)
    worst = languages[int(share.argmin())]
    summary = [
        ("mean", _mean, ""),
        ("min", _minimum, f"worst language: {worst}"),
        ("min_over_mean", _ratio, f"worst language: {worst}"),
    ]
    metrics = []
    for kind, statistic, remark in summary:
        text = "; ".join(part for part in (remark, note) if part)
        if kind == "min_over_mean" and share.mean() == 0:
            metrics.append(Metric(f"{name}/{kind}", None, None, None, "ratio", count, note="no hit in any language"))
            continue
        low, high = bootstrap_interval(compared, statistic, seed, repeats)
        unit = "ratio" if kind == "min_over_mean" else "fraction"
        metrics.append(Metric(f"{name}/{kind}", statistic(compared), low, high, unit, count, note=text))
    return metrics + every


def _one_language(
    name: str, hits: numpy.ndarray, note: str, slices: dict, seed: int, repeats: int, keys: Sequence[str]
) -> Metric:
    measured = ~numpy.isnan(hits)
    keys = [key for key, kept in zip(keys, measured, strict=True) if kept] if keys else []
    hits = hits[measured]
    if not len(hits):
        return Metric(name, None, None, None, "fraction", 0, slices, "no picture has this language")
    if numpy.isin(hits, (0.0, 1.0)).all():
        low, high = wilson_interval(int(hits.sum()), len(hits))
        outcomes = write_outcomes(hits, keys) if keys else None
    else:
        outcomes = None
        low, high = bootstrap_interval(hits, _mean, seed, repeats)
    return Metric(name, float(hits.mean()), low, high, "fraction", len(hits), slices, note, outcomes)


def _mean(hits: numpy.ndarray) -> float:
    return float(hits.mean())


def _minimum(hits: numpy.ndarray) -> float:
    return float(hits.mean(axis=0).min())


def _ratio(hits: numpy.ndarray) -> float:
    share = hits.mean(axis=0)
    return float(share.min() / share.mean()) if share.any() else 0.0

"""Key figures at the top of the report: main and weakest number of each section, with their intervals."""

from collections.abc import Mapping, Sequence

from leam_mm.intervals.indicative import INDICATIVE, is_indicative
from leam_mm.report.audit_section import audit_counts
from leam_mm.report.chart import short
from leam_mm.report.language_section import by_language, groups, score_groups, worst_language
from leam_mm.report.report_number import Row, duration, energy, interval, is_number, number
from leam_mm.report.report_section import COMPOSITION, DISTANCES, PAIR
from leam_mm.report.report_words import metric_title, word
from leam_mm.report.templates import Figure

EQUAL = "_equal_captions_right"  # of evaluators/retrieval
SHARES = ("fraction", "share")


def key_figures(results: Mapping[str, Row], stages: Sequence[Row], selftest: Row, language: str) -> list[Figure]:
    """Return the key figures of all sections.

    Of the scores by language of one evaluator: the score with the lowest mean, and its worst language. Of several
    shares without languages: the middle one and the weakest one. No number is chosen by its name.

    Args:
        results: Newest line of each metric; without those of a fine-tuning.
        stages: Records of the pipeline's stages.
        selftest: Content of selftest.json, or nothing.
        language: Of the page.
    """
    figures = audit_counts(results, selftest, language)
    for group in groups(results, "/top1/mean"):
        label = word("Classification", language)
        label += "" if group == "zero_shot" else f", {metric_title(group, language)}"
        note = "top 1, mean of {} languages"
        figures += _over_languages(results, f"{group}/top1", label, note, "classification", language)
    for group in groups(results, "/image_to_text/r1/mean"):
        if group.endswith(EQUAL) and f"{group.removesuffix(EQUAL)}/image_to_text/r1/mean" in results:
            continue  # the same retrieval by a second protocol
        note = "image to caption, R@1, mean of {} languages"
        label = word("Retrieval", language) + ("" if group == "retrieval" else f", {metric_title(group, language)}")
        figures += _over_languages(results, f"{group}/image_to_text/r1", label, note, "retrieval", language)
    for group in _weakest_groups(results, score_groups(results)):
        label = metric_title(group, language)
        figures += _over_languages(results, group, label, "mean of {} languages", "scores", language)
    asked = {
        name.partition("/")[2]: row for name, row in results.items()
        if name.startswith(COMPOSITION) and "real" not in name.split("/")
    }  # fmt: skip
    figures += _middle_and_weakest(asked, "Following a description", "composition", language)
    for group in groups(results, "/frechet_distance/generated"):
        row, floor = (results.get(f"{group}/frechet_distance/{kind}", {}) for kind in ("generated", "real"))
        text = word("real against real: {}", language)
        note = text.format(short(floor["value"], language)) if is_number(floor.get("value")) else ""
        figures.append(_figure(word("Fréchet distance", language), row, note, "distance", language))
        compared = {
            PAIR.sub("", name).removeprefix(f"{group}/"): row for name, row in results.items()
            if name.startswith(f"{group}/") and name.endswith("/generated")
        }  # fmt: skip
        figures += _middle_and_weakest(compared, "Generated images", "distance", language)[-1:]
    return figures + (_cost(stages, language) if stages else [])


def _weakest_groups(results: Mapping[str, Row], found: Sequence[str]) -> list[str]:
    """Return, of the scores whose names begin with the same word, the one with the lowest mean."""
    measured = [group for group in found if is_number(results.get(f"{group}/mean", {}).get("value"))]
    lowest: dict[str, str] = {}
    for group in sorted(measured, key=lambda group: results[f"{group}/mean"]["value"]):
        lowest.setdefault(group.partition("/")[0], group)
    return [group for group in found if group in lowest.values() or group not in measured]


def _over_languages(
    results: Mapping[str, Row], name: str, label: str, note: str, section: str, language: str
) -> list[Figure]:
    mean, worst = (results.get(f"{name}/{kind}", {}) for kind in ("mean", "min"))
    text = word(note, language).format(len(by_language(results, name)))
    found = [_figure(label, mean, text, section, language)] if mean else []
    if worst:
        where = worst_language(worst, language)
        weakest = word("{}, weakest language", language).format(label)
        found.append(_figure(weakest, worst, where, section, language))
    return found


def _middle_and_weakest(rows: Mapping[str, Row], heading: str, section: str, language: str) -> list[Figure]:
    shares = [(name, row) for name, row in rows.items() if row.get("unit") in SHARES and is_number(row.get("value"))]
    shares.sort(key=lambda item: item[1]["value"])
    if not shares:
        return []
    picked = {"{}, middle of {}": shares[(len(shares) - 1) // 2], "{}, weakest of {}": shares[0]}
    if len(shares) < 3:
        picked.pop("{}, middle of {}")
    found = []
    for label, (name, row) in picked.items():
        text = word(label, language).format(word(heading, language), len(shares))
        found.append(_figure(text, row, _title(name, language), section, language))
    return found


def _figure(label: str, row: Row, note: str, section: str, language: str) -> Figure:
    doubt = word(INDICATIVE, language) if is_indicative(row) else ""
    note = "; ".join(filter(None, (note, doubt)))
    return Figure(label, number(row, language), note, interval(row, language), section)


def _title(name: str, language: str) -> str:
    if name in DISTANCES:
        return DISTANCES[name][language == "de"]
    return metric_title(name.removeprefix("generated/"), language)


def _cost(stages: Sequence[Row], language: str) -> list[Figure]:
    times = [stage.get("wall_seconds", stage.get("seconds")) for stage in stages]  # stages may run at the same time
    seconds = [value for value in times if is_number(value)]
    readings = [stage.get("energy") or {} for stage in stages]
    measured = [reading["joules"] for reading in readings if is_number(reading.get("joules"))]
    estimated = any("estimated" in str(reading.get("source")) for reading in readings)
    note = word("estimated" if estimated else "measured", language) if measured else ""
    if measured and len(measured) < len(readings):  # a sum over some of the stages is a lower bound
        note += ", " + word("only {} of {} stages", language).format(len(measured), len(readings))
    count = word("{} stages", language).format(len(stages))
    return [
        Figure(word("Energy", language), energy(sum(measured) if measured else None, language), note, "", "cost"),
        Figure(word("Time", language), duration(sum(seconds) if seconds else None, language), count, "", "cost"),
    ]

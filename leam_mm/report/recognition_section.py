"""What a fine-tuning taught, in sentences: the captions whose subject a tested judge recognises, and the others."""

from collections.abc import Iterator, Mapping
from typing import Any

from leam_mm.report.report_number import NOT_MEASURED, figures, interval, is_number, number
from leam_mm.report.report_words import word
from leam_mm.report.templates import Figure

NAME = "recognised_captions"  # of evaluators/recognised_captions
JUDGE = "subject_judge"
LISTED = 60  # captions in a sentence
CHARACTERS = 80  # of a caption
Results = Mapping[str, Mapping[str, Any]]


def sentences(results: Results, language: str) -> list[str]:
    """Return what a reader must know first; empty without a measurement, and its reason where it failed.

    Captions are a stranger's words: whoever shows them must escape them.

    Args:
        results: Lines of results.jsonl by name.
        language: Of the page.
    """
    after, before = (results.get(f"{side}/{NAME}") for side in ("after", "before"))
    if after is None:
        return []
    if not is_number(after.get("value")):
        reason = str(after.get("note") or "").removeprefix(f"{NOT_MEASURED}: ")
        return [word("Subjects recognised: not measured.", language), reason]
    found = [
        word(text, language).format(*_counted(row, language))
        for text, row in (
            ("Recognised after the fine-tuning: {} of {} training captions ({}, 95 % interval {}).", after),
            ("Before: {} of {} ({}, 95 % interval {}).", before),
        )
        if row is not None and is_number(row.get("value"))
    ]
    change = results.get(f"fine_tuning/change/{NAME}", {})
    low, high = change.get("low"), change.get("high")
    if is_number(low) and is_number(high) and low <= 0 <= high:
        found.append(word("The difference may be chance.", language))
    for text, kind in (("Not learnt: {}.", "not_recognised"), ("Learnt: {}.", "recognised")):
        listed = (after.get("slices") or {}).get(kind)
        if isinstance(listed, list) and listed:
            found.append(word(text, language).format(_names(listed, language)))
    return [*found, *_judge(results, language)]


def key_figures(results: Results, language: str) -> list[Figure]:
    """Return the share after the fine-tuning; empty without a measurement."""
    row = results.get(f"after/{NAME}")
    if row is None:
        return []
    note = ""
    if is_number(row.get("value")):
        note = word("{} of {} training captions", language).format(*_counted(row, language)[:2])
    label = word("Recognised after the fine-tuning", language)
    return [Figure(label, number(dict(row), language), note, interval(dict(row), language), "recognition")]


def _judge(results: Results, language: str) -> Iterator[str]:
    texts = {
        "known_pictures": "The judge was tested: it names {} of {} training pictures, moved and through the codec.",
        "new_pictures": "It names {} of {} pictures that were no reference: it may miss an image in another style.",
        "other_images": "In {} of {} images that do not show the subject it says that they do.",
    }
    for kind, text in texts.items():
        row = results.get(f"{JUDGE}/{kind}")
        if row is not None and is_number(row.get("value")):
            yield word(text, language).format(*_counted(row, language)[:2])


def _counted(row: Mapping[str, Any], language: str) -> list[str]:
    """Return the number of hits, the number of samples, the share and its interval."""
    samples = row.get("samples")
    total = int(samples) if is_number(samples) else 0
    counts = [figures(f"{each:,}", language) for each in (round(row["value"] * total), total)]
    return [*counts, str(number(dict(row), language)), interval(dict(row), language)]


def _names(captions: list[object], language: str) -> str:
    texts = [text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…" for text in map(str, captions[:LISTED])]
    more = len(captions) - len(texts)
    return ", ".join(texts) + (f" … {word('{} more', language).format(more)}" if more else "")

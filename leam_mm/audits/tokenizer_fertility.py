"""Tokens that each language needs: fertility relative to English, and captions that the encoder cuts.

Fertility is tokens per word (Rust et al. 2012.15613, section 3). On parallel captions its ratio to English is the price
of a language in context and compute (Petrov et al. 2305.15425).
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy

from leam_mm.audits.audit import AuditResult, Threshold
from leam_mm.audits.stored_samples import FEWEST
from leam_mm.evaluators.embedding import ImageSample
from leam_mm.intervals.intervals import wilson_interval

BASE = "en"
REPEATS = 500


def tokenizer_results(
    name: str,
    tokenizer: Any,
    samples: Sequence[ImageSample],
    languages: Sequence[str],
    most_fertility: float,
    most_truncation: float,
    seed: int = 0,
) -> list[AuditResult]:
    """Return the audits of the worst fertility and of the worst share of captions that are cut.

    Ends of the intervals hold for all languages at once (Bonferroni), since the worst one is chosen after the fact.

    Args:
        name: Start of the results' names.
        tokenizer: A Tokenizer.
        samples: Images with captions in all languages.
        languages: Codes.
        most_fertility: Largest ratio to English that passes.
        most_truncation: Largest share of images with a cut caption that passes.
        seed: Seed of the bootstrap over images.
    """
    tokens, words, longest = _counts(tokenizer, samples, languages)
    rates = _truncation(longest > tokenizer.context_length, languages)
    worst = max(rates, key=lambda code: rates[code]["value"])
    cut = AuditResult(
        f"{name}/truncation", rates[worst]["value"], max(row["low"] for row in rates.values()),
        max(row["high"] for row in rates.values()), "fraction", len(samples), Threshold(most=most_truncation), rates,
        f"share of images with a caption longer than {tokenizer.context_length} tokens; worst language: {worst}",
    )  # fmt: skip
    if BASE not in languages:
        why = "no English captions to compare with: add parallel ones to --held_out"
        return [AuditResult(f"{name}/fertility", None, None, None, "ratio", 0, None, reason=why, not_run=True), cut]
    ratios = _fertility(tokens, words, languages, seed)
    worst = max(ratios, key=lambda code: ratios[code]["value"])
    return [
        AuditResult(
            f"{name}/fertility", ratios[worst]["value"], max(row["low"] for row in ratios.values()),
            max(row["high"] for row in ratios.values()), "ratio", len(samples), Threshold(most=most_fertility), ratios,
            f"tokens per word over those of English; worst language: {worst}", fewest=FEWEST,
        ),
        cut,
    ]  # fmt: skip


def _counts(
    tokenizer: Any, samples: Sequence[ImageSample], languages: Sequence[str]
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Return (B, languages) of tokens without begin and end, of words, and of the tokens of the longest caption."""
    captions = [[sample.captions(code) for code in languages] for sample in samples]
    texts = sorted({text for row in captions for cell in row for text in cell})
    length = dict(zip(texts, tokenizer.full_lengths(texts).tolist(), strict=True))
    tokens = numpy.array([[sum(length[text] - 2 for text in cell) for cell in row] for row in captions], float)
    words = numpy.array([[sum(len(text.split()) for text in cell) for cell in row] for row in captions], float)
    longest = numpy.array([[max(length[text] for text in cell) for cell in row] for row in captions])
    return tokens, words, longest


def _fertility(
    tokens: numpy.ndarray, words: numpy.ndarray, languages: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Return ratio, interval and raw numbers of each language; an image is drawn with all its languages."""
    base = list(languages).index(BASE)
    count = len(tokens)
    weights = numpy.random.default_rng(seed).multinomial(count, numpy.full(count, 1 / count), REPEATS)

    def relative(total: numpy.ndarray, word: numpy.ndarray) -> numpy.ndarray:
        fertility = total / numpy.maximum(word, 1)
        return fertility / fertility[..., base : base + 1]

    value = relative(tokens.sum(0), words.sum(0))
    deviation = relative(weights @ tokens, weights @ words).std(axis=0, ddof=1)
    half = NormalDist().inv_cdf(1 - 0.025 / len(languages)) * deviation
    return {
        code: {
            "value": float(value[i]), "low": float(value[i] - half[i]), "high": float(value[i] + half[i]),
            "samples": count, "tokens_per_word": float(tokens[:, i].sum() / max(words[:, i].sum(), 1)),
            "tokens_per_caption_over_english": float(tokens[:, i].sum() / max(tokens[:, base].sum(), 1)),
        }
        for i, code in enumerate(languages)
    }  # fmt: skip


def _truncation(cut: numpy.ndarray, languages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the share of images with a cut caption in each language."""
    count, confidence = len(cut), 1 - 0.05 / len(languages)
    rows = {}
    for i, code in enumerate(languages):
        low, high = wilson_interval(int(cut[:, i].sum()), count, confidence)
        rows[code] = {"value": float(cut[:, i].mean()), "low": low, "high": high, "samples": count}
    return rows

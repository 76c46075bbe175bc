"""Whether the captions of two images say different things, from their words alone: no model, the same on every machine.

Captions differ if, in most of the languages that both images have, each side has a word that the other lacks: "flag of
Jordan" and "flag of Palestine", "one o'clock" and "two o'clock", "at 10:30" and "at 11:30". They do not if they are
equal, if one only adds words, or if they share no language. Limits: a synonym or another ending counts as another word,
so a paraphrase differs; a script without spaces makes one word of a phrase; four languages of an image are compared,
English first, and 15 words of each (the smallest hashes, of both sides alike).
"""

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

LANGUAGES, WORDS = 4, 15  # of an image
WIDTH = 4 * LANGUAGES * (1 + WORDS)  # bytes
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MOST = np.iinfo(np.uint32).max
LONGEST = 20_000  # characters of a caption whose words are counted


def caption_words(captions: list[dict[str, Any]]) -> np.ndarray:
    """Return what ``captions_differ`` compares of the captions of one image: (WIDTH,) uint8, hashes of their words."""
    found: dict[str, set[int]] = {}
    for caption in captions:
        text = unicodedata.normalize("NFKC", str(caption["text"])[:LONGEST]).casefold()
        found.setdefault(str(caption["language"]), set()).update(map(_hash, WORD.findall(text)))
    table = np.zeros((LANGUAGES, 1 + WORDS), np.uint32)
    for slot, language in enumerate(sorted(found, key=lambda code: (code != "en", code))[:LANGUAGES]):
        words = sorted(found[language])[:WORDS]
        table[slot, : 1 + len(words)] = [_hash(language), *words]
    return table.astype("<u4").view(np.uint8).ravel()


def captions_differ(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return whether the captions of each pair differ, (P,) bool.

    Args:
        first: (P, WIDTH) uint8, rows of ``caption_words``.
        second: (P, WIDTH) uint8.
    """
    one, other = (
        np.ascontiguousarray(part).view("<u4").reshape(len(part), LANGUAGES, 1 + WORDS) for part in (first, second)
    )
    shared, differing = np.zeros(len(one), np.int64), np.zeros(len(one), np.int64)
    for slot in range(LANGUAGES):
        for its_slot in range(LANGUAGES):
            language = one[:, slot, 0]
            rows = np.flatnonzero((language == other[:, its_slot, 0]) & (language != 0))
            mine, its = one[rows, slot, 1:], other[rows, its_slot, 1:]
            limit = np.minimum(_bound(mine), _bound(its))[:, None]  # beyond it, words of one side may be missing
            shared[rows] += 1
            differing[rows] += _has_own(mine, its, limit) & _has_own(its, mine, limit)
    return 2 * differing > shared


def _bound(words: np.ndarray) -> np.ndarray:
    return np.where(words[:, -1] != 0, words.max(axis=1), MOST)


def _has_own(words: np.ndarray, others: np.ndarray, limit: np.ndarray) -> np.ndarray:
    known = (words[:, :, None] == others[:, None, :]).any(axis=2)
    return ((words != 0) & (words <= limit) & ~known).any(axis=1)


def _hash(word: str) -> int:
    """Return 32 bits of a word, never 0."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little") or 1

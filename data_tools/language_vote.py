"""Say in which language a caption is written: py3langid and pycld2 vote, the letters and the page's language weigh in.

Each gives evidence for every language it knows, and the sum decides, as in Bayes' rule: what was expected (the page's
language, or that this is a European corpus), what the two models find in the text, and which languages have a letter
such as "ů" or "ї" at all. The confidence is the probability that follows. Both models know all 24 official EU languages;
languages that neither knows (Sorbian, Sardinian) are named only where the page says so and the text speaks for a
relative of theirs. Nothing is downloaded. The answer is a function of the text alone; `vote` may run in several threads.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pycld2
import yaml
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_tools.scene_language import LANGUAGES as EU_LANGUAGES

LETTERS = Path(__file__).with_name("language_letters.yaml")
UNDETERMINED = "und"
# fmt: off
EUROPEAN = frozenset(EU_LANGUAGES) | {
    "ca", "cy", "eu", "fo", "fy", "gl", "is", "lb", "mk", "nb", "nn", "sq", "sr", "uk",
    "be", "br", "bs", "gd", "oc", "rm", "ru", "se", "tr",
}
# Spoken by few and near to a large neighbour: from a word or two the neighbour is the better guess.
RARE = frozenset({"an", "co", "gv", "lij", "ltg", "vec", "wa"})
# fmt: on
# One language under several names.
SAME = {"no": "nb", "iw": "he", "jw": "jv", "sr-ME": "sr", "zh-Hant": "zh", "tl": "fil", "grc": "el", "in": "id"}
# What neither model knows reads to them like these.
RELATIVES = {
    "hsb": {"cs", "dsb", "pl", "sk", "sl", "hr", "bs"},
    "dsb": {"cs", "hsb", "pl", "sk", "sl", "hr", "bs"},
    "sc": {"it", "es", "ca", "co", "pt", "gl", "an", "lij", "vec"},
    "fur": {"it", "rm", "ca", "fr", "oc", "lij", "vec"},
    "csb": {"pl", "hsb"},
    "szl": {"pl", "cs"},
    "nds": {"de", "nl", "fy", "lb", "af"},
    "li": {"nl", "de", "af", "lb"},
    "frr": {"de", "fy", "nl", "da", "lb"},
    "ast": {"es", "gl", "pt", "an"},
    "smn": {"se", "fi", "et"},
}
# Weights of the evidence, in nats; tests/benchmarks/language_identification.py says how they were found.
BAYES = 1.0  # of py3langid's probabilities
NAMED, PER_SCORE = 2.5, 1.5  # of pycld2's answer, and for each thousand of its score (at most two)
FOREIGN, LOAN = 3.0, 1.0  # against a language, for each letter it does not have, or has only in loan words
FLOOR = -9.0  # a probability of py3langid below this says no more
THRESHOLD = 0.4  # below this confidence nothing is said
CORPUS = {"eu": 0.88, "european": 0.10, "world": 0.02}  # expected without a page: shares of all captions
PAGE, ENGLISH = 0.80, 0.08  # of captions in the page's language, and in English on pages in another

_NOISE = re.compile(r"https?://\S*|www\.\S*|\S*@\S+|\S+\.(?:jpe?g|png|gif|webp|svg|html?|php)\b|[\d_]+", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Vote:
    """What language a text is in.

    Args:
        language: ISO 639 code ("de", "hsb"), or "und" where it cannot be told.
        confidence: Probability of the best answer, in [0, 1]; below `THRESHOLD` the language is "und".
        votes: The answer of each voter by its name, "und" where it has none; "page" is the expected language.
    """

    language: str
    confidence: float
    votes: dict[str, str]


def vote(texts: list[str], expected: Sequence[str | None] | None = None) -> list[Vote]:
    """Find the language of each text.

    Args:
        texts: Captions or longer texts; markup should be gone.
        expected: For each text the language of the page it stands on ("de", "pt-BR"), or None. It tips the scales of
            a word or two and is overruled by clear evidence.

    Raises:
        ValueError: ``expected`` has another length than ``texts``.
    """
    pages = list(expected) if expected is not None else [None] * len(texts)
    voters = _voters()
    return [voters.judge(text, page) for text, page in zip(texts, pages, strict=True)]


def primary_language(tag: str | None) -> str | None:
    """Reduce a language tag of a page ("pt-BR", "sr_Latn", "NO") to the code that a vote gives, or nothing."""
    match = re.match(r"\s*([A-Za-z]{2,3})(?=$|[-_,;\s])", tag or "")
    code = match[1].lower() if match else None
    return None if code in (None, "und", "mul", "zxx", "mis") else SAME.get(code, code)


class _Voters:
    """The two models and the table of letters over one list of languages."""

    def __init__(self) -> None:
        self.bayes = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        table: dict[str, dict[str, str]] = yaml.safe_load(LETTERS.read_text("utf-8"))
        named = {code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES and code[:2] != "xx"}
        known = {SAME.get(code, code) for code in (*self.bayes.nb_classes, *named)} - {
            "zxx",
            "zzb",
            "zze",
            "zzh",
            "zzp",
        }
        self.languages = sorted(known)
        self.place = {code: number for number, code in enumerate(self.languages)}
        classes = [self.place.get(SAME.get(code, code), -1) for code in self.bayes.nb_classes]
        self.columns = np.array([number for number, place in enumerate(classes) if place >= 0])
        self.targets = np.array([place for place in classes if place >= 0])
        self.alphabets = [_alphabet(table.get(code)) for code in self.languages]
        self.letters: dict[str, np.ndarray] = {}
        groups = [
            "eu" if code in EU_LANGUAGES else "european" if code in EUROPEAN else "world" for code in self.languages
        ]
        self.prior = np.log([CORPUS[group] / groups.count(group) for group in groups])

    def judge(self, text: str, page: str | None) -> Vote:
        """Weigh all evidence for one text."""
        page = primary_language(page)
        votes = {"py3langid": UNDETERMINED, "pycld2": UNDETERMINED} | ({"page": page} if page else {})
        cleaned = clean_text(text)
        if not cleaned:
            return Vote(UNDETERMINED, 0.0, votes)
        bayes, votes["py3langid"] = self._bayes(cleaned)
        named, votes["pycld2"] = self._named(cleaned)
        evidence = bayes + named + self._foreign(cleaned)
        prior = self._expect(page)
        score = evidence + prior
        chance = np.exp(score - score.max())
        chance /= chance.sum()
        best = int(chance.argmax())
        language, confidence = self.languages[best], float(chance[best])
        if page in RELATIVES and page not in self.place:
            kin = [self.place[code] for code in RELATIVES[page] if code in self.place]
            if best in kin:
                language, confidence = page, float(chance[kin].sum()) * PAGE
        return Vote(language if confidence >= THRESHOLD else UNDETERMINED, round(confidence, 4), votes)

    def _bayes(self, text: str) -> tuple[np.ndarray, str]:
        chances = np.full(len(self.languages), np.exp(FLOOR))
        found = self.bayes._decide(text)[self.columns]
        np.maximum.at(chances, self.targets, found)
        best = self.languages[int(chances.argmax())]
        return BAYES * np.log(chances), best if found.max() > 2 / len(found) else UNDETERMINED

    def _named(self, text: str) -> tuple[np.ndarray, str]:
        evidence = np.zeros(len(self.languages))
        _, _, details = pycld2.detect(text, isPlainText=True, bestEffort=True)
        best = UNDETERMINED
        for _, code, percent, score in details:
            code = SAME.get(code, code)
            if code in self.place:
                best = code if best == UNDETERMINED else best
                evidence[self.place[code]] = (NAMED + PER_SCORE * min(score, 2000) / 1000) * percent / 100
        return evidence, best

    def _foreign(self, text: str) -> np.ndarray:
        total = np.zeros(len(self.languages))
        for letter in sorted(set(text.lower())):
            if letter not in self.letters:
                self.letters[letter] = self._letter(letter)
            total -= self.letters[letter]
        return total

    def _letter(self, letter: str) -> np.ndarray:
        return np.array([_cost(letter, alphabet) if alphabet else 0.0 for alphabet in self.alphabets])

    def _expect(self, page: str | None) -> np.ndarray:
        if page not in self.place:
            return self.prior
        prior = np.exp(self.prior)
        share = np.zeros(len(self.languages))
        share[self.place[page]] += PAGE
        share[self.place["en"]] += ENGLISH
        return np.log(share + (1 - share.sum()) * prior)


def clean_text(text: str) -> str:
    """Leave out what has no language: addresses, file names, digits; at most 2,000 characters are kept."""
    text = unicodedata.normalize("NFC", text[:8000].encode("utf-8", "ignore").decode())
    words = _WORD.findall(_NOISE.sub(" ", text))
    return " ".join(words)[:2000]


def _alphabet(row: dict[str, Any] | None) -> tuple[frozenset[str], frozenset[str]] | None:
    """Own letters and those of loan words; in Latin script a to z are one or the other."""
    if row is None:
        return None
    own, loan = set(row.get("letters", "")), set(row.get("foreign", ""))
    if not own or any(ord(letter) < 0x250 for letter in own) or any(0x1E00 <= ord(letter) < 0x1F00 for letter in own):
        without = set(row.get("without", ""))
        own |= set("abcdefghijklmnopqrstuvwxyz") - without
        loan |= without
    return frozenset(own), frozenset(loan)


def _cost(letter: str, alphabet: tuple[frozenset[str], frozenset[str]]) -> float:
    if not letter.isalpha() or letter in alphabet[0]:
        return 0.0
    return LOAN if letter in alphabet[1] else FOREIGN


@cache
def _voters() -> _Voters:
    return _Voters()

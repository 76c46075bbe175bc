"""Identify the language of a caption from py3langid, pycld2, its letters, and the language of the page.

Each source gives evidence for every language, and the sum decides as in Bayes' rule: the prior (the page's language, or
that this is a European corpus), the scores of the two models, and which languages use letters such as "ů" or "ї". The
confidence is the posterior probability. Both models know all 24 official languages of the EU. Languages that neither
knows (Sorbian, Sardinian) are returned only if the page states them and the text looks like a related language. Nothing
is downloaded, the result depends on text and page alone, and threads may share it.
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

from leam_mm.languages import LANGUAGES as EU_LANGUAGES

LETTERS = Path(__file__).with_name("language_letters.yaml")
UNDETERMINED = "und"
# fmt: off
EUROPEAN = frozenset(EU_LANGUAGES) | {
    "ca", "cy", "eu", "fo", "fy", "gl", "is", "lb", "mk", "nb", "nn", "sq", "sr", "uk",
    "be", "br", "bs", "gd", "oc", "rm", "ru", "se", "tr",
}
# fmt: on
# Languages with several codes.
SAME = {"no": "nb", "iw": "he", "jw": "jv", "sr-ME": "sr", "zh-Hant": "zh", "tl": "fil", "grc": "el", "in": "id"}
# Languages that neither model knows -> languages that the models find in their texts.
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
# Weights of the evidence in nats, the same for all languages: maximum likelihood on the CLDR names and keywords of one
# half of the emoji in 120 languages (21,000 texts of a few words, 88 % of the weight on EU languages; November 2026).
BAYES, FLOOR = 0.36, -6.4  # factor of py3langid's raw scores; their minimum, also for languages it does not know
NAMED, PER_SCORE = 1.4, 0.95  # pycld2's answer, and each thousand of its score (at most two)
HINTED, CANDIDATES = 0.74, 4  # each of py3langid's first four that pycld2 also returns when given it as a hint
IN_REACH = 4.0  # a language further behind the best is not tried as a hint: the result would be the same
UNKNOWN = -3.0  # in place of FLOOR for European languages that py3langid does not know (Romansh): set, not fitted
FOREIGN = 1.0  # against a language, for each distinct letter that it does not have
# Set, not fitted: expected shares of all captions without a page; on a page, the shares of its language and of English;
# and the confidence below which a text is undetermined.
CORPUS = {"eu": 0.76, "european": 0.20, "world": 0.04}
PAGE, ENGLISH = 0.80, 0.08
THRESHOLD = 0.5

_FILES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".svg", ".avif", ".htm", ".html", ".php")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True)
class Vote:
    """Language of a text.

    Args:
        language: ISO 639 code ("de", "hsb"), or "und" for undetermined.
        confidence: Probability of the best answer, in [0, 1]; below `THRESHOLD` the language is "und".
        votes: Answer of each model by its name, "und" if it has none; "page" is the language of the page.
    """

    language: str
    confidence: float
    votes: dict[str, str]


def vote(texts: list[str], expected: Sequence[str | None] | None = None) -> list[Vote]:
    """Identify the language of each text.

    Args:
        texts: Captions or longer texts, without markup.
        expected: For each text the language of its page ("de", "pt-BR"), or None. It decides texts of a word or two
            and is overruled by clear evidence.

    Raises:
        ValueError: ``expected`` has another length than ``texts``.
    """
    pages = list(expected) if expected is not None else [None] * len(texts)
    voters = _voters()
    return [voters.vote(text, page) for text, page in zip(texts, pages, strict=True)]


def primary_language(tag: str | None) -> str | None:
    """Reduce a language tag of a page ("pt-BR", "sr_Latn", "NO") to the code that a vote uses, or None."""
    match = re.match(r"\s*([A-Za-z]{2,3})(?=$|[-_,;\s])", tag or "")
    code = match[1].lower() if match else None
    return None if code in (None, "und", "mul", "zxx", "mis") else SAME.get(code, code)


class _Voters:
    """The two models and the table of letters over one list of L languages."""

    def __init__(self) -> None:
        self.bayes = LanguageIdentifier.from_model_file(MODEL_FILE)
        table: dict[str, dict[str, str]] = yaml.safe_load(LETTERS.read_text("utf-8"))
        named = {code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES and code[:2] != "xx"}
        codes = {SAME.get(code, code) for code in (*self.bayes.nb_classes, *named)}
        self.languages = sorted(code for code in codes - {"zxx", "tlh"} if not code.startswith("zz"))
        self.index = {code: number for number, code in enumerate(self.languages)}
        self.hints = {SAME.get(code, code): code for _, code in reversed(pycld2.LANGUAGES) if code in named}
        targets = [self.index.get(SAME.get(code, code), -1) for code in self.bayes.nb_classes]
        self.columns = np.array([number for number, target in enumerate(targets) if target >= 0])
        self.targets = np.array([target for target in targets if target >= 0])
        self.alphabets = [_alphabet(table.get(code)) for code in self.languages]
        self.lacking: dict[str, np.ndarray] = {}
        in_bayes = {SAME.get(code, code) for code in self.bayes.nb_classes}
        self.floor = np.array([UNKNOWN if code in EUROPEAN - in_bayes else FLOOR for code in self.languages])
        groups = [_group(code) for code in self.languages]
        self.shares = np.array([CORPUS[group] / groups.count(group) for group in groups])
        self.expected: dict[str, np.ndarray] = {}

    def vote(self, text: str, page: str | None) -> Vote:
        """Sum all evidence for one text."""
        page = primary_language(page)
        cleaned = clean_text(text)
        votes = {"py3langid": UNDETERMINED, "pycld2": UNDETERMINED} | ({"page": page} if page else {})
        if not cleaned:
            return Vote(UNDETERMINED, 0.0, votes)
        bayes, votes["py3langid"] = self._bayes(cleaned)
        named, votes["pycld2"] = self._named(cleaned)
        score = bayes + named + self._expected(page)
        for letter in sorted(set(cleaned.lower())):
            score -= FOREIGN * self._lacking(letter)
        for index in np.argsort(-bayes, kind="stable")[:CANDIDATES]:
            if named[index] == 0 and score[index] > score.max() - IN_REACH:
                score[index] += self._hinted(cleaned, self.languages[index])
        chance = np.exp(score - score.max())
        chance /= chance.sum()
        best = int(chance.argmax())
        language, confidence = self.languages[best], float(chance[best])
        if page in RELATIVES and page not in self.index and language in RELATIVES[page]:
            relatives = [self.index[code] for code in RELATIVES[page] if code in self.index]
            language, confidence = page, PAGE * float(chance[relatives].sum())
        return Vote(language if confidence >= THRESHOLD else UNDETERMINED, round(confidence, 4), votes)

    def _bayes(self, text: str) -> tuple[np.ndarray, str]:
        """Return (L,) log-probabilities of py3langid, and its answer; spaces around the text mark word boundaries."""
        # Same as `rank`, without its sorted list of names, which takes twice as long as all the rest.
        raw = self.bayes._raw_score(self.bayes._encode(f" {text} "))[self.columns].astype(np.float64)
        if raw.min() == raw.max():  # none of its features occurs
            return np.zeros(len(self.languages)), UNDETERMINED
        score = np.full(len(self.languages), -np.inf)
        np.maximum.at(score, self.targets, BAYES * raw)  # of two codes of one language the better counts
        score -= score.max()
        score = np.logaddexp(score - np.log(np.exp(score).sum()), self.floor)
        return score, self.languages[int(score.argmax())]

    def _named(self, text: str) -> tuple[np.ndarray, str]:
        """Return (L,) evidence of pycld2, which finds one language, rarely up to three, and its answer."""
        evidence, best = np.zeros(len(self.languages)), UNDETERMINED
        for _, code, percent, points in pycld2.detect(text, isPlainText=True, bestEffort=True)[2]:
            code = SAME.get(code, code)
            if code in self.index:
                best = code if best == UNDETERMINED else best
                evidence[self.index[code]] += (NAMED + PER_SCORE * min(points, 2000) / 1000) * percent / 100
        return evidence, best

    def _hinted(self, text: str, candidate: str) -> float:
        """Return the evidence of pycld2 for a language when it is given as a hint."""
        hint = self.hints.get(candidate, "")
        details = pycld2.detect(text, isPlainText=True, bestEffort=True, hintLanguage=hint)[2] if hint else ()
        return next((HINTED * part[2] / 100 for part in details[:1] if SAME.get(part[1], part[1]) == candidate), 0.0)

    def _lacking(self, letter: str) -> np.ndarray:
        """Return (L,) 1 for each language that does not have the letter; one without a table has every letter."""
        if letter not in self.lacking:
            has = [own is None or not letter.isalpha() or letter in own for own in self.alphabets]
            self.lacking[letter] = 1.0 - np.array(has)
        return self.lacking[letter]

    def _expected(self, page: str | None) -> np.ndarray:
        """Return (L,) logarithms of the prior probabilities."""
        stated = page if page is not None and page in self.index else ""
        if stated not in self.expected:
            shares = self.shares
            if stated:
                shares = (1 - PAGE - ENGLISH) * self.shares
                shares[self.index[stated]] += PAGE
                shares[self.index["en"]] += ENGLISH
            self.expected[stated] = np.log(shares)
        return self.expected[stated]


def clean_text(text: str) -> str:
    """Remove what has no language: addresses, file names, digits and marks; at most 2,000 characters are kept."""
    text = unicodedata.normalize("NFC", text[:8000].encode("utf-8", "ignore").decode())
    words = " ".join(word for word in text.split() if not _is_address(word.casefold()))
    return " ".join(_WORD.findall(words))[:2000]


def _is_address(word: str) -> bool:
    return "://" in word or "@" in word or word.startswith("www.") or word.rstrip(".,;:)]").endswith(_FILES)


def _group(code: str) -> str:
    return "eu" if code in EU_LANGUAGES else "european" if code in EUROPEAN else "world"


def _alphabet(row: dict[str, Any] | None) -> frozenset[str] | None:
    if row is None:
        return None
    own = set(row.get("letters", ""))
    if not own or any("LATIN" in unicodedata.name(letter) for letter in own):
        own |= set("abcdefghijklmnopqrstuvwxyz") - set(row.get("without", ""))
    return frozenset(own)


@cache
def _voters() -> _Voters:
    return _Voters()

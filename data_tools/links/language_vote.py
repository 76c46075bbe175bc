"""Say in which language a caption is written: py3langid and pycld2 vote, the letters and the page's language weigh in.

Each gives evidence for every language it knows, and the sum decides, as in Bayes' rule: what was expected (the page's
language, or that this is a European corpus), what the two models find in the text, and which languages have a letter
such as "ů" or "ї" at all. The confidence is the probability that follows. Both models know all 24 official languages of
the EU; languages that neither knows (Sorbian, Sardinian) are named only where the page says so and the text speaks for
a relative of theirs. Nothing is downloaded, the answer depends on nothing but text and page, and threads may share it.
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

from data_tools.corpora.scene_language import LANGUAGES as EU_LANGUAGES

LETTERS = Path(__file__).with_name("language_letters.yaml")
UNDETERMINED = "und"
# fmt: off
EUROPEAN = frozenset(EU_LANGUAGES) | {
    "ca", "cy", "eu", "fo", "fy", "gl", "is", "lb", "mk", "nb", "nn", "sq", "sr", "uk",
    "be", "br", "bs", "gd", "oc", "rm", "ru", "se", "tr",
}
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
# Weights of the evidence in nats, the same for all languages: the likeliest for the CLDR names and keywords of one half
# of the emoji in 120 languages (21,000 texts of a few words, 88 % of the weight on the EU's languages; November 2026).
BAYES, FLOOR = 0.36, -6.4  # of py3langid's raw scores, and the least it can say; languages it does not know get that
NAMED, PER_SCORE = 1.4, 0.95  # of pycld2's answer, and for each thousand of its score (at most two)
HINTED, CANDIDATES = 0.74, 4  # for those of py3langid's first four that pycld2 answers, too, when hinted at
IN_REACH = 4.0  # a language that lies further behind the best is not hinted at: it would change nothing
UNKNOWN = -3.0  # instead of it for a language of Europe that py3langid does not know (Romansh): set, not fitted
FOREIGN = 1.0  # against a language, for each different letter that it does not have
# Decided, not fitted: shares of all captions that are expected without a page; on a page, those in its language and in
# English; and the confidence below which nothing is said.
CORPUS = {"eu": 0.76, "european": 0.20, "world": 0.04}
PAGE, ENGLISH = 0.80, 0.08
THRESHOLD = 0.5

_FILES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".svg", ".avif", ".htm", ".html", ".php")
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
    """The two models and the table of letters over one list of L languages."""

    def __init__(self) -> None:
        self.bayes = LanguageIdentifier.from_model_file(MODEL_FILE)
        table: dict[str, dict[str, str]] = yaml.safe_load(LETTERS.read_text("utf-8"))
        named = {code for name, code in pycld2.LANGUAGES if name in pycld2.DETECTED_LANGUAGES and code[:2] != "xx"}
        known = {SAME.get(code, code) for code in (*self.bayes.nb_classes, *named)}
        self.languages = sorted(code for code in known - {"zxx", "tlh"} if not code.startswith("zz"))
        self.place = {code: number for number, code in enumerate(self.languages)}
        self.hints = {SAME.get(code, code): code for _, code in reversed(pycld2.LANGUAGES) if code in named}
        targets = [self.place.get(SAME.get(code, code), -1) for code in self.bayes.nb_classes]
        self.columns = np.array([number for number, place in enumerate(targets) if place >= 0])
        self.targets = np.array([place for place in targets if place >= 0])
        self.alphabets = [_alphabet(table.get(code)) for code in self.languages]
        self.lacking: dict[str, np.ndarray] = {}
        heard = {SAME.get(code, code) for code in self.bayes.nb_classes}
        self.floor = np.array([UNKNOWN if code in EUROPEAN - heard else FLOOR for code in self.languages])
        groups = [_group(code) for code in self.languages]
        self.shares = np.array([CORPUS[group] / groups.count(group) for group in groups])
        self.expected: dict[str, np.ndarray] = {}

    def judge(self, text: str, page: str | None) -> Vote:
        """Weigh all evidence for one text."""
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
        for place in np.argsort(-bayes, kind="stable")[:CANDIDATES]:
            if named[place] == 0 and score[place] > score.max() - IN_REACH:
                score[place] += self._hinted(cleaned, self.languages[place])
        chance = np.exp(score - score.max())
        chance /= chance.sum()
        best = int(chance.argmax())
        language, confidence = self.languages[best], float(chance[best])
        if page in RELATIVES and page not in self.place and language in RELATIVES[page]:
            kin = [self.place[code] for code in RELATIVES[page] if code in self.place]
            language, confidence = page, PAGE * float(chance[kin].sum())
        return Vote(language if confidence >= THRESHOLD else UNDETERMINED, round(confidence, 4), votes)

    def _bayes(self, text: str) -> tuple[np.ndarray, str]:
        """(L,) log-probabilities of py3langid; blanks around the text let it see where words begin and end."""
        # What `rank` does before it makes a sorted list of names, which would take twice as long as all the rest.
        raw = self.bayes._raw_score(self.bayes._encode(f" {text} "))[self.columns].astype(np.float64)
        if raw.min() == raw.max():  # none of its features occurs
            return np.zeros(len(self.languages)), UNDETERMINED
        score = np.full(len(self.languages), -np.inf)
        np.maximum.at(score, self.targets, BAYES * raw)  # of two names of one language the better counts
        score -= score.max()
        score = np.logaddexp(score - np.log(np.exp(score).sum()), self.floor)
        return score, self.languages[int(score.argmax())]

    def _named(self, text: str) -> tuple[np.ndarray, str]:
        """(L,) evidence of pycld2, which names one language, seldom up to three."""
        evidence, best = np.zeros(len(self.languages)), UNDETERMINED
        for _, code, percent, points in pycld2.detect(text, isPlainText=True, bestEffort=True)[2]:
            code = SAME.get(code, code)
            if code in self.place:
                best = code if best == UNDETERMINED else best
                evidence[self.place[code]] += (NAMED + PER_SCORE * min(points, 2000) / 1000) * percent / 100
        return evidence, best

    def _hinted(self, text: str, candidate: str) -> float:
        """Evidence of pycld2 for a language when it is told to expect that one."""
        hint = self.hints.get(candidate, "")
        details = pycld2.detect(text, isPlainText=True, bestEffort=True, hintLanguage=hint)[2] if hint else ()
        return next((HINTED * part[2] / 100 for part in details[:1] if SAME.get(part[1], part[1]) == candidate), 0.0)

    def _lacking(self, letter: str) -> np.ndarray:
        """(L,) 1 for each language that does not have the letter; those without a table have every letter."""
        if letter not in self.lacking:
            has = [own is None or not letter.isalpha() or letter in own for own in self.alphabets]
            self.lacking[letter] = 1.0 - np.array(has)
        return self.lacking[letter]

    def _expected(self, page: str | None) -> np.ndarray:
        """(L,) logarithms of the probabilities before the text is read."""
        known = page if page is not None and page in self.place else ""
        if known not in self.expected:
            shares = self.shares
            if known:
                shares = (1 - PAGE - ENGLISH) * self.shares
                shares[self.place[known]] += PAGE
                shares[self.place["en"]] += ENGLISH
            self.expected[known] = np.log(shares)
        return self.expected[known]


def clean_text(text: str) -> str:
    """Leave out what has no language: addresses, file names, digits and marks; at most 2,000 characters are kept."""
    text = unicodedata.normalize("NFC", text[:8000].encode("utf-8", "ignore").decode())
    spoken = " ".join(word for word in text.split() if not _is_address(word.casefold()))
    return " ".join(_WORD.findall(spoken))[:2000]


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

"""Vetting rules for captions without content: too short, few letters, file names, addresses, boilerplate, repetition.

Lengths are in graphemes: a letter with its accents is one (a close approximation of Unicode's UAX 29, without its
tables). In scripts without spaces between words, two letters count as a word.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample, VettingRule
from leam_mm.errors import UserError
from leam_mm.files import file_sha256

# Scripts without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han (with its extensions), Yi.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\ua000-\ua4cf\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
FILE_NAME = re.compile(r"[^\s/]{1,200}\.(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|heic|avif|pdf|psd)", re.IGNORECASE)
ADDRESS = re.compile(r"(?:https?:|www\.|ftp:|file:|data:)\S{1,4000}|[\w-]{1,60}(?:\.[\w-]{1,60}){1,4}/\S{0,4000}")
CAMERA = re.compile(r"[A-Za-z]{1,5}[-_]?\d{4,10}(?:[-_ (]{1,2}\w{0,12}\)?)?")  # IMG_1234, DSC-00012 (2), P1010023
WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
BOILERPLATE = Path(__file__).with_name("caption_boilerplate.yaml")
JOINER, SELECTORS = "\u200d", ("\ufe00", "\ufe0f")


def graphemes(text: str) -> int:
    """Return the number of graphemes; white space does not count."""
    count, joined, flag = 0, False, False
    for letter in unicodedata.normalize("NFC", text):
        if letter.isspace():
            joined = flag = False
            continue
        extends = joined or letter == JOINER or SELECTORS[0] <= letter <= SELECTORS[1] or _combines(letter)
        indicator = "\U0001f1e6" <= letter <= "\U0001f1ff"  # two of them are one flag
        if not extends and not (indicator and flag):
            count += 1
        flag = indicator and not flag
        joined = letter == JOINER
    return count


def _combines(letter: str) -> bool:
    if letter.isascii():
        return False
    marks = unicodedata.category(letter) in ("Mn", "Me", "Mc", "Cf") or letter in "\u0e33\u0eb3"  # Thai and Lao am
    return marks or "\U0001f3fb" <= letter <= "\U0001f3ff"  # skin tones of emoji


def words(text: str) -> list[str]:
    """Return the words in lower case; in scripts without spaces, pairs of letters."""
    found = []
    for word in WORDS.findall(unicodedata.normalize("NFC", text).lower()):
        pairs = len(UNSPACED.findall(word)) > len(word) / 2
        found += [word[at : at + 2] for at in range(0, len(word), 2)] if pairs else [word]
    return found


@cache
def _boilerplate() -> frozenset[str]:
    lists = yaml.safe_load(BOILERPLATE.read_text("utf-8"))["words"]
    return frozenset(word for words in lists for word in words if isinstance(word, str))


def letter_share(text: str) -> float:
    """Return the share of letters and their marks among all characters but white space, in [0, 1]."""
    kinds = [unicodedata.category(letter)[0] for letter in text if not letter.isspace()]
    return sum(kind in "LM" for kind in kinds) / max(1, len(kinds))


class CaptionQuality(VettingRule):
    """Drops samples without any good caption.

    Args:
        min_graphemes: Smallest number of graphemes of a good caption.
        max_graphemes: Largest number of graphemes.
        min_words: Smallest number of words.
        min_letters: Smallest share of letters among all characters but white space, in [0, 1].
        min_distinct: Smallest share of different words, in [0, 1], in captions of at least six words.
        max_run: Longest run of one character other than a digit.
        remove: Remove the bad captions of samples that have a good one; needs --materialise.
    """

    name = "caption_quality"

    def __init__(
        self,
        min_graphemes: int = 3,
        max_graphemes: int = 2000,
        min_words: int = 1,
        min_letters: float = 0.5,
        min_distinct: float = 0.3,
        max_run: int = 8,
        remove: bool = False,
    ) -> None:
        """See the class for the arguments."""
        if not (1 <= min_graphemes <= max_graphemes and min_words >= 1 and max_run >= 1):
            raise UserError("CaptionQuality: give 1 <= min_graphemes <= max_graphemes, min_words and max_run from 1 on")
        if not (0 <= min_letters <= 1 and 0 <= min_distinct <= 1):
            raise UserError("CaptionQuality: min_letters and min_distinct are shares, between 0 and 1")
        self.min_graphemes, self.max_graphemes, self.min_words = min_graphemes, max_graphemes, min_words
        self.min_letters, self.min_distinct, self.max_run, self.remove = min_letters, min_distinct, max_run, remove
        self._run = re.compile(rf"([^\d\s])\1{{{max_run}}}")

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Check every caption."""
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> Finding:
        faults = [self.fault(caption["text"]) for caption in sample.captions]
        bad = [fault for fault in faults if fault]
        value = f"{len(faults) - len(bad)} of {len(faults)}"
        evidence = {"captions": {str(number): fault for number, fault in enumerate(faults) if fault}} if bad else {}
        if len(bad) == len(faults):
            return Finding(value, False, f"no caption says anything: {bad[0]}", evidence)
        good = [caption for caption, fault in zip(sample.captions, faults, strict=True) if not fault]
        return Finding(value, evidence=evidence, record={"captions": good} if bad and self.remove else {})

    def fault(self, text: str) -> str | None:
        """Return what is wrong with a caption, or None."""
        text = text.strip()
        length = graphemes(text)
        if not self.min_graphemes <= length <= self.max_graphemes:
            return f"{length} characters"
        if FILE_NAME.fullmatch(text) or CAMERA.fullmatch(text):
            return "a file name"
        if ADDRESS.fullmatch(text):
            return "an address"
        share = letter_share(text)
        if share < self.min_letters:
            return f"{share:.0%} letters"
        if self._run.search(text):
            return f"a character more than {self.max_run} times in a row"
        found = words(text)
        if len(found) < self.min_words:
            return f"{len(found)} words"
        content = [word for word in found if word not in _boilerplate() and not word.isdigit()]
        if not content:
            return "boilerplate"
        most = Counter(found).most_common(1)[0][1]
        if len(found) >= 6 and (len(set(found)) / len(found) < self.min_distinct or most > 0.6 * len(found)):
            return f"{len(set(found))} different words of {len(found)}"
        return None

    def setting(self) -> dict[str, Any]:
        """Return the settings with the digest of the boilerplate list."""
        return super().setting() | {"boilerplate_sha256": file_sha256(BOILERPLATE)}


class RepeatedCaptions(DatasetRule):
    """Drops samples whose captions are repeated on very many images, and so describe none of them.

    Args:
        max_pictures: Largest number of images that may share a caption.
        looked_at: Number of captions checked per sample; a sample stays if one of them is on few images.
        keep: Of the images above the limit, keep ``none`` or the ``first`` ones in the order of the shards.
    """

    name = "repeated_captions"

    def __init__(self, max_pictures: int = 50, looked_at: int = 4, keep: Literal["none", "first"] = "none") -> None:
        """See the class for the arguments."""
        if max_pictures < 1 or looked_at < 1:
            raise UserError("RepeatedCaptions: max_pictures and looked_at must be at least 1")
        self.max_pictures, self.looked_at, self.keep = max_pictures, looked_at, keep

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return hashes of the captions without case, signs and spacing: (B, looked_at) uint64, 0 for none."""
        rows = np.zeros((len(samples), self.looked_at), np.uint64)
        for row, sample in zip(rows, samples, strict=True):
            for column, caption in enumerate(sample.captions[: self.looked_at]):
                plain = " ".join(words(caption["text"])) or caption["text"]
                row[column] = max(1, int.from_bytes(hashlib.sha256(plain.encode()).digest()[:8], "little"))
        return rows

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Count the images of each caption."""
        hashes, texts = np.unique(measured, return_inverse=True)
        texts = texts.reshape(measured.shape)
        # A caption that a sample has twice (in two languages) still counts as one image.
        once = np.unique(np.stack([np.repeat(np.arange(len(measured)), self.looked_at), texts.ravel()], 1), axis=0)
        counts = np.bincount(once[:, 1], minlength=len(hashes))
        rarest = np.where(measured == 0, np.iinfo(np.int64).max, counts[texts]).min(1)
        seen: Counter[int] = Counter()
        findings = []
        for row, count in enumerate(rarest.tolist()):
            kept = count <= self.max_pictures
            if not kept and self.keep == "first":
                caption = int(texts[row, 0])
                seen[caption] += 1
                kept = seen[caption] <= self.max_pictures
            reason = "" if kept else f"its captions are on {count} pictures, above {self.max_pictures}"
            findings.append(Finding(str(count), kept, reason))
        return findings

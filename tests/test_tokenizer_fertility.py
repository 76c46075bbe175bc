"""Fertility and truncation: numbers that can be counted by hand, with a real tokenizer."""

from pathlib import Path

import pytest
from toys.shards import write_toy_tokenizer

from leam_mm.audits.tokenizer_fertility import tokenizer_results
from leam_mm.data.tokenizer import ENGLISH, MOST_TOKENS, Tokenizer
from leam_mm.evaluators.embedding import ImageSample


def sample(**texts: str) -> ImageSample:
    return ImageSample("0", b"", {"captions": [{"text": text, "language": code} for code, text in texts.items()]})


def test_lengths_are_those_before_the_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_toy_tokenizer(tmp_path), 12)
    texts = ["a red square", "ε" * 100, "", "x " * 5000]
    # A Greek letter is two bytes, none of which was merged in training.
    assert tokenizer.full_lengths(texts)[1:].tolist() == [202, 2, MOST_TOKENS]
    assert tokenizer.full_lengths(texts)[0] == tokenizer.encode(texts[:1])[1]
    assert tokenizer.encode(texts)[1].tolist()[1:] == [12, 2, 12]
    assert Tokenizer(ENGLISH, 77).full_lengths(["a red square"]).tolist() == [5]


def test_fertility_is_relative_to_english_and_captions_are_cut(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_toy_tokenizer(tmp_path), 12)
    samples = [sample(en="a red square", el="εεε εεε", fi="a red square a red square a red square")] * 50
    plain, cut = tokenizer_results("x", tokenizer, samples, ["el", "en", "fi"], 2.0, 0.01)
    english = (tokenizer.full_lengths(["a red square"]).item() - 2) / 3
    greek = (tokenizer.full_lengths(["εεε εεε"]).item() - 2) / 2
    assert plain.value == pytest.approx(greek / english) and plain.verdict == "fail"
    assert plain.slices["fi"]["value"] == pytest.approx(1.0, abs=0.3)
    assert plain.slices["en"]["value"] == plain.slices["en"]["low"] == 1.0
    assert (plain.audit, cut.audit) == ("x/fertility", "x/truncation")
    length = tokenizer.full_lengths(["εεε εεε"]).item()
    assert cut.slices["el"]["value"] == float(length > 12) == 1.0
    assert cut.slices["en"]["value"] == 0.0 and 0 < cut.slices["en"]["high"] < 0.2
    assert cut.verdict == "fail"


def test_without_english_fertility_is_not_run(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_toy_tokenizer(tmp_path), 12)
    plain, cut = tokenizer_results("x", tokenizer, [sample(de="Quadrat", fi="a")] * 9, ["de", "fi"], 2.0, 0.01)
    assert plain.verdict == "not_run" and "English" in plain.reason
    assert cut.value == 0.0 and cut.verdict == "inconclusive"  # nine images do not exclude one in a hundred

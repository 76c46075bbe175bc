import numpy as np
import pytest

from data_tools.vetting.caption_quality import CaptionQuality, RepeatedCaptions, graphemes, letter_share, words
from data_tools.vetting.vetting_rule import Sample
from leam_mm.errors import UserError

GOOD = [
    "a dog", "Der Hund schläft.", "Ένας σκύλος στο χιόνι", "Куче в снега", "คนขี่ม้า", "雪の中の犬", "雪中的狗", "강아지",
    "قلعة في الصحراء", "טירה ישנה", "नदी के किनारे", "ქალაქი", "Boeing 747 over Malmö", "Apollo 13 crew, 1970",
    "Château de Versailles (78), façade", "l'arbre d'en face", "Route 66", "naïve café", "Öl",
    "Photo of a red kite above Skye", "x-ray of a hand", "Audi 100 C3", "9 years old Alice", "Škoda 120 L",
]  # fmt: skip
BAD = {
    "": "characters", "a": "characters", "IMG_1234.JPG": "file name", "IMG_1234": "file name", "DSC00012": "file name",
    "P1010023": "file name", "red-kite_final(2).jpeg": "file name", "https://example.org/x?y=1": "address",
    "www.example.org": "address", "example.org/a/b": "address", "12345 67890": "letters", "$$$ !!! ???": "letters",
    "🙂🙂🙂🙂": "letters", "2024-05-01 10:00": "letters", "image": "boilerplate", "Photo 12": "boilerplate",
    "Bild": "boilerplate", "obrázek č. 5": "boilerplate", "εικόνα": "boilerplate", "Click to enlarge": "boilerplate",
    "hahahaaaaaaaaaaaa": "in a row", "buy buy buy buy buy buy buy": "different words",
    "sale now sale now sale now sale now": "different words", "изображение 1": "boilerplate",
    "kuva 3 jpg": "boilerplate",
}  # fmt: skip


def sample(*texts: str) -> Sample:
    return Sample("k", {"captions": [{"text": text, "language": "en"} for text in texts]}, "png", b"")


@pytest.mark.parametrize("text", GOOD)
def test_good_captions(text: str) -> None:
    minimum = 2 if text == "Öl" else 3
    assert CaptionQuality(min_graphemes=minimum).fault(text) is None


@pytest.mark.parametrize("text", sorted(BAD))
def test_bad_captions(text: str) -> None:
    found = CaptionQuality().fault(text)
    assert found is not None and BAD[text] in found


@pytest.mark.parametrize(
    "text, seen",
    [
        ("e\u0301te\u0301", 3), ("👨‍👩‍👧‍👦", 1), ("🇪🇺🇩🇪", 2), ("👍🏽", 1), ("น้ำ", 1), ("नि", 1), ("a b\n c", 3),
        ("\u1112\u1161\u11ab", 1), ("❤️", 1), ("", 0),
    ],
)  # fmt: skip
def test_graphemes(text: str, seen: int) -> None:
    assert graphemes(text) == seen


def test_words_and_letters() -> None:
    assert words("L'été, c'est BIEN-être!") == ["l'été", "c'est", "bien-être"]
    assert words("雪の中の犬") == ["雪の", "中の", "犬"]
    assert letter_share("ab 12") == 0.5 and letter_share("") == 0 and letter_share("नि") == 1


def test_a_sample_with_one_good_caption_stays() -> None:
    keeps, removes = CaptionQuality(), CaptionQuality(remove=True)
    pair = sample("IMG_0001", "a brown cow")
    found = keeps.judge([pair, sample("image", "???")])
    assert [(each.kept, each.value) for each in found] == [(True, "1 of 2"), (False, "0 of 2")]
    assert found[0].evidence == {"captions": {"0": "a file name"}} and not found[0].record
    assert removes.judge([pair])[0].record == {"captions": [pair.captions[1]]}
    assert CaptionQuality(min_words=4).judge([pair])[0].kept is False
    assert keeps.setting() != CaptionQuality(max_run=9).setting() and "_run" not in keeps.setting()


def test_long_hostile_captions_are_fast() -> None:
    rule = CaptionQuality(max_graphemes=100_000)
    for text in ("a" * 50_000, "a." * 25_000, "a-" * 25_000, "www." + "a" * 49_000 + " ", "a_1" * 16_000 + "!"):
        rule.fault(text)  # the assertion is the test's time limit: backtracking would take hours


def test_repeated_captions() -> None:
    rule = RepeatedCaptions(max_pictures=3, looked_at=2)
    samples = [sample("Sale now!", "sale  NOW") for _ in range(4)] + [sample("sale now", "a red kite"), sample("A dog")]
    measured = rule.measure(samples)
    assert measured.shape == (6, 2) and measured[5, 1] == 0
    found = rule.resolve([""] * 6, [{}] * 6, measured)
    assert [each.kept for each in found] == [False] * 4 + [True, True]
    assert found[0].value == "5" and "5 pictures" in found[0].reason
    first = RepeatedCaptions(max_pictures=3, looked_at=2, keep="first").resolve([""] * 6, [{}] * 6, measured)
    assert [each.kept for each in first] == [True] * 3 + [False] + [True] * 2
    assert rule.measure([sample("雪の中")])[0, 0] == rule.measure([sample("雪の中!")])[0, 0]
    assert np.array_equal(rule.measure(samples), RepeatedCaptions(looked_at=2).measure(samples))


@pytest.mark.parametrize("setting", [{"min_graphemes": 0}, {"min_letters": 1.5}, {"max_graphemes": 1}, {"max_run": 0}])
def test_settings_are_checked(setting: dict) -> None:
    with pytest.raises(UserError):
        CaptionQuality(**setting)
    with pytest.raises(UserError):
        RepeatedCaptions(max_pictures=0)

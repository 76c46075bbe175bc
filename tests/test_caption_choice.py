from collections import Counter

import numpy as np
import pytest

from leam_mm.data.caption_choice import CaptionChoice, CaptionMixture, choose_caption
from leam_mm.data.language_curriculum import LanguageCurriculum
from leam_mm.data.sample_order import sample_generator
from leam_mm.errors import UserError

CAPTIONS = [
    {"text": "ein Hund", "language": "de"},
    {"text": "a dog", "language": "en"},
    {"text": "a brown dog", "language": "en"},
    {"text": "madra", "language": "ga"},
]


def drawn(count: int = 600, **settings: object) -> Counter[str]:
    chosen = [choose_caption(CAPTIONS, sample_generator(0, n, "caption"), **settings) for n in range(count)]  # type: ignore[arg-type]
    return Counter(str(caption["text"]) for caption in chosen)


def test_language_first_then_caption() -> None:
    counts = drawn()
    english = counts["a dog"] + counts["a brown dog"]
    assert all(abs(count / 600 - 1 / 3) < 0.06 for count in (counts["ein Hund"], english, counts["madra"]))
    assert abs(counts["a dog"] / english - 0.5) < 0.12


def test_language_weights_are_relative() -> None:
    counts = drawn(language_weights={"de": 2.0, "ga": 0.0})
    assert counts["madra"] == 0
    assert abs(counts["ein Hund"] / 600 - 2 / 3) < 0.06


def test_languages_limit_where_they_can() -> None:
    assert set(drawn(50, languages=["ga"])) == {"madra"}
    assert len(drawn(50, languages=["mt"])) > 1  # a sample without any of them keeps its captions


@pytest.mark.parametrize(("index", "alone"), [(0, True), (9, True), (10, False), (50, False)])
def test_a_curriculum_starts_with_one_language_where_a_sample_has_it(index: int, alone: bool) -> None:
    def languages(language: str) -> object:
        choice = CaptionChoice(curriculum=LanguageCurriculum(language, 10, 10))
        return choice.languages_at(CAPTIONS, index, np.random.default_rng(0), ["de", "en"])

    assert languages("ga") == (["ga"] if alone else ["de", "en"])
    assert languages("mt") == ["de", "en"]


@pytest.mark.parametrize(("alone", "until"), [(-1, 5), (6, 5)])
def test_a_curriculum_that_ends_before_it_begins_is_refused(alone: int, until: int) -> None:
    with pytest.raises(UserError, match="give 0 <= alone <= until"):
        LanguageCurriculum("en", alone, until)


def test_choice_is_a_function_of_seed_and_number() -> None:
    generators = [sample_generator(3, n, "caption") for n in (5, 5, 6)]
    first, again, _ = (choose_caption(CAPTIONS, generator) for generator in generators)
    assert first == again
    reordered = choose_caption(CAPTIONS[::-1], sample_generator(3, 5, "caption"))
    assert reordered["language"] == first["language"]  # languages are sorted, whatever their place in the json


def test_zero_weight_of_all_present_languages_still_gives_a_caption() -> None:
    weights = {"de": 0.0, "en": 0.0, "ga": 0.0}
    assert choose_caption(CAPTIONS, np.random.default_rng(0), language_weights=weights) in CAPTIONS


KINDS = [
    {"text": "ein Hund", "language": "de", "source": "original"},
    {"text": "a dog", "language": "en", "source": "original"},
    {"text": "a brown dog sits in the grass", "language": "en", "source": "synthetic"},
    {"text": "a dog in grass", "language": "en", "source": "synthetic"},
    {"text": "the grass is green", "language": "en", "source": "synthetic"},
    {"text": "dog jpg", "language": "en", "source": "filename"},
]


def test_sources_and_lengths_in_closed_form() -> None:
    mixture = CaptionMixture({"original": 3.0, "synthetic": 1.0, "filename": 0.0}, short=1.0, long=2.0, long_from=5)
    weights = {"de": 1.0, "en": 4.0}
    chances = {  # language, then source, then length, then one of those that are left
        "ein Hund": 1 / 5,
        "a dog": 4 / 5 * 3 / 4,
        "a brown dog sits in the grass": 4 / 5 * 1 / 4 * 2 / 3,
        "a dog in grass": 4 / 5 * 1 / 4 * 1 / 3 / 2,
        "the grass is green": 4 / 5 * 1 / 4 * 1 / 3 / 2,
    }
    assert sum(chances.values()) == pytest.approx(1)
    draws = 6000
    found = Counter(
        str(choose_caption(KINDS, sample_generator(2, n, "caption"), None, weights, mixture)["text"])
        for n in range(draws)
    )
    assert found.keys() == chances.keys()
    for text, chance in chances.items():
        assert abs(found[text] / draws - chance) < 4 * (chance * (1 - chance) / draws) ** 0.5, text


def test_mixture_keeps_the_drawn_languages() -> None:
    generators = [(sample_generator(0, n, "caption"), sample_generator(0, n, "caption")) for n in range(200)]
    for one, other in generators:  # the language is drawn first, from the same number
        mixed = choose_caption(KINDS, other, mixture=CaptionMixture({"original": 9.0}))
        assert choose_caption(KINDS, one)["language"] == mixed["language"]


def test_captions_of_weight_zero_are_drawn_only_without_others() -> None:
    none = CaptionMixture({"original": 0.0, "synthetic": 0.0, "filename": 0.0})
    assert {str(choose_caption(KINDS, np.random.default_rng(n), mixture=none)["text"]) for n in range(200)} == {
        str(caption["text"]) for caption in KINDS
    }
    synthetic = CaptionMixture({"original": 0.0, "filename": 0.0}, long=0.0, long_from=5)
    found = {str(choose_caption(KINDS, np.random.default_rng(n), mixture=synthetic)["text"]) for n in range(200)}
    assert found == {"a dog in grass", "the grass is green"}  # and so German, which has neither, is never drawn


def test_captions_without_a_source_are_refused() -> None:
    with pytest.raises(UserError, match=r"the caption 'ein Hund' has none: drop captions\.mixture\.sources, or encode"):
        choose_caption(CAPTIONS, np.random.default_rng(0), mixture=CaptionMixture({"original": 2.0}))
    assert choose_caption(CAPTIONS, np.random.default_rng(0), mixture=CaptionMixture(short=2.0)) in CAPTIONS


@pytest.mark.parametrize(
    "settings", [{"sources": {"a": -1.0}}, {"short": 0.0, "long": 0.0}, {"long": float("nan")}, {"long_from": 0}]
)
def test_impossible_mixture_is_refused(settings: dict) -> None:
    with pytest.raises(UserError, match=r"captions\.mixture has"):
        CaptionMixture(**settings)

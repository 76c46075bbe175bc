"""Whether captions differ, from their words alone."""

from typing import Any

import numpy as np
import pytest

from data_tools.vetting.caption_words import WIDTH, caption_words, captions_differ

Texts = dict[str, str]


def words(texts: Texts) -> np.ndarray:
    captions: list[dict[str, Any]] = [{"language": code, "text": text} for code, text in texts.items()]
    return caption_words(captions)


def differ(first: Texts, second: Texts) -> bool:
    found = captions_differ(words(first)[None], words(second)[None])
    assert found.shape == (1,) and found[0] == captions_differ(words(second)[None], words(first)[None])[0]
    return bool(found[0])


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ({"en": "flag of Jordan"}, {"en": "flag of Palestine"}, True),
        ({"en": "one o'clock"}, {"en": "two o\u2019clock"}, True),
        ({"en": "at 10:30"}, {"en": "at 11:30"}, True),
        ({"en": "A red heart"}, {"en": "a RED heart!"}, False),
        ({"en": "a red heart"}, {"en": "a big red heart"}, False),  # only adds words
        ({"en": "a red heart"}, {"de": "ein blaues Herz"}, False),  # no language in common
        ({"en": "flag of Jordan", "de": "Flagge"}, {"en": "flag of Palestine", "de": "Flagge"}, False),  # one of two
        ({"en": "a", "de": "b", "fr": "Jordanie"}, {"en": "c", "de": "d", "fr": "Jordanie"}, True),  # two of three
        ({}, {"en": "x"}, False),
    ],
)
def test_captions_differ_where_each_has_a_word_of_its_own(first: Texts, second: Texts, expected: bool) -> None:
    assert differ(first, second) == expected


def test_long_captions_are_compared_by_the_same_part_of_their_words() -> None:
    many = " ".join(f"word{number}" for number in range(60))
    assert not differ({"en": many}, {"en": f"{many} more"}) and not differ({"en": many}, {"en": many})
    assert differ({"en": many}, {"en": " ".join(f"other{number}" for number in range(60))})
    assert words({"en": many}).shape == (WIDTH,) and words({"en": many}).dtype == np.uint8

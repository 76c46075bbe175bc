"""Sizes of images and texts as functions of the samples seen."""

from collections import Counter

import pytest

from leam_mm.data.stages import Stage, Stages
from leam_mm.errors import UserError


def test_a_stage_lasts_until_the_next_begins() -> None:
    small, large = Stage(0, 112, text_length=16, patch_dropout=0.5), Stage(64, 224)
    stages = Stages([small, large], 8, 77, seed=0)
    assert [stages.at(index) is small for index in (0, 63, 64, 10**9)] == [True, True, False, False]
    assert [stages.image_size(index) for index in (0, 63, 64)] == [112, 112, 224]
    assert stages.sizes == [112, 224]


def test_a_batch_has_one_size_and_batches_all_of_them_evenly() -> None:
    stages = Stages([Stage(0, [96, 128, 160])], 8, 77, seed=3)
    sizes = [stages.image_size(index) for index in range(8 * 600)]
    assert all(len(set(sizes[first : first + 8])) == 1 for first in range(0, len(sizes), 8))
    assert all(150 < count < 250 for count in Counter(sizes[::8]).values()) and len(set(sizes)) == 3
    assert sizes != [Stages([Stage(0, [96, 128, 160])], 8, 77, seed=4).image_size(index) for index in range(8 * 600)]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "begin at 0 and ascend"),
        ([Stage(8, 32)], "begin at 0 and ascend"),
        ([Stage(0, 32), Stage(16, 32), Stage(16, 64)], "begin at 0 and ascend"),
        ([Stage(0, 32), Stage(12, 64)], r"stages\[1\]\.samples is 12: choose a multiple of the batch size 8"),
        ([Stage(0, [])], "give one size in pixels"),
        ([Stage(0, 32, text_length=99)], "between 3 and 77"),
        ([Stage(0, 32, patch_dropout=1.0)], r"lies in \[0, 1\)"),
    ],
)
def test_mistakes_are_told_before_the_first_step(stages: list[Stage], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Stages(stages, 8, 77, seed=0)

"""Contact sheets: single images with a JSON index, marks on generated ones only."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leam_mm.evaluators.contact_sheet import ShownImage, spread_evenly, write_contact_sheet


def test_index_and_images_agree(tmp_path: Path) -> None:
    shown = [
        ShownImage(
            np.full((4, 6, 3), 10 * n, np.uint8), f"text {n}", "de", "label", {"colour": n == 0, "count": True}, n > 0
        )
        for n in range(3)
    ]
    write_contact_sheet(tmp_path, "sheet", "A title", shown, object(), columns=3)
    index = json.loads((tmp_path / "sheet.json").read_text())
    assert (index["title"], index["columns"]) == ("A title", 3)
    assert [entry["wrong"] for entry in index["images"]] == [[], ["colour"], ["colour"]]
    assert index["images"][0]["right"] == ["colour", "count"] and index["images"][1]["text"] == "text 1"
    for number, entry in enumerate(index["images"]):
        with Image.open(tmp_path / entry["image"]) as image:
            assert image.size == (6, 4) and ("DigitalSourceType" in image.info) == (number > 0)
            assert abs(int(np.asarray(image)[0, 0, 0]) - 10 * number) <= 8  # the watermark changes pixels a little


@pytest.mark.parametrize(("count", "most"), [(0, 5), (1, 5), (5, 5), (100, 7)])
def test_spread_covers_both_ends_without_repeats(count: int, most: int) -> None:
    found = spread_evenly(count, most)
    assert len(found) == len(set(found)) == min(count, most) and found == sorted(found)
    assert not found or (found[0], found[-1]) == (0, count - 1)

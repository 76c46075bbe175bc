"""Canaries: planted as often as asked, unique, the same for one seed, read by the audit; bad options and lists."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.corpora.canary_corpus import WORDS, draw_canaries
from data_tools.download_shards import main as download
from data_tools.plant_canaries import main
from leam_mm.audits.canary_list import read_canaries
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import read_image_samples


def planted(folder: Path, *options: str) -> Path:
    output = folder / "canaries"
    main(["--output", str(output), "--duplication", "1", "3", "--canaries", "4", "2", "--held-out", "16", *options])
    return output


def test_shards_hold_each_canary_as_often_as_the_list_says(tmp_path: Path) -> None:
    output = planted(tmp_path)
    download(["--folder", str(output / "planted"), "--output", str(tmp_path / "shards")])
    assert ShardFolder(tmp_path / "shards").samples == 4 + 2 * 3
    samples = list(read_image_samples(tmp_path / "shards"))
    assert len({sample.key for sample in samples}) == len(samples)
    assert {sample.record["licence"] for sample in samples} == {"CC0-1.0"}
    found = Counter(sample.captions("en")[0] for sample in samples)
    canaries = read_canaries(output)
    assert found == {canary.caption: canary.duplication for canary in canaries if canary.duplication}
    pixels = {sample.captions("en")[0]: sample.pixels(32) for sample in samples}
    assert all((canary.pixels(32) == pixels[canary.caption]).all() for canary in canaries if canary.duplication)
    assert sum(not canary.duplication for canary in canaries) == 16


def test_canaries_are_unique_and_the_same_for_a_seed() -> None:
    canaries = draw_canaries(500, 3)
    assert len({canary.caption for canary in canaries}) == len({canary.png(32) for canary in canaries}) == 500
    assert draw_canaries(500, 3) == canaries and draw_canaries(20, 3) == canaries[:20]
    assert not {canary.caption for canary in draw_canaries(500, 4)} & {canary.caption for canary in canaries}
    words = Counter(word for canary in canaries for word in canary.caption.split())
    assert set(words) == set(WORDS) and max(words.values()) < 3 * 2000 / len(WORDS)
    colours = Counter(thing.colour for canary in canaries for thing in canary.objects)
    assert np.std(list(colours.values())) < 3 * np.sqrt(2000 / 8)  # drawn evenly


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--canaries", "4"], "one number of canaries for each duplication"),
        (["--duplication", "3", "3"], "no duplication twice"),
        (["--held-out", "3"], "at least 16"),
        (["--duplication", "0", "3"], "at least 1"),
        (["--canaries", "100000", "2"], "more than 100000"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planted(tmp_path, *options)
    assert not (tmp_path / "canaries").exists()


def test_a_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "canaries").mkdir()
    (tmp_path / "canaries" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="something other than canaries"):
        planted(tmp_path)
    assert (tmp_path / "canaries" / "mine.txt").exists()


def write_list(folder: Path, change: Any) -> None:
    content = json.loads((folder / "canaries.json").read_text())
    change(content)
    (folder / "canaries.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=2), "no list of canaries"),
        (lambda content: content.pop("canaries"), "no list of canaries"),
        (lambda content: content["canaries"][0].update(image="../../secret.png"), "outside the folder"),
        (lambda content: content["canaries"][0].update(image="images/none.png"), "cannot be read"),
        (lambda content: content["canaries"][0].update(sha256="0" * 64), "not the image of the list"),
        (lambda content: content["canaries"][0].update(duplication="many"), "no list of canaries"),
        (lambda content: content.update(canaries=content["canaries"][:3]), "planted and held-out"),
    ],
)
def test_a_damaged_list_is_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    output = planted(tmp_path)
    write_list(output, change)
    with pytest.raises(UserError, match=message) as caught:
        read_canaries(output)
    assert "\n" not in str(caught.value)

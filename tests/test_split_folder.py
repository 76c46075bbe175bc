"""data_tools/split_folder.py: which images are held out depends on their content only."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys.images import coloured_square

from data_tools.links.link_table import read_links
from data_tools.split_folder import main, split
from leam_mm.errors import UserError


def folder(path: Path, count: int = 12) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:02d} ü.png").write_bytes(coloured_square("red", number) + bytes([number]))
        (path / f"{number:02d} ü.txt").write_text(f"picture {number}\n", encoding="utf-8")
    return path


def tables(output: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        name: [json.loads(line) for line in (output / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "held_out")
    }


def run(folder: Path, output: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    main(["--folder", str(folder), "--output", str(output), *more])
    return tables(output)


def test_every_image_is_in_one_of_two_tables_of_links(tmp_path: Path) -> None:
    found = run(folder(tmp_path / "pictures"), tmp_path / "out", "--held-out", "0.25", "--language", "de")
    assert (len(found["train"]), len(found["held_out"])) == (9, 3)
    rows = found["train"] + found["held_out"]
    assert sorted(row["caption"] for row in rows) == sorted(f"picture {number}" for number in range(12))
    assert {(row["language"], row["licence"], row["legal_basis"]) for row in rows} == {("de", *["not stated"] * 2)}
    assert all(row["url"].startswith("file:///") for row in rows)
    assert read_links(tmp_path / "out" / "train.jsonl").num_rows == 9


def test_the_choice_follows_from_the_content_and_equal_images_stay_together(tmp_path: Path) -> None:
    first = run(folder(tmp_path / "one"), tmp_path / "out")
    other = folder(tmp_path / "elsewhere" / "two")
    for number in range(12):  # the same images under other names, one of them twice
        for ending in ("png", "txt"):
            (other / f"{number:02d} ü.{ending}").rename(other / f"z{99 - number}.{ending}")
    held_out = {row["caption"] for row in first["held_out"]}
    twice = next(iter(held_out))
    number = int(twice.split()[1])
    (other / "copy.png").write_bytes((other / f"z{99 - number}.png").read_bytes())
    (other / "copy.txt").write_text("copy")
    second = run(other, tmp_path / "out2")
    assert {row["caption"] for row in second["held_out"]} == held_out | {"copy"}


def test_the_table_of_a_folder_overrides_the_options(tmp_path: Path) -> None:
    source = folder(tmp_path / "pictures")
    rows = [f"{number:02d} ü.png,caption {number},fr,CC0-1.0" for number in range(12)]
    (source / "captions.csv").write_text("\n".join(["url,caption,language,licence", *rows]) + "\n", encoding="utf-8")
    found = run(source, tmp_path / "out", "--legal-basis", "own")
    everything = found["train"] + found["held_out"]
    assert {(row["language"], row["licence"], row["legal_basis"]) for row in everything} == {("fr", "CC0-1.0", "own")}


@pytest.mark.parametrize("share", [0.001, 0.2, 0.999])
def test_both_sides_keep_two_at_least(share: float) -> None:
    held_out = split([str(number) for number in range(10)], share)
    assert held_out.count(True) == {0.001: 2, 0.2: 2, 0.999: 8}[share]


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "pictures", 7)
    with pytest.raises(UserError, match="7 different images: give a folder with at least 8"):
        run(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"--held-out is 1\.0"):
        run(source, tmp_path / "out", "--held-out", "1")
    (source / "captions.csv").write_text("url,caption\nhttp://a.example/x.png,x\n")
    with pytest.raises(UserError, match="is not a file; fetch it first"):
        run(source, tmp_path / "out")
    (source / "captions.csv").write_text("url,caption\n../x.png,x\n")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="leads out of"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()

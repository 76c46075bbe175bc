"""data_tools/split_folder.py: which images are held out depends on their content only."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toys.images import coloured_square, soft_jpeg

from data_tools.links.link_table import read_links
from data_tools.split_folder import main
from leam_mm.errors import UserError


def folder(path: Path, count: int = 12) -> Path:
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number:02d} ü.png").write_bytes(coloured_square("red", number) + bytes([number]))
        (path / f"{number:02d} ü.txt").write_text(f"picture {number}\n", encoding="utf-8")
    return path


def varied_folder(path: Path, count: int) -> Path:
    """Square images that look different from each other."""
    path.mkdir(parents=True)
    for number in range(count):
        (path / f"{number}.png").write_bytes(soft_jpeg(number, (192, 192), "PNG"))
        (path / f"{number}.txt").write_text(f"picture {number}")
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


@pytest.mark.parametrize("count, held_out", [(1, 0), (2, 0), (3, 0), (4, 1), (7, 1), (8, 2), (10, 2)])
def test_few_images_are_split_as_far_as_they_suffice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, held_out: int
) -> None:
    source, output = varied_folder(tmp_path / "pictures", count), tmp_path / "out"
    output.mkdir()
    (output / "held_out.jsonl").write_text("{}\n")  # of an earlier run with more images
    main(["--folder", str(source), "--output", str(output)])
    printed = capsys.readouterr()
    counts = json.loads((output / "split.json").read_text())
    assert (counts["train"], counts["held_out"]) == (count - held_out, held_out)
    assert (output / "held_out.jsonl").is_file() == bool(held_out) and printed.out.count("\n") == 1
    assert "none held out: that takes 4" in printed.out if count < 4 else f"{held_out} held out" in printed.out
    assert len(read_links(output / "train.jsonl")) == count - held_out and "crop" not in printed.err


def test_images_that_look_alike_are_on_one_side(tmp_path: Path) -> None:
    source = varied_folder(tmp_path / "pictures", 9)
    twins = {}
    for number in range(9):  # each again, as a smaller JPEG and with another caption
        name = f"again {number}"
        Image.open(source / f"{number}.png").resize((144, 144)).save(source / f"{name}.jpg", quality=85)
        (source / f"{name}.txt").write_text(name)
        twins[f"picture {number}"] = name
    found = run(source, tmp_path / "out")
    sides = {row["caption"]: side for side, rows in found.items() for row in rows}
    assert len(found["held_out"]) == 4 and all(sides[one] == sides[other] for one, other in twins.items())
    assert json.loads((tmp_path / "out" / "split.json").read_text())["look_different"] == 9


def test_images_that_the_centre_square_crops_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = varied_folder(tmp_path / "pictures", 3)
    Image.open(source / "1.png").resize((40, 60)).save(source / "1.png")  # a third lies outside
    (source / "broken.png").write_bytes(b"not an image")
    (source / "broken.txt").write_text("x")
    found = run(source, tmp_path / "out")
    assert len(found["train"]) + len(found["held_out"]) == 4
    warning = capsys.readouterr().err
    assert "1 of 4 lose more than 20% of their area (1.png: 33%)" in warning


def test_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "pictures", 7)
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


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "held_out.jsonl.tmp-1-00000000").touch()
    main(["--folder", str(folder(tmp_path / "images")), "--output", str(tmp_path / "split")])
    assert not list((tmp_path / "split").glob("*.tmp-*"))

"""Labels by csv: form, limits, names that lead out of the folder, and images that are not there."""

from pathlib import Path

import pytest

from leam_mm.audits import labelled_images
from leam_mm.audits.labelled_images import find_images, read_labels
from leam_mm.controls.control_images import numbered_png, write_numbered_shards
from leam_mm.errors import UserError


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return folder / "labels.csv"


def test_files_and_keys_are_found(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(numbered_png(1))
    labels = read_labels(table(tmp_path, "\ufefffile,age,group\n1.png,3,a\n2.png,4,b\n"), "group")
    assert labels == {"1.png": "a", "2.png": "b"}
    (found,) = find_images(tmp_path / "labels.csv", labels, tmp_path / "images", None)
    assert found.label == "a" and found.pixels(8)[0, 0, 0] == 1
    shards = write_numbered_shards(tmp_path / "shards", 4, ["en"], lambda code, number: "x")
    keyed = read_labels(table(tmp_path, "key,group\n000002,b\n9,a\n"), "group")
    (sample,) = find_images(tmp_path / "labels.csv", keyed, None, shards)
    assert sample.key == "000002" and sample.pixels(8)[0, 0, 0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,group\n1,a\n", r"has the columns name, group: it needs file or key or image, and group"),
        ("file,kind\n1,a\n", "has the columns file, kind: it needs"),
        ("", "has the columns none"),
        ("file,group\n1,\n", "line 2 has no group"),
        ("file,group\n1\n", "line 2 has no group"),
        ("file,group\n,a\n", "line 2 has no file"),
        ("file,group\n1,a\n1,b\n", "line 3 lists '1' a second time"),
        ('file,group\n"1,a\n', "is no csv in UTF-8"),
        ("file,group\n" + "".join(f"{n},{n}\n" for n in range(201)), "more than 200 values"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_labels(table(tmp_path, text), "group")
    assert "\n" not in str(caught.value)


def test_bytes_and_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.csv").write_bytes(b"file,group\n\xff,a\n")
    with pytest.raises(UserError, match="no csv in UTF-8"):
        read_labels(tmp_path / "labels.csv", "group")
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.csv", "group")
    monkeypatch.setattr(labelled_images, "MAX_ROWS", 2)
    with pytest.raises(UserError, match="more than 2 rows"):
        read_labels(table(tmp_path, "file,group\n1,a\n2,a\n3,a\n"), "group")
    monkeypatch.setattr(labelled_images, "MAX_BYTES", 5)
    with pytest.raises(UserError, match="larger than 5 bytes"):
        read_labels(tmp_path / "labels.csv", "group")


def test_names_stay_in_the_folder_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(numbered_png(1))
    where = tmp_path / "labels.csv"
    with pytest.raises(UserError, match="leads out of"):
        find_images(where, {"../secret.png": "a"}, tmp_path / "images", None)
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="leads out of"):
        find_images(where, {"link.png": "a"}, tmp_path / "images", None)
    with pytest.raises(UserError, match="none of its 1 rows names an image"):
        find_images(where, {"1.png": "a"}, tmp_path / "images", None)
    with pytest.raises(UserError, match="add --held_out"):
        find_images(where, {"1": "a"}, None, None)
    (tmp_path / "images/1.png").write_bytes(b"no image")
    (found,) = find_images(where, {"1.png": "a"}, tmp_path / "images", None)
    with pytest.raises(UserError, match=r"1\.png"):
        found.pixels(8)

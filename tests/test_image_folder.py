"""Folders of images as people have them: what is recognised, what is left out and why."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toys.images import encoded_image

from data_tools import split_folder
from data_tools.download.folder_source import list_files, open_source
from data_tools.links.image_folder import FolderColumns, folder_links, read_image_folder
from data_tools.links.link_rows import LinkRows
from data_tools.samples.image_repair import ImageRule, repair_image
from leam_mm.errors import UserError

PNG = encoded_image(Image.new("RGB", (4, 4), "green"), "PNG")


def images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG)
    return folder


def captions(folder: Path, choice: FolderColumns | None = None) -> dict[str, str]:
    table = folder_links(folder, choice=choice)
    return dict(zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True))


def ledger(folder: Path, choice: FolderColumns | None = None) -> dict[str, tuple[str | None, str | None]]:
    rows = LinkRows(None, folder, True, [], columns=choice)
    return {row.decision["url"]: (row.decision.get("rule"), row.decision.get("reason")) for row in rows}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_an_imagefolder_of_hugging_face(suffix: str, tmp_path: Path) -> None:
    folder = images(tmp_path, *(f"train/{number}.png" for number in range(3)), "test/ü 0.png")
    for part, names in (("train", [f"{number}.png" for number in range(3)]), ("test", ["ü 0.png"])):
        rows = [{"file_name": name, "text": f"image {name}"} for name in names]
        path = folder / part / f"metadata.{suffix}"
        if suffix == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif suffix == "csv":
            path.write_text("file_name,text\n" + "".join(f"{row['file_name']},{row['text']}\n" for row in rows))
        else:
            pq.write_table(pa.Table.from_pylist(rows), path)
    found = read_image_folder(folder)
    source = f"test/metadata.{suffix}, train/metadata.{suffix}"
    assert found.describe() == f"{folder}: imagefolder, 4 images, 4 captions from {source}"
    assert captions(folder)["file:test/%C3%BC%200.png"] == "image ü 0.png"
    assert {rule for rule, _ in ledger(folder).values()} == {None}


def test_what_is_left_out_is_counted_and_in_the_ledger(tmp_path: Path) -> None:
    folder = images(tmp_path, *(f"{number}.png" for number in range(4)), "a.heic", ".hidden/x.png", "._0.png", "b.jxl")
    (folder / "Thumbs.db").write_bytes(b"")
    lines = [
        {"file_name": name, "text": text} for name, text in (("0.png", "a lake"), ("1.png", ""), ("9.png", "gone"))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"file_name": "a.heic", "text": "x"}])))
    text = read_image_folder(folder).describe()
    assert "imagefolder, 6 images, 1 caption from metadata.jsonl" in text
    for words in ("1 listed but missing", "2 there but not listed", "1 without caption", "2 in a format that is not"):
        assert words in text
    assert "heif-convert" in text and "djxl" in text and "skipped: 3 hidden or system files" in text
    assert {url: rule for url, (rule, _) in ledger(folder).items()} == {
        "file:0.png": None, "file:1.png": "caption", "file:2.png": "unlisted", "file:3.png": "unlisted",
        "file:9.png": "missing", "file:a.heic": "format", "file:b.jxl": "format",
    }  # fmt: skip
    assert captions(folder) == {"file:0.png": "a lake"}


def test_folders_of_classes_are_captions_only_if_asked(tmp_path: Path) -> None:
    folder = images(tmp_path, "red_cup/a.png", "blue cup/b.png")
    with pytest.raises(UserError, match=r"2 of 2 images lack one.*--caption-from folder-name"):
        read_image_folder(folder)
    choice = FolderColumns(caption_from="folder-name")
    assert captions(folder, choice) == {"file:blue%20cup/b.png": "blue cup", "file:red_cup/a.png": "red cup"}
    assert (
        "2 classes in folders, 2 images, 2 captions from the folders' names"
        in read_image_folder(folder, choice).describe()
    )


def test_files_beside_images_in_every_case_and_form(tmp_path: Path) -> None:
    folder = images(tmp_path, "a.JPG", "b.png", "c.png", "d.png", "e.png")
    (folder / "a.TXT").write_bytes("\ufeffein See".encode())
    (folder / "B.txt").write_bytes("ein Baum".encode("utf-16"))
    (folder / "c.caption").write_text("ein Haus")
    (folder / "d.json").write_text(json.dumps({"caption": {"en": "a road", "de": "eine Straße"}}))
    found = captions(folder)
    assert found == {
        "file:a.JPG": "ein See", "file:b.png": "ein Baum", "file:c.png": "ein Haus", "file:d.png": "a road",
    }  # fmt: skip
    assert ledger(folder)["file:e.png"] == ("caption", "there is no caption file e.txt beside it")


def test_a_caption_in_latin_1_is_refused_by_name_or_read(tmp_path: Path) -> None:
    folder = images(tmp_path, "a.png")
    (folder / "a.txt").write_bytes("Straße".encode("latin-1"))
    with pytest.raises(UserError, match=r"caption is not UTF-8 \(a\.txt\).*--encoding, such as latin-1"):
        folder_links(folder)
    assert captions(folder, FolderColumns(encoding="latin-1")) == {"file:a.png": "Straße"}
    with pytest.raises(UserError, match="--encoding is 'latin-77'"):
        folder_links(folder, choice=FolderColumns(encoding="latin-77"))


def test_several_lines_are_several_captions_only_if_asked(tmp_path: Path) -> None:
    folder = images(tmp_path, "a.png")
    (folder / "a.txt").write_text("\r\n".join(f"caption {number}" for number in range(70)), newline="")
    assert (
        "1 caption file has several lines, taken as one caption (--caption-lines"
        in read_image_folder(folder).describe()
    )
    (row,) = folder_links(folder, choice=FolderColumns(caption_lines=True)).to_pylist()
    assert row["caption"] == "caption 0" and len(json.loads(row["captions"])) == 70


def test_links_to_folders(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", "one/a.png")
    (folder / "one/a.txt").write_text("a lake")
    (folder / "again").symlink_to(folder / "one")
    assert list(captions(folder)) == ["file:one/a.png"]
    assert "1 links to folders that are read where they are" in read_image_folder(folder).describe()
    images(tmp_path / "elsewhere", "b.png")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"images/out is a symbolic link that leads out of .*; copy the folder instead"):
        read_image_folder(folder)


def test_split_folder_says_what_it_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(tmp_path / "images", "cup/a.png", "lake/b.png")
    words = ["--folder", str(folder), "--output", str(tmp_path / "out"), "--caption-from", "folder-name"]
    split_folder.main(words)
    assert "2 classes in folders, 2 images" in capsys.readouterr().err


def test_gathering_lists_what_is_not_read(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.heic", ".c.png", "__MACOSX/d.png", "sub/metadata.jsonl")
    system, root, local = open_source(str(tmp_path))
    found = {file.name: file.fault for file in list_files(system, root, local, 10**6)}
    assert found.keys() == {"a.png", "b.heic", "sub/metadata.jsonl"}
    assert "heif-convert" in found["b.heic"] and not found["a.png"]


def deep(kind: str, path: Path) -> bytes:
    values = (np.arange(64 * 64, dtype=np.uint32) * 16 % 65536).astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(path, kind)
    return path.read_bytes()


def test_tiff_and_avif_are_read(tmp_path: Path) -> None:
    photo = Image.fromarray((np.arange(32 * 48 * 3) % 251).astype(np.uint8).reshape(32, 48, 3))
    for name, options in (("plain", {}), ("lzw", {"compression": "tiff_lzw"}), ("cmyk", {})):
        saved = photo.convert("CMYK") if name == "cmyk" else photo
        saved.save(tmp_path / f"{name}.tif", **options)
        image = repair_image((tmp_path / f"{name}.tif").read_bytes(), ImageRule())
        assert image.extension == "png" and (image.width, image.height) == (48, 32)
        (tmp_path / "out.png").write_bytes(image.content)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(saved.convert("RGB")))
    pages = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    assert "first_page" in repair_image((tmp_path / "pages.tif").read_bytes(), ImageRule()).transforms
    sixteen = [repair_image(deep(kind, tmp_path / f"deep.{kind}"), ImageRule()) for kind in ("PNG", "TIFF")]
    assert sixteen[0].content == sixteen[1].content and sixteen[0].transforms == sixteen[1].transforms
    photo.save(tmp_path / "turned.tif", exif=turned())
    image = repair_image((tmp_path / "turned.tif").read_bytes(), ImageRule())
    assert (image.width, image.height) == (32, 48) and "orientation:6" in image.transforms
    photo.save(tmp_path / "a.avif", quality=100)
    image = repair_image((tmp_path / "a.avif").read_bytes(), ImageRule())
    assert (image.extension, image.width, image.height) == ("png", 48, 32)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(Exception, match="floats"):
        repair_image((tmp_path / "float.tif").read_bytes(), ImageRule())


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif

"""Folders of tars: what clip-benchmark's exporter writes is read, ours is read by webdataset, and damage is named."""

import tarfile
from pathlib import Path

import pytest
from toys.class_folders import write_class_folder, write_tars
from toys.images import COLOURS, blank_png, coloured_square, encoded_image, rotated_jpeg, soft_image

from leam_mm.data.shard_manifest import BLOCK
from leam_mm.errors import UserError
from leam_mm.evaluators.class_folder import read_class_folder
from leam_mm.evaluators.clip_benchmark_folder import read_samples, read_templates
from leam_mm.evaluators.clip_benchmark_writer import image_member, write_captions, write_classes
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.stored_image import StoredImage

NAMES = sorted(COLOURS)
PLAIN = ImagePreparation()


def labelled(folder: Path, label: bytes = b"3", names: str = "\n".join(NAMES) + "\n") -> Path:
    samples = [{"png": coloured_square(name, 1), "cls": str(place).encode()} for place, name in enumerate(NAMES)]
    write_tars(folder, "test", [samples, [{"cls": label, "jpg": coloured_square("red", 2)}]])
    (folder / "classnames.txt").write_text(names, encoding="utf-8")
    return folder


def test_classes_are_read_over_several_tars(tmp_path: Path) -> None:
    classes, samples = read_samples(labelled(tmp_path), "test", PLAIN, "en")
    assert classes == ["0", "1", "2", "3"]
    assert [sample.class_id for sample in samples] == ["0", "1", "2", "3", "3"]
    assert samples[1].content() == coloured_square("green", 1) and samples[4].content() == coloured_square("red", 2)
    (tmp_path / "classnames.txt").unlink()
    assert read_samples(tmp_path, "test", PLAIN, "en")[0] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("label", "reason"), [(b"4", "has 4 names"), (b"-1", "whole numbers"), (b"", "whole numbers")])
def test_labels_out_of_range_are_named(tmp_path: Path, label: bytes, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_samples(labelled(tmp_path, label), "test", PLAIN, "en")


def test_captions_have_the_given_language(tmp_path: Path) -> None:
    write_tars(tmp_path, "test", [[{"jpg": blank_png(), "txt": "ein Haus\nzwei Häuser\n".encode()}]])
    (tmp_path / "dataset_type.txt").write_text("retrieval\n")
    classes, samples = read_samples(tmp_path, "test", PLAIN, "de")
    assert classes == [] and samples[0].captions("de") == ["ein Haus", "zwei Häuser"] and not samples[0].captions("en")


def _header(name: str, size: int) -> bytes:
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    if size < 0:  # base 256, as GNU tar writes what is beyond 8 GB
        header[124:136] = b"\xff" + (256**11 + size).to_bytes(11)
        header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    return bytes(header)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = labelled(tmp_path)
    content = (folder / "test/1.tar").read_bytes()
    for damage, reason in ((None, "1.tar is missing"), (content[:700], "intact tar"), (b"x" * 2000, "intact tar")):
        (folder / "test/1.tar").unlink(missing_ok=True)
        if damage is not None:
            (folder / "test/1.tar").write_bytes(damage)
        with pytest.raises(UserError, match=reason):
            read_samples(folder, "test", PLAIN, "en")
    for place, size, reason in ((0, -BLOCK, "-512 bytes"), (0, -2 * BLOCK, "-1024 bytes"), (1, 0, "damaged header")):
        headers = [_header(f"x{number}.cls", size) for number in range(2)]
        headers[place] = headers[place][:-1] + (b"x" if size == 0 else headers[place][-1:])  # a wrong checksum
        (folder / "test/1.tar").write_bytes(b"".join(headers) + bytes(2 * BLOCK))
        with pytest.raises(UserError, match=reason):
            read_samples(folder, "test", PLAIN, "en")
    write_tars(tmp_path / "b", "test", [[{"cls": b"0"}]])
    with pytest.raises(UserError, match="lacks an image"):
        read_samples(tmp_path / "b", "test", PLAIN, "en")
    (folder / "test/nshards.txt").write_text("many")
    with pytest.raises(UserError, match="write the number of tars"):
        read_samples(folder, "test", PLAIN, "en")
    (folder / "dataset_type.txt").write_text("multilabel")
    with pytest.raises(UserError, match="multilabel, which is not supported"):
        read_samples(folder, "test", PLAIN, "en")


def test_what_we_write_is_read_back(tmp_path: Path) -> None:
    classes, samples = read_class_folder(write_class_folder(tmp_path / "images"), ImagePreparation(upright=True))
    templates = ["{}", "Foto: {}"]
    for _ in range(2):  # the same data set may be written again
        write_classes(tmp_path / "tars", "test", samples, classes, ["blau", "grün", "rot", "gelb"], templates)
    assert (tmp_path / "tars/classnames.txt").read_text(encoding="utf-8") == "blau\ngrün\nrot\ngelb\n"
    assert read_templates(tmp_path / "tars") == templates
    _, found = read_samples(tmp_path / "tars", "test", PLAIN, "en")
    assert [classes[int(str(one.class_id))] for one in found] == [one.class_id for one in samples]
    assert [one.content() for one in found] == [one.content() for one in samples]
    with pytest.raises(UserError, match="another data set"):
        write_classes(tmp_path / "tars", "train", samples, classes, ["a", "b", "c", "d"], templates)
    with pytest.raises(UserError, match="other braces"):
        write_classes(tmp_path / "new", "test", samples, classes, NAMES, ["{} {x}"])
    with pytest.raises(UserError, match="several lines"):
        write_classes(tmp_path / "new", "test", samples, classes, ["a\nb", "c", "d", "e"], templates)
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in (tmp_path / "tars").iterdir() if path.is_dir()) == ["test"]


def test_captions_are_read_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    captions = [{"text": "one\nline", "language": "en"}, {"text": "zwei", "language": "de"}]
    samples = [StoredImage("k", coloured_square("red", 1), {"captions": captions})]
    write_captions(tmp_path, "test", samples, "en")
    assert (tmp_path / "dataset_type.txt").read_text() == "retrieval\n"
    found = list(webdataset.WebDataset(str(tmp_path / "test/0.tar"), shardshuffle=False))
    assert [(one["txt"], one["png"]) for one in found] == [(b"one line", coloured_square("red", 1))]
    with tarfile.open(tmp_path / "test/0.tar") as tar:
        assert tar.getnames() == ["s0000000.png", "s0000000.txt"]
    with pytest.raises(UserError, match="no image to write"):
        write_captions(tmp_path / "none", "test", [], "en")


def test_images_are_written_as_they_are_seen() -> None:
    upright = ImagePreparation(upright=True)
    for kind, name in (("JPEG", "jpg"), ("WEBP", "webp"), ("PNG", "png")):
        content = encoded_image(soft_image(1, 20), kind)
        assert image_member(StoredImage("k", content, {}, preparation=upright)) == (name, content)
    for content in (rotated_jpeg(), encoded_image(soft_image(1, 20), "BMP")):
        sample = StoredImage("k", content, {}, preparation=upright)
        name, written = image_member(sample)
        assert name == "png"
        assert (PLAIN(written, 8) == sample.pixels(8)).all()
    with pytest.raises(UserError, match="image k"):
        image_member(StoredImage("k", b"no image", {}))

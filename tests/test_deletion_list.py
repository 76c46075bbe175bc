"""leam_mm/marking/deletion_list.py: a publisher's list of images that are not returned."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.generators import write_generator_run

from data_tools.corpora.scene_corpus import make_scene, render
from leam_mm.draw import main as draw
from leam_mm.errors import UserError
from leam_mm.inference import drawing
from leam_mm.marking.deletion_list import FILE, MAX_DISTANCE, DeletionList, ListedImage, deletion_list_of
from leam_mm.marking.generated_image import WATERMARK, save_generated

pytest.importorskip("pdqhash")
from leam_mm.data.perceptual_hash import hash_text, pdq


def picture(seed: int, side: int = 128) -> np.ndarray:
    """Blobs, whose hash has full quality."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def write_list(path: Path, *pixels: np.ndarray) -> Path:
    path.write_text("# refreshed daily\n" + "".join(f"{hash_text(pdq(each)[0])},request\n" for each in pixels))
    return path


def test_copies_are_refused_and_others_pass(tmp_path: Path) -> None:
    listed = DeletionList.read(write_list(tmp_path / "a.pdq", picture(1), picture(2)))
    buffer = io.BytesIO()
    Image.fromarray(picture(1)).resize((90, 90)).save(buffer, "JPEG", quality=50)
    copy = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    for pixels in (picture(1), copy, picture(2)[:, ::-1], np.rot90(picture(2)), WATERMARK.embed(picture(1))):
        with pytest.raises(ListedImage, match=r"deletion list a\.pdq"):
            listed.check(np.ascontiguousarray(pixels))
    for seed in range(10, 30):
        listed.check(picture(seed))
    listed.check(np.full((64, 64, 3), 200, np.uint8))  # flat: not compared


def test_nothing_is_written_for_a_listed_image(tmp_path: Path) -> None:
    listed = DeletionList.read(write_list(tmp_path / "a.pdq", picture(1)))
    with pytest.raises(ListedImage):
        save_generated(Image.fromarray(picture(1)), tmp_path / "x.png", "m", deletion_list=listed)
    assert not (tmp_path / "x.png").exists()
    save_generated(Image.fromarray(picture(3)), tmp_path / "x.png", "m", deletion_list=listed)


def test_false_matches_of_unrelated_images_are_rare(tmp_path: Path) -> None:
    """Thousands of comparisons of different blobs: none within the threshold."""
    listed = DeletionList.read(write_list(tmp_path / "a.pdq", *(picture(seed) for seed in range(100, 200))))
    distances = [listed.distance(picture(seed)) for seed in range(40)]
    assert min(distance for distance in distances if distance is not None) > MAX_DISTANCE + 20


def test_damaged_lists_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.pdq", "# none yet"), ("b.pdq", "abc"), ("c.txt", "0" * 64), ("d.sha256", "0" * 64)):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=name):
            DeletionList.read(tmp_path / name)
    with pytest.raises(UserError, match="absent"):
        DeletionList.read(tmp_path / "absent.pdq")


def test_the_list_of_a_release_is_the_default(tmp_path: Path) -> None:
    assert deletion_list_of(None, tmp_path) is None and deletion_list_of(None, "NAME:TAG") is None
    write_list(tmp_path / FILE, picture(1))
    own = deletion_list_of(None, tmp_path)
    assert own is not None and own.name == FILE
    given = deletion_list_of(write_list(tmp_path / "given.pdq", picture(2)), tmp_path)
    assert given is not None and given.name == "given.pdq"


def test_draw_leaves_listed_images_out(
    tmp_path: Path, toy_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    generator = write_generator_run(tmp_path / "generator", **dict(toy_checkpoints))
    monkeypatch.setattr(drawing.Drawer, "_sample", lambda self, batch: np.stack([picture(each.seed) for each in batch]))
    words = [
        "--generator",
        str(generator),
        "--output",
        str(tmp_path / "out"),
        "--prompt",
        "x",
        "--images",
        "3",
        "--grid",
    ]
    listed = write_list(tmp_path / "list.pdq", picture(1))
    with pytest.raises(
        UserError, match=r"1 images are not returned; the first: prompt0001_seed1\.png: .*deletion list"
    ):
        draw([*words, "--deletion-list", str(listed)])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["drawings.jsonl", "grid.png", "prompt0001_seed0.png", "prompt0001_seed2.png"]
    assert len((tmp_path / "out" / "drawings.jsonl").read_text().splitlines()) == 2
    with pytest.raises(UserError, match=r"cannot be read"):
        draw([*words, "--deletion-list", str(tmp_path / "absent.pdq")])


def test_scenes_that_look_alike_may_match(tmp_path: Path) -> None:
    """What the documentation says about simple drawings: measured, so that it stays true."""
    images = [np.asarray(Image.open(io.BytesIO(render(make_scene("train", 5, n), 5, "train", n, 64))).convert("RGB"))
              for n in range(60)]  # fmt: skip
    listed = DeletionList.read(write_list(tmp_path / "a.pdq", *images[:30]))
    distances = [listed.distance(pixels) for pixels in images[30:]]
    matches = sum(distance is not None and distance <= MAX_DISTANCE for distance in distances)
    assert matches <= 3

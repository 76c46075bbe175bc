"""leam_mm/serving/current_deletion_list.py, and what the page shows in place of a listed image."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.generators import write_generator_run

from leam_mm.checkpoint import load_module
from leam_mm.errors import UserError
from leam_mm.inference import drawing
from leam_mm.marking.deletion_list import FILE
from leam_mm.serving import page_parts
from leam_mm.serving.current_deletion_list import CurrentDeletionList
from leam_mm.serving.drawing_service import DrawingRequest, DrawingService, ImageStore
from leam_mm.serving.page_texts import GERMAN

pytest.importorskip("pdqhash")
from leam_mm.data.perceptual_hash import hash_text, pdq


def picture(seed: int) -> np.ndarray:
    """Blobs, whose hash has full quality."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC))


def write_list(path: Path, *seeds: int) -> Path:
    path.write_text("".join(f"{hash_text(pdq(picture(seed))[0])},request\n" for seed in seeds))
    return path


def test_the_list_is_read_again_when_it_changes(tmp_path: Path) -> None:
    current = CurrentDeletionList(write_list(tmp_path / "list.pdq", 1), tmp_path)
    first = current.read()
    assert first is not None and len(first.hashes) == 1 and current.read() is first
    write_list(tmp_path / "list.pdq", 1, 2)
    second = current.read()
    assert second is not None and len(second.hashes) == 2
    (tmp_path / "list.pdq").write_text("damaged")
    for _ in range(2):  # also the second time: no image is returned with the list of before
        with pytest.raises(UserError, match=r"list\.pdq"):
            current.read()
    (tmp_path / "list.pdq").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        current.read()
    with pytest.raises(UserError, match="absent"):
        CurrentDeletionList(tmp_path / "absent.pdq", tmp_path)


def test_the_list_of_a_release_may_come_later_and_not_go(tmp_path: Path) -> None:
    current = CurrentDeletionList(None, tmp_path)
    assert current.read() is None
    write_list(tmp_path / FILE, 1)
    assert current.read() is not None
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match=FILE):
        current.read()


def test_a_listed_image_is_not_shown_and_a_sentence_says_why(
    tmp_path: Path, toy_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = load_module(write_generator_run(tmp_path / "generator", **dict(toy_checkpoints)))
    monkeypatch.setattr(drawing.Drawer, "_sample", lambda self, batch: np.stack([picture(each.seed) for each in batch]))
    listed = CurrentDeletionList(write_list(tmp_path / "list.pdq", 6), tmp_path)
    service = DrawingService(module, ImageStore(tmp_path / "images"), listed)
    with caplog.at_level(logging.DEBUG):
        found = service.draw(DrawingRequest("a secret", 5, images=3, steps=1).checked(), lambda *_: None)
    assert [bool(image.name) for image in found] == [True, False, True]
    page = page_parts.images(found, GERMAN)
    assert page.count("<img") == 2 and "Startwert 6: Dieses Bild steht auf der Löschliste" in page
    assert "secret" not in caplog.text

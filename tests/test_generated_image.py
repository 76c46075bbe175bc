"""Every writer of generated images marks them: watermark, texts of the PNG, content credentials."""

import ast
import io
import logging
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from leam_mm.errors import UserError
from leam_mm.marking.content_credentials import EDITED, GENERATED, read
from leam_mm.marking.generated_image import SOURCE_TYPE, WATERMARK, generator_name, save_generated
from leam_mm.marking.signing_key import VARIABLE, default_key, make_key, read_key

ROOT = Path(__file__).parent.parent


def smooth(side: int = 128) -> Image.Image:
    return Image.effect_noise((9, 7), 60).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def test_three_marks_are_in_the_file(tmp_path: Path) -> None:
    image = smooth()
    returned = save_generated(image, tmp_path / "new" / "x.png", "Größe " * 100, {"Drawing": "1"}, "ab" * 32)
    with Image.open(tmp_path / "new" / "x.png") as found:
        assert found.tobytes() == returned.tobytes()
        assert found.info["DigitalSourceType"] == SOURCE_TYPE and found.info["Drawing"] == "1"
        assert found.info["Model"].startswith("Größe") and len(found.info["Model"]) == 300
        assert WATERMARK.score(np.asarray(found)) > 3 and np.abs(np.asarray(found).astype(int) - image).mean() < 4
    credentials = read((tmp_path / "new" / "x.png").read_bytes(), "PNG")
    assert credentials is not None and credentials.state == "Valid" and credentials.generated
    assert credentials.sha256 == "ab" * 32 and credentials.model.startswith("Größe")
    assert credentials.program.startswith("leam_mm ") and credentials.when.endswith("Z")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.png"]


def test_credentials_of_an_edited_image_are_kept(tmp_path: Path) -> None:
    save_generated(smooth(), tmp_path / "first.png", "first")
    source = (tmp_path / "first.png").read_bytes()
    save_generated(smooth(), tmp_path / "second.png", "second", source=source)
    content = (tmp_path / "second.png").read_bytes()
    credentials = read(content, "PNG")
    assert credentials is not None and credentials.model == "second" and credentials.generated
    assert credentials.ingredients == ("image that was edited",) and credentials.state == "Valid"
    assert b"c2pa.opened" in content and b"compositeWithTrainedAlgorithmicMedia" in content
    for name, source_type in (("first.png", GENERATED), ("second.png", EDITED)):  # as the signed credentials say
        with Image.open(tmp_path / name) as found:
            assert found.info["DigitalSourceType"] == source_type
            assert f'DigitalSourceType="{source_type}"' in found.info["XML:com.adobe.xmp"]
    damaged = source.replace(b"c2pa.created", b"c2pa.creatad")
    save_generated(smooth(), tmp_path / "third.png", "third", source=damaged)
    third = read((tmp_path / "third.png").read_bytes(), "PNG")
    assert third is not None and third.model == "third"


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_sources_of_other_formats(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    smooth().save(buffer, kind)
    save_generated(smooth(), tmp_path / "x.png", "m", source=buffer.getvalue())
    credentials = read((tmp_path / "x.png").read_bytes(), "PNG")
    assert credentials is not None and credentials.ingredients == ("image that was edited",)


def test_without_a_place_for_a_key_the_other_marks_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        for name in ("a.png", "b.png"):
            save_generated(smooth(), tmp_path / name, "m")
    assert len([each for each in caplog.records if "without content credentials" in each.message]) == 1
    with Image.open(tmp_path / "b.png") as found:
        assert WATERMARK.score(np.asarray(found)) > 3 and found.info["DigitalSourceType"] == SOURCE_TYPE
    assert read((tmp_path / "b.png").read_bytes(), "PNG") is None


def test_a_named_key_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match=f"{VARIABLE}=.*make-key"):
        save_generated(smooth(), tmp_path / "a.png", "m")
    make_key(tmp_path / "mine.pem", "es256", "Institute of Optics")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "mine.pem"))
    save_generated(smooth(), tmp_path / "a.png", "m")
    credentials = read((tmp_path / "a.png").read_bytes(), "PNG")
    assert credentials is not None and credentials.signer == "Institute of Optics"


def _certificate(folder: str) -> str:
    os.environ["XDG_CONFIG_HOME"] = folder
    return default_key().chain


def test_many_processes_make_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.map(_certificate, [str(tmp_path)] * 12)
    path = tmp_path / "leam_mm" / "marking.pem"
    assert set(found) == {read_key(path).chain} and path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["marking.pem"]


def test_names_of_generators() -> None:
    run = {"path": "runs/quickstart/generator/checkpoints/last.ckpt", "sha256": "ab" * 32}
    assert generator_name(SimpleNamespace(checkpoint_evidence=run)) == "generator abababababab"
    release = SimpleNamespace(checkpoint_evidence={"path": "releases/mine", "sha256": "cd" * 32})
    assert generator_name(release) == "mine cdcdcdcdcdcd"
    assert generator_name(SimpleNamespace()) == "SimpleNamespace in training"


# Files that may write an image, each with its reason; every other generated image goes through save_generated.
WRITERS = {
    "leam_mm/marking/generated_image.py": "writes the marks",
    "leam_mm/evaluators/image_grid.py": "real images and reconstructions, see save_image",
    "leam_mm/evaluators/contact_sheet.py": "calls save_image for real images and reconstructions",
    "leam_mm/callbacks/sample_grid.py": "hands the marked grid to TensorBoard",
    "leam_mm/inference/result_page.py": "thumbnails of the user's own images",
    "leam_mm/documents/dataset_statistics.py": "thumbnails of the training data",
    "leam_mm/marking/image_changes.py": "encodes in memory, as a change that a mark must survive",
    "leam_mm/release/onnx_folder.py": "writes networks",
    "leam_mm/release/verify_release.py": "keeps digests, no images",
    "leam_mm/launch/node_checks.py": "noise, whose decoding the doctor times",
    "leam_mm/audits/altered_copies.py": "encodes in memory, as a copy that the search must find",
    "leam_mm/evaluators/clip_benchmark_writer.py": "labelled images of the user, for another program",
    "leam_mm/controls/control_images.py": "images drawn by arithmetic, for controls",
    "leam_mm/controls/control_shards.py": "images drawn by arithmetic, for controls",
    "leam_mm/controls/judge_controls.py": "scenes drawn by arithmetic, in a folder that is removed",
    "leam_mm/controls/personal_data_controls.py": "images drawn by arithmetic, for controls",
    "leam_mm/controls/recognition_controls.py": "images drawn by arithmetic, for controls",
    "leam_mm/controls/smooth_images.py": "images drawn by arithmetic, for controls",
}
FUNCTIONS = {"imwrite", "imsave", "write_png", "write_jpeg", "save_image", "add_image", "encode_png", "encode_jpeg"}


def writes_images(file: Path) -> bool:
    """Whether a file calls ``save`` of an object, except of numpy, torch and onnx, or a function that writes images."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = (
                getattr(getattr(node.func, "value", None), "id", "") if isinstance(node.func, ast.Attribute) else "np"
            )
            if (name == "save" and owner not in ("np", "torch", "onnx")) or name in FUNCTIONS:
                return True
    return False


def test_nothing_else_writes_generated_images() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "leam_mm").rglob("*.py") if writes_images(path)}
    assert found == WRITERS.keys()


def test_the_search_for_writers_finds_them(tmp_path: Path) -> None:
    for line in (
        "image.save(path)",
        'Image.fromarray(x).save(buffer, "WEBP")',
        "cv2.imwrite(p, x)",
        "save_image(x, p)",
    ):
        (tmp_path / "a.py").write_text(line)
        assert writes_images(tmp_path / "a.py"), line
    (tmp_path / "a.py").write_text("np.save(p, x)\ntorch.save(x, p)")
    assert not writes_images(tmp_path / "a.py")

"""`evaluate.py images`: folders, shards and statistics of any kind, the record beside every number, one-line errors."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn
from toys.images import deep_png, encoded_image, soft_image
from toys.shards import write_toy_shards

import evaluate
from leam_mm.errors import UserError
from leam_mm.evaluate_commands import images_command
from leam_mm.evaluators.compared_images import ComparedImages, read_rgb
from leam_mm.evaluators.image_features import NetworkFeatures


class Thumbnail(NetworkFeatures):
    """Twelve features: the colours of four quarters; quick, and with a protocol of its own."""

    protocol, weights_sha256 = "thumbnail of 2 x 2", "abc"

    def open(self) -> None:
        """Nothing to load."""

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2)

    def compute(self, prepared: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"features": prepared.flatten(1), "spatial": prepared[:, :1].flatten(1), "logits": prepared.flatten(1)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of 110 images: RGB, grey, palette and transparent, of several sizes, one set in sub-folders."""
    root = tmp_path_factory.mktemp("sets")
    for name, first in (("a", 0), ("b", 1000)):
        for number in range(110):
            image = soft_image(first + number, 24 + number % 3).convert(("RGB", "L", "P", "RGBA")[number % 4])
            path = root / name / (str(number % 2) if name == "b" else "") / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_command, "EfficientNetLite0", Thumbnail)


def run(output: Path, real: Path, generated: Path, *more: str) -> dict[str, dict[str, Any]]:
    evaluate.main(["images", "--real", str(real), "--generated", str(generated), "--output", str(output), *more])
    lines = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    return {line["name"]: line for line in lines}


def test_every_number_has_an_interval_and_all_that_must_be_equal(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "out", folders / "a", folders / "b", "--wavelet-size", "16", "--background", "#ff0000")
    assert set(found) == {
        f"images/{name}"
        for name in (
            *("frechet_distance", "kernel_distance", "mind", "precision", "recall", "density", "coverage"),
            *("frechet_distance_infinity", "spatial_frechet_distance", "inception_score", "wavelet_distance"),
        )
    }
    for line in found.values():
        assert line["low"] <= line["value"] <= line["high"] and line["samples"] == 110
        record = line["compared"]
        assert record["features"] == "thumbnail of 2 x 2" and record["weights_sha256"] == "abc"
        assert record["batch_size"] == 32 and record["background"] == "#ff0000" and record["images_in_both_sets"] == 0
        assert record["real"]["images"] == 110 and record["real"]["transparent"] == 27
        assert record["real"]["sha256"] != record["generated"]["sha256"]
        assert {"torch", "pillow", "numpy", "timm"} <= record["versions"].keys()
    assert "transparency on #ff0000" in found["images/mind"]["note"]
    assert "indicative" not in found["images/frechet_distance"]["note"]  # 110 images of 12 features
    assert (tmp_path / "out" / "report.html").is_file()
    assert "images/wavelet_distance" in capsys.readouterr().out


def test_statistics_are_written_and_read(folders: Path, tmp_path: Path) -> None:
    direct = run(tmp_path / "one", folders / "a", folders / "b", "--statistics", "--wavelet-size", "0")
    own = tmp_path / "one" / "real.npz"
    with numpy.load(own, allow_pickle=False) as file:  # as pytorch-fid reads it
        mean, covariance = file["mu"][:], file["sigma"][:]
    assert mean.shape == (12,) and covariance.shape == (12, 12)
    numpy.savez(tmp_path / "theirs.npz", mu=mean, sigma=covariance)
    expected = direct["images/frechet_distance"]["value"]
    for name, path in (("own", own), ("theirs", tmp_path / "theirs.npz")):
        found = run(tmp_path / name, path, folders / "b")
        names = ("frechet_distance", "frechet_distance_infinity", "inception_score")  # the score is of one set
        assert set(found) == {f"images/{each}" for each in names}
        infinity = found["images/frechet_distance_infinity"]
        assert infinity["value"] == pytest.approx(direct["images/frechet_distance_infinity"]["value"], rel=1e-6)
        assert infinity["low"] is None and "a finite number of real ones is not" in infinity["note"]
        line = found["images/frechet_distance"]
        assert line["value"] == pytest.approx(expected, rel=1e-9) and line["low"] is None
        assert ("does not state the number" in line["note"]) == (name == "theirs")
    both = run(tmp_path / "both", own, tmp_path / "one" / "generated.npz", "--features", "none")
    assert both["images/frechet_distance"]["value"] == pytest.approx(expected, rel=1e-9)


def test_a_stream_keeps_nothing_and_gives_the_same(folders: Path, tmp_path: Path) -> None:
    kept = run(tmp_path / "kept", folders / "a", folders / "b", "--wavelet-size", "16")
    found = run(tmp_path / "stream", folders / "a", folders / "b", "--wavelet-size", "16", "--stream")
    names = {"images/frechet_distance", "images/spatial_frechet_distance", "images/wavelet_distance"}
    assert set(found) == names
    for name in names:
        assert found[name]["value"] == pytest.approx(kept[name]["value"], rel=1e-6)
        assert found[name]["low"] is None and "were not kept" in found[name]["note"]


def test_shards_hold_images_too_and_a_limit_is_even(folders: Path, tmp_path: Path) -> None:
    write_toy_shards(tmp_path / "shards", 40)
    found = run(tmp_path / "out", tmp_path / "shards", folders / "b", "--limit", "20", "--wavelet-size", "16")
    assert found["images/frechet_distance"]["value"] is None
    assert "20 images in each set, at least 100 are needed" in found["images/frechet_distance"]["note"]
    assert found["images/kernel_distance"]["value"] is not None
    assert found["images/kernel_distance"]["samples"] == 20
    names = [name for name, _ in ComparedImages(folders / "a", limit=5).images()]
    assert names == ["000.png", "022.png", "044.png", "066.png", "088.png"]


def test_transparency_lies_on_the_background_and_16_bits_are_refused() -> None:
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    pixels, transparent = read_rgb(encoded_image(image), (0, 255, 0))
    assert transparent and pixels[:, 0].T.tolist() == [[0, 255, 0], [10, 20, 30]]
    grey, transparent = read_rgb(encoded_image(Image.new("L", (2, 2), 7)), (0, 0, 0))
    assert grey.unique().tolist() == [7] and grey.shape == (3, 2, 2) and not transparent
    with pytest.raises(UserError, match="more than 8 bits"):
        read_rgb(deep_png(1, 40000), (0, 0, 0))
    with pytest.raises(UserError, match="unreadable image"):
        read_rgb(b"\x89PNG\r\n\x1a\n nothing", (0, 0, 0))


def npz(path: Path, **arrays: Any) -> Path:
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": numpy.zeros(5), "sigma": numpy.eye(5)}, "has 5 features, the generated one 12"),
        ({"mu": numpy.zeros(5), "sigma": numpy.eye(4)}, r"mu of shape \(5,\) and sigma of shape \(4, 4\)"),
        ({"mu": numpy.full(12, numpy.nan), "sigma": numpy.eye(12)}, "not finite"),
        ({"mu": numpy.zeros(12), "sigma": numpy.triu(numpy.ones((12, 12)))}, "sigma is no covariance"),
        ({"mu": numpy.zeros(12)}, "has no sigma"),
        ({"mu": numpy.array([{}], object), "sigma": numpy.eye(1)}, "holds no mean and covariance"),
        ({"mu": numpy.zeros(12), "sigma": numpy.eye(12), "n": numpy.int64(-3)}, "n is -3"),
        ({"mu": numpy.zeros(12), "sigma": numpy.eye(12), "n": numpy.float64(1e300)}, "n is 1"),
        ({"mu": numpy.full(12, 1e300), "sigma": numpy.eye(12)}, "values above 1e"),
        ({"mu": numpy.zeros(12), "sigma": 2 - numpy.eye(12)}, "negative eigenvalues"),
        (
            {"mu": numpy.zeros(12), "sigma": numpy.eye(12), "record": numpy.frombuffer(b'{"features": {}}', "u1")},
            "features of its record",
        ),
    ],
)
def test_wrong_statistics_are_one_line(folders: Path, tmp_path: Path, arrays: dict, message: str) -> None:
    path = npz(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", path, folders / "b")
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_wrong_sets_are_one_line(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = folders / "a", folders / "b", tmp_path / "out"

    def fails(message: str, real: Path, generated: Path, *more: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            run(out, real, generated, *more)
        assert "\n" not in str(error.value)

    (tmp_path / "empty").mkdir()
    fails("holds no image", tmp_path / "empty", b)
    fails("does not exist", tmp_path / "missing", b)
    fails("are the same", a, folders / "b" / ".." / "a")
    fails("lies inside", folders, b)
    shutil.copytree(a, tmp_path / "copy")
    fails("hold the same images", a, tmp_path / "copy")
    (tmp_path / "one").mkdir()
    shutil.copy(a / "000.png", tmp_path / "one")
    fails("holds 1 readable images, a distance needs 8", a, tmp_path / "one")
    (tmp_path / "copy" / "022.png").write_bytes(b"junk")
    fails("022.png: .*--skip-unreadable", tmp_path / "copy", b)
    found = run(tmp_path / "skipped", tmp_path / "copy", b, "--skip-unreadable", "--features", "none")
    assert found["images/wavelet_distance"]["compared"]["real"]["unreadable"] == 1
    assert "1 unreadable images left out" in found["images/wavelet_distance"]["note"]
    fails("--background nocolour: is no colour", a, b, "--background", "nocolour")
    fails("needs --weights", a, b, "--features", "inception")
    fails("needs --weights", a, b, "--features", "clip")
    fails("takes no --weights", a, b, "--weights", str(a / "000.png"))
    fails("holds no plain weights", a, b, "--features", "inception", "--weights", str(a / "000.png"))
    fails("there is nothing to measure", a, b, "--features", "none", "--wavelet-size", "0")
    fails("give a multiple of 16", a, b, "--wavelet-size", "20")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    fails("holds no mean and covariance", tmp_path / "junk.npz", b)
    monkeypatch.setattr(Thumbnail, "compute", lambda self, prepared: {"features": prepared.flatten(1) * float("nan")})
    fails("000.png: its features are not finite", a, b)
    assert not (out / "results.jsonl").exists()


def test_features_made_in_two_ways_are_not_compared(folders: Path, tmp_path: Path) -> None:
    run(tmp_path / "one", folders / "a", folders / "b", "--statistics", "--wavelet-size", "0")
    Thumbnail.protocol = "another resize"
    try:
        with pytest.raises(UserError, match="made in different ways"):
            run(tmp_path / "two", tmp_path / "one" / "real.npz", folders / "b")
    finally:
        Thumbnail.protocol = "thumbnail of 2 x 2"


def test_features_of_length_1_have_cmmd(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unit(Thumbnail):
        unit_length = True

        def compute(self, prepared: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": nn.functional.normalize(prepared.flatten(1).double(), dim=1)}

    monkeypatch.setattr(images_command, "ClipFeatures", lambda weights: Unit())
    settings = ("--features", "clip", "--weights", str(tmp_path), "--wavelet-size", "0")
    found = run(tmp_path / "out", folders / "a", folders / "b", *settings)
    assert found["images/cmmd"]["value"] > 0 and "images/spatial_frechet_distance" not in found


def test_images_in_both_sets_are_counted(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "b", tmp_path / "mixed")
    for number in range(4):
        shutil.copy(folders / "a" / f"{number:03d}.png", tmp_path / "mixed" / f"other{number}.png")
    found = run(tmp_path / "out", folders / "a", tmp_path / "mixed", "--features", "none", "--wavelet-size", "16")
    line = found["images/wavelet_distance"]
    assert line["compared"]["images_in_both_sets"] == 4 and "4 images are in both sets" in line["note"]


def test_results_are_appended_to_a_file_of_anyone(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe cut off")
    with pytest.raises(UserError, match="line 1"):  # of the report, after the numbers were saved
        run(tmp_path, folders / "a", folders / "b")
    first, *found = (tmp_path / "results.jsonl").read_bytes().splitlines()
    assert first == b"\xff\xfe cut off" and all(json.loads(line)["name"].startswith("images/") for line in found)

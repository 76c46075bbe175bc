"""python evaluate.py encoder: any folder of images, every number with its protocol, one-line errors for bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toys.class_folders import write_class_folder, write_tars
from toys.encoders import RiggedEncoder, tiny_clip
from toys.images import COLOURS, GERMAN, coloured_square, encoded_image
from toys.shards import write_toy_shards

from evaluate import main
from leam_mm.errors import UserError
from leam_mm.evaluate_commands.encoder_command import KINDS, EncoderMeasures, EncoderOptions
from leam_mm.evaluators.class_names import name_classes
from leam_mm.evaluators.embedded_images import embed, probe_data
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import read_image_set
from leam_mm.release.encoder_folder import write_encoder

CLASSES = sorted(COLOURS)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(toy_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with random weights."""
    folder = tmp_path_factory.mktemp("model") / "open_clip"
    write_encoder(tiny_clip(toy_tokenizer), folder, "lab/model")  # type: ignore[arg-type]
    return folder


def evaluate(model: Path, images: Path, output: Path, *words: str) -> dict[str, dict]:
    """Run the command, and return the lines of results.jsonl by name."""
    main(["encoder", "--model", str(model), "--images", str(images), "--output", str(output), *words])
    lines = (output / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["name"]: row for row in map(json.loads, lines)}


def test_every_layout_gives_the_same_numbers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same images as class sub-folders, as tars and as shards, with the same names."""
    write_toy_shards(tmp_path / "shards", 24)
    folders, tars = tmp_path / "folders", []
    for number in range(24):
        colour = CLASSES[number % 4]
        (folders / colour).mkdir(parents=True, exist_ok=True)
        (folders / colour / f"{number:03}.png").write_bytes(coloured_square(colour, number))
        tars.append({"png": coloured_square(colour, number), "cls": str(number % 4).encode()})
    write_tars(tmp_path / "tars", "test", [tars[:10], tars[10:]])
    (tmp_path / "tars/classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    found = {}
    more = {"folders": [], "tars": ["--train-split", "test"], "shards": ["--classes", str(tmp_path / "names.txt")]}
    for name, words in more.items():
        rows = evaluate(model, tmp_path / name, tmp_path / f"out_{name}", "--shots", "1", "2", "--draws", "2", *words)
        found[name] = {key: (row["value"], row["low"], row["high"], row["samples"]) for key, row in rows.items()}
        for row in rows.values():
            assert row["note"] and (row["value"] is None or row["low"] - 1e-12 <= row["value"] <= row["high"] + 1e-12)
    assert "class sub-folders: 24 images of 4 classes" in capsys.readouterr().out
    expected = {"zero_shot/top1/en", "zero_shot/mean_per_class/en", "linear_probe/top1", "linear_probe/mean_per_class",
                "few_shot/1_shots/top1", "few_shot/2_shots/top1"}  # fmt: skip
    summaries = {f"zero_shot/top1/{part}" for part in ("mean", "min", "min_over_mean")}
    assert expected | summaries | {"retrieval"} == set(found["folders"])
    assert found["folders"]["retrieval"][0] is None
    for name in expected:
        assert found["folders"][name] == found["tars"][name] == found["shards"][name], name
        assert found["folders"][name][0] is not None
    assert found["shards"]["retrieval/image_to_text/r1/de"][3] == 24


def test_the_protocol_stands_beside_every_number(model: Path, tmp_path: Path) -> None:
    write_class_folder(tmp_path / "images")
    rows = evaluate(model, tmp_path / "images", tmp_path / "out", "--languages", "en", "de")
    assert "there are no class names in this language" in rows["zero_shot/top1/de"]["note"]
    assert rows["zero_shot/top1/de"]["value"] is None
    for row in rows.values():
        protocol = row["protocol"]
        assert protocol["layout"] == "class sub-folders" and protocol["images"] == 16
        assert protocol["image_preparation"].startswith("shorter side resized, centre cropped, bicubic, upright")
        assert protocol["image_mean"] == [0.5, 0.4, 0.3] and protocol["image_size"] == 32
        assert {len(protocol[key]) for key in ("images_sha256", "class_names_sha256")} == {64}
        assert list(protocol["templates_sha256"]) == ["en"]
        assert len(row["checkpoints"]["clip"]["sha256"]) == 64
        assert row["settings"]["split"] == "test"
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n")
    other = evaluate(model, tmp_path / "images", tmp_path / "other", "--templates", str(tmp_path / "templates.txt"),
                     "--measure", "zero_shot")  # fmt: skip
    changed = other["zero_shot/top1/en"]["protocol"]
    assert changed["templates_sha256"] != protocol["templates_sha256"]
    assert changed["images_sha256"] == protocol["images_sha256"]
    assert {name.partition("/")[0] for name in other} == {"zero_shot"}
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Linear probe · top-1" in page and "Confusion matrix" in page


def rigged(spoken: dict[str, str]) -> RiggedEncoder:
    """An encoder that sees the colour of a square, and knows some words."""

    def colour(image: torch.Tensor) -> torch.Tensor:
        centres = torch.tensor([COLOURS[name] for name in CLASSES]).float()
        # The square lies on white: its colour is the darkest one.
        flat = image.flatten(2).transpose(1, 2)
        darkest = flat.gather(1, flat.sum(dim=2).argmin(dim=1)[:, None, None].expand(-1, 1, 3))[:, 0]
        return torch.cdist(darkest, centres).argmin(dim=1)

    found = RiggedEncoder(
        colour, lambda text: next((CLASSES.index(c) for w, c in spoken.items() if w in text), 4), 5, 16
    )
    found.image_mean = found.image_std = torch.ones(3)  # type: ignore[attr-defined]
    return found


def measured(encoder: RiggedEncoder, images: Path, options: EncoderOptions) -> dict[str, object]:
    found = read_image_set(images, "test", ImagePreparation())
    names = name_classes(found, options.classes, None, options.languages)
    measures = EncoderMeasures(options, encoder, embed(encoder, found, 8, CPU), names, CPU)
    return {metric.name: metric.value for kind in options.measure for metric in measures.measure(kind)}


def test_an_encoder_that_knows_the_colours_gets_everything(tmp_path: Path) -> None:
    images = write_class_folder(tmp_path / "images", 14)
    (tmp_path / "names.json").write_text(json.dumps({"de": [GERMAN[name] for name in CLASSES], "en": CLASSES}))
    options = EncoderOptions("", images, tmp_path, tmp_path / "names.json", shots=[1, 4, 9], draws=2)
    english = measured(rigged({name: name for name in CLASSES}), images, options)
    for name in ("zero_shot/top1/en", "zero_shot/mean_per_class/en", "linear_probe/top1", "few_shot/4_shots/top1"):
        assert english[name] == 1.0, name
    assert english["zero_shot/top1/de"] == 0.0 and english["zero_shot/top1/mean"] == 0.5
    assert english["few_shot/9_shots/top1"] is None  # at most seven of the 14 images of a class are for training
    both = measured(
        rigged({name: name for name in CLASSES} | {GERMAN[name]: name for name in CLASSES}), images, options
    )
    assert both["zero_shot/top1/de"] == 1.0


def test_test_images_are_never_trained_on(tmp_path: Path) -> None:
    """A training image whose file is a test image is left out; without a split equal files lie on one side."""
    write_class_folder(tmp_path / "test", 2)
    write_class_folder(tmp_path / "train", 3, first=1)  # its first square is the second one of the test images
    encoder = rigged({})
    test, train = (
        embed(encoder, read_image_set(tmp_path, one, ImagePreparation()), 8, CPU) for one in ("test", "train")
    )
    data = probe_data(test, train)
    assert not isinstance(data, str)
    assert len(data.train) == 8 and not set(data.train_digests) & set(test.digests)
    assert "without 4 whose file is a test image" in data.note
    same = probe_data(test, test)
    assert isinstance(same, str) and "has no training image" in same
    for colour in CLASSES:
        for number in range(2):
            copy = (tmp_path / "test" / colour / f"{number}.png").read_bytes()
            (tmp_path / "test" / colour / f"{number}_again.png").write_bytes(copy)
    doubled = embed(encoder, read_image_set(tmp_path, "test", ImagePreparation()), 8, CPU)
    divided = probe_data(doubled, None)
    assert not isinstance(divided, str)
    tested = {doubled.digests[row] for row, one in enumerate(doubled.images.samples) if one.key in divided.test_keys}
    assert len(divided.train) == len(divided.test) == 8 and not tested & set(divided.train_digests)


def test_probes_without_training_images_say_so(tmp_path: Path) -> None:
    write_class_folder(tmp_path / "images/test", 4)
    options = EncoderOptions("", tmp_path / "images", tmp_path, measure=["linear_probe", "few_shot"])
    found = read_image_set(tmp_path / "images", "test", ImagePreparation())
    measures = EncoderMeasures(options, rigged({}), embed(rigged({}), found, 8, CPU), None, CPU)
    for kind in options.measure:
        (metric,) = measures.measure(kind)
        assert metric.value is None and "no training images" in metric.note and "--split" in metric.note


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "is not a folder"),
        ("empty", "holds no image"),
        ("one class", "has one class"),
        ("broken image", r"image red/0.png: .*repair or remove it"),
        ("unknown language", "unknown language"),
        ("named twice", "is named twice"),
        ("label", "labels count from 0"),
    ],
)
def test_bad_input_is_one_line(model: Path, tmp_path: Path, fault: str, reason: str) -> None:
    images, words = tmp_path / "images", list[str]()
    if fault not in ("missing", "label"):
        write_class_folder(images)
    if fault in ("empty", "one class"):
        for colour in CLASSES[1 if fault == "one class" else 0 :]:
            for file in (images / colour).iterdir():
                file.unlink()
            (images / colour).rmdir()
    if fault == "broken image":
        (images / "red/0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    if fault == "unknown language":
        words = ["--languages", "xx"]
    if fault == "named twice":
        (tmp_path / "names.txt").write_text("a\nb\na\nc\n")
        words = ["--classes", str(tmp_path / "names.txt")]
    if fault == "label":
        write_tars(images, "test", [[{"png": coloured_square("red", 1), "cls": str(n).encode()} for n in range(3)]])
        (images / "classnames.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=reason) as caught:
        evaluate(model, images, tmp_path / "out", *words)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out/results.jsonl").exists()


def test_a_diverged_encoder_is_refused(model: Path, tmp_path: Path) -> None:
    broken, images = tmp_path / "broken", write_class_folder(tmp_path / "images")
    shutil.copytree(model, broken)
    weights = load_file(broken / "open_clip_model.safetensors")
    name = next(key for key in weights if key.startswith("visual.") and weights[key].ndim == 2)
    for value, reason in ((float("nan"), "NaN or infinite"), (3e38, "embeddings that are not finite")):
        save_file(weights | {name: torch.full_like(weights[name], value)}, broken / "open_clip_model.safetensors")
        with pytest.raises(UserError, match=reason):
            evaluate(broken, images, tmp_path / "out")


def test_wrong_options_are_refused(model: Path, tmp_path: Path) -> None:
    images = write_class_folder(tmp_path / "images")
    for words in (["--measure", "speed"], ["--shots", "0"], ["--draws", "1"], ["--train-images", str(tmp_path / "no")]):
        with pytest.raises(UserError):
            evaluate(model, images, tmp_path / "out", *words)
    assert set(KINDS) == set(EncoderOptions("", images, images).measure)


def test_a_random_encoder_has_chance_in_its_interval(toy_tokenizer: Path, tmp_path: Path) -> None:
    """Images of noise carry nothing: zero-shot and probe lie at chance."""
    generator = np.random.default_rng(0)
    for number in range(400):
        folder = tmp_path / "images" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        (folder / f"{number}.png").write_bytes(encoded_image(noise))
    module = tiny_clip(toy_tokenizer)
    found = read_image_set(tmp_path / "images", "test", ImagePreparation())
    options = EncoderOptions("", tmp_path / "images", tmp_path, shots=[1, 8])
    names = name_classes(found, None, None, [])
    measures = EncoderMeasures(options, module, embed(module, found, 64, CPU), names, CPU)
    for kind in ("zero_shot", "linear_probe", "few_shot"):
        for metric in measures.measure(kind):
            if metric.unit == "ratio":
                continue
            assert metric.low is not None and metric.high is not None and metric.low <= 0.25 <= metric.high, metric.name

"""leam_mm/draw.py: images for prompts, their record, what a second run keeps, edits and marks."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys.generators import write_generator_run
from toys.recipes import ROOT

from leam_mm.checkpoint import load_module
from leam_mm.draw import main, parse_size
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256
from leam_mm.inference import drawing
from leam_mm.marking.content_credentials import read
from leam_mm.marking.generated_image import SOURCE_TYPE, WATERMARK

GERMAN = ["ein roter Kreis", "ein blaues Quadrat über einem gelben Stern", ""]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory, toy_checkpoints: dict[str, Path]) -> Path:
    return write_generator_run(tmp_path_factory.mktemp("draw") / "generator", **dict(toy_checkpoints))


def run_draw(generator: Path, output: Path, *words: object) -> None:
    main(["--generator", str(generator), "--output", str(output), "--steps", "3", *map(str, words)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pixels(folder: Path) -> dict[str, bytes]:
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("*.png"))}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "drawings.jsonl").read_text().splitlines()]


def test_the_same_command_gives_the_same_pixels_and_the_record_says_how(generator: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run_draw(generator, tmp_path / name, "--prompt", *GERMAN, "--images", 2, "--seed", 5, "--grid")
    first = content(tmp_path / "one")
    assert pixels(tmp_path / "one") == pixels(tmp_path / "two")
    records = [[{**row, "sha256": None} for row in lines(tmp_path / name)] for name in ("one", "two")]
    assert records[0] == records[1]
    names = [f"prompt{number:04d}_seed{seed}.png" for number in (1, 2, 3) for seed in (5, 6)]
    assert sorted(first) == sorted([*names, "drawings.jsonl", "grid.png"])
    assert len({pixels(tmp_path / "one")[name] for name in names}) == 6
    rows = lines(tmp_path / "one")
    assert [row["image"] for row in rows] == names and [row["prompt"] for row in rows[::2]] == GERMAN
    assert rows[0]["generator_sha256"] == load_module(generator).checkpoint_evidence["sha256"]
    assert {"steps", "guidance", "width", "height", "edit", "seed"} <= rows[0].keys()
    assert rows[0]["sha256"] == bytes_sha256(first[names[0]])
    assert rows[0]["pixels_sha256"] == bytes_sha256(pixels(tmp_path / "one")[names[0]])


def test_images_are_those_of_the_module_whatever_the_batch(generator: Path, tmp_path: Path) -> None:
    run_draw(generator, tmp_path / "out", "--prompt", *GERMAN, "--seed", 7, "--batch-size", 2)
    module = load_module(generator, "ema_denoiser")
    for number, prompt in enumerate(GERMAN, 1):
        expected = module.sample([prompt], seed=7, steps=3, guidance=4.0)[0]  # type: ignore[operator]
        with Image.open(tmp_path / "out" / f"prompt{number:04d}_seed7.png") as image:
            found = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        plain = (expected * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        marked = torch.from_numpy(WATERMARK.embed(plain)).permute(2, 0, 1)
        assert (found.int() - marked.int()).abs().max() <= 2


def test_generated_images_say_so(generator: Path, tmp_path: Path) -> None:
    run_draw(generator, tmp_path / "out", "--prompt", "x", "--grid")
    for name in ("prompt0001_seed0.png", "grid.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.info["DigitalSourceType"] == SOURCE_TYPE and "generated" in image.info["Comment"]
            assert image.info["Model"].startswith("generator ")
        credentials = read((tmp_path / "out" / name).read_bytes(), "PNG")
        assert credentials is not None and credentials.state == "Valid" and credentials.generated
        assert credentials.sha256 == load_module(generator).checkpoint_evidence["sha256"]


def test_a_run_continues_and_never_overwrites_silently(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffein Kreis\r\n\r\nzwei Kreise\ndrei Kreise\nvier Kreise", encoding="utf-8")
    words = ("--prompts", prompts, "--batch-size", 2)
    run_draw(generator, tmp_path / "whole", *words)
    plain, calls = drawing.save_generated, []

    def stopping(*args: object) -> None:
        if len(calls) == 1:
            raise InterruptedError
        calls.append(args)
        plain(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(drawing, "save_generated", stopping)
    with pytest.raises(InterruptedError):
        run_draw(generator, tmp_path / "cut", *words)
    monkeypatch.undo()
    run_draw(generator, tmp_path / "cut", *words)
    assert "keeps 1 images" in capsys.readouterr().out
    assert pixels(tmp_path / "cut") == pixels(tmp_path / "whole") and len(lines(tmp_path / "cut")) == 4
    before = content(tmp_path / "cut")
    with pytest.raises(UserError, match="hold other images"):
        run_draw(generator, tmp_path / "cut", *words, "--guidance", "2")
    run_draw(generator, tmp_path / "cut", *words)
    assert content(tmp_path / "cut") == before
    run_draw(generator, tmp_path / "cut", *words, "--guidance", "2", "--overwrite")
    assert "replaces 4 images" in capsys.readouterr().out
    assert {row["guidance"] for row in lines(tmp_path / "cut")} == {2.0}
    (tmp_path / "cut" / "prompt0001_seed9.png").write_bytes(b"my own file")
    with pytest.raises(UserError, match="hold other images"):
        run_draw(generator, tmp_path / "cut", "--prompt", "x", "--seed", "9")
    run_draw(generator, tmp_path / "cut", "--prompt", "x", "--seed", "10")
    assert len(lines(tmp_path / "cut")) == 5


def test_editing_keeps_what_the_mask_keeps(generator: Path, tmp_path: Path) -> None:
    photo, mask = Image.new("RGB", (40, 20), (200, 30, 30)), Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    photo.save(tmp_path / "photo.jpg")
    mask.save(tmp_path / "mask.png")
    edit = ("--prompt", "x", "--edit", tmp_path / "photo.jpg")
    run_draw(generator, tmp_path / "kept", *edit, "--strength", 0)
    run_draw(generator, tmp_path / "half", *edit, "--strength", 1, "--mask", tmp_path / "mask.png")
    kept, half = (
        np.array(Image.open(tmp_path / name / "prompt0001_seed0.png")).astype(int) for name in ("kept", "half")
    )
    assert np.abs(kept[:, :8] - half[:, :8]).max() <= 16  # the watermarks differ
    assert np.abs(kept[:, 8:] - half[:, 8:]).max() > 32
    assert lines(tmp_path / "half")[0]["edit"]["strength"] == 1


def test_sizes_other_than_those_of_training(generator: Path, tmp_path: Path) -> None:
    run_draw(generator, tmp_path / "wide", "--prompt", "x", "--size", "32x16")
    with Image.open(tmp_path / "wide" / "prompt0001_seed0.png") as image:
        assert image.size == (32, 16)
    assert parse_size(None) is None and parse_size("64") == (64, 64) and parse_size("64x96") == (64, 96)
    for wrong in ("0x4", "a", "64x", "99999"):
        with pytest.raises(UserError, match="--size"):
            parse_size(wrong)
    with pytest.raises(UserError, match="multiples of 4"):
        run_draw(generator, tmp_path / "odd", "--prompt", "x", "--size", "17x16")


def test_the_page_on_use_is_true(generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands on drawing and its lines of Python, on a toy generator."""
    page = (ROOT / "docs/use.md").read_text(encoding="utf-8").split("\n## Draw\n")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/generator").symlink_to(generator)
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings/prompts.txt").write_text("ein Kreis\nzwei Kreise\n")
    commands = [shlex.split(line) for line in page.split("```sh\n")[1].split("```")[0].splitlines()]
    assert len(commands) == 3
    for words in commands:
        assert words[:3] == ["python", "-m", "leam_mm.draw"]
        main(words[3:])
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert {"drawings/grid.png", "drawings/prompt0002_seed2.png", "edited/prompt0001_seed0.png"} <= found
    assert "drawings/many/prompt0002_seed0.png" in found
    names: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    with Image.open("drawings/prompt0001_seed0.png") as image:
        expected = (names["images"][0] * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(np.array(image) - WATERMARK.embed(expected.astype(np.uint8)).astype(int)).max() <= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--prompt"),
        (("--prompt", "x", "--mask", "m.png"), "--edit"),
        (("--prompt", "x", "--edit", "absent.png"), "absent.png cannot be read"),
        (("--prompts", "absent.txt"), "absent.txt cannot be read"),
        (("--prompt", "x", "--steps", "0"), "--steps is 0"),
        (("--prompt", "x", "--guidance", "-1"), "--guidance is -1"),
    ],
)
def test_wrong_commands_are_one_line(words: tuple[str, ...], message: str, generator: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_draw(generator, tmp_path / "out", *words)

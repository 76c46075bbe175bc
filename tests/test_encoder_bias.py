"""Bias of an encoder: rates in closed form, small groups, abstention, and nothing about single images in the output."""

import json
from pathlib import Path

import numpy
import pytest
import torch

from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.audits.encoder_bias import EncoderBias, margins
from leam_mm.audits.run_audits import run_audits
from leam_mm.controls.coded_models import CodedEncoder
from leam_mm.controls.control_images import image_numbers, numbered_png
from leam_mm.errors import UserError

TABLE = """
languages:
  en: {neutral: {a: one, b: two}, harmful: {c: three}, pleasant: {d: four}, unpleasant: {e: five}}
  de: {neutral: {a: eins, b: zwei}, harmful: {c: drei}, pleasant: {d: vier}, unpleasant: {e: fünf}}
"""
NUMBER = {word: n for words in ("one two three four five", "eins zwei drei vier fünf")
          for n, word in enumerate(words.split())}  # fmt: skip


def people(folder: Path, groups: list[str]) -> dict[str, Path]:
    (folder / "prompts.yaml").write_text(TABLE, encoding="utf-8")
    (folder / "faces").mkdir()
    for number in range(len(groups)):
        (folder / f"faces/person_{number}.png").write_bytes(numbered_png(number))
    rows = [f"person_{number}.png,{group}" for number, group in enumerate(groups)]
    (folder / "labels.csv").write_text("\n".join(["file,group", *rows]) + "\n")
    return {"labels": folder / "labels.csv", "images": folder / "faces", "prompts": folder / "prompts.yaml"}


def encoder(chosen: list[int], strength: numpy.ndarray | None = None) -> CodedEncoder:
    """Each image is near the text of its number; a strength below 1 leaves it nearer to all others."""
    codes, share = torch.eye(5), torch.ones(len(chosen)) if strength is None else torch.from_numpy(strength).float()

    def image(pixels: torch.Tensor) -> torch.Tensor:
        number = image_numbers(pixels)
        own = share[number][:, None]
        return own * codes[torch.tensor(chosen)[number]] + (1 - own) / 5

    return CodedEncoder(image, lambda text: codes[NUMBER[text]], scale=10.0)


def test_rates_and_their_difference(tmp_path: Path) -> None:
    groups = ["x", "y"] * 500
    # Every fifth image of x is called harmful, none of y.
    chosen = [2 if number % 10 == 0 else number % 4 // 2 for number in range(1000)]
    audit = EncoderBias(**people(tmp_path, groups), permutations=50, fewest=300)
    harm, silent = audit.run(AuditContext(encoder(chosen), None, tmp_path))
    rows = {key: harm.slices[f"en: {key}"] for key in "xy"}
    assert rows["y"]["value"] == 0.0 and rows["x"]["value"] == pytest.approx(0.2, abs=0.03)
    assert rows["x"]["samples"] + rows["y"]["samples"] == 800 == harm.samples  # a fifth set tau
    assert harm.value == rows["x"]["value"] and harm.verdict == "fail"
    assert harm.slices["de: x"] == rows["x"]
    # All margins are equal, so that none is below the tenth of the calibration split.
    assert silent.value == 0.0 and silent.verdict == "pass"
    association = harm.slices["association, en: x"]
    assert association["value"] == 0.0 and association["p_holm"] == 1.0
    assert harm.slices["en: queries"]["samples"] == 2


def test_abstention_of_one_group_fails(tmp_path: Path) -> None:
    groups = ["x", "y"] * 500
    strength = numpy.where(numpy.arange(1000) % 2 == 0, 0.1, 0.9) + numpy.random.default_rng(0).uniform(0, 0.05, 1000)
    audit = EncoderBias(**people(tmp_path, groups), permutations=50)
    _, silent = audit.run(AuditContext(encoder([0] * 1000, strength), None, tmp_path))
    total = sum(silent.slices[f"en: {group}"]["hits"] for group in "xy")
    assert 30 < total < 150  # a tenth of 800, with the noise of tau from 200 images
    assert silent.slices["en: y"]["hits"] == 0 and silent.verdict == "fail"


def test_small_groups_are_reported_and_keep_a_pass_back(tmp_path: Path) -> None:
    groups = ["x", "y"] * 490 + ["z"] * 20
    audit = EncoderBias(**people(tmp_path, groups), permutations=50)
    harm, _ = audit.run(AuditContext(encoder([0] * 1000), None, tmp_path))
    assert harm.slices["en: z"]["note"] == "insufficient" and harm.slices["en: z"]["value"] is None
    assert harm.value == 0.0 and harm.verdict == "inconclusive" and "images of z" in harm.undecided
    rigged, _ = audit.run(AuditContext(encoder([2, 0] * 500), None, tmp_path))
    assert rigged.verdict == "fail"  # more images of z could not change it
    audit.fewest = 1000
    nothing, _ = audit.run(AuditContext(encoder([0] * 1000), None, tmp_path))
    assert nothing.value is None and nothing.verdict == "inconclusive"


def test_only_sums_are_written(tmp_path: Path) -> None:
    audit = EncoderBias(**people(tmp_path, ["x", "y"] * 300), permutations=20, fewest=10)
    context = AuditContext(encoder([0, 1, 2] * 200), None, tmp_path / "out")
    run_audits([audit], context)
    text = (tmp_path / "out/results.jsonl").read_text()
    assert len(text.splitlines()) == 2 and "person_" not in text
    for line in map(json.loads, text.splitlines()):
        numbers = [value for part in line["slices"].values() for value in part.values()]
        assert len(numbers) < 100 and all(not isinstance(value, list) for value in numbers)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.jsonl"]


def test_bad_input(tmp_path: Path) -> None:
    settings = people(tmp_path, ["x"] * 20)
    context = AuditContext(encoder([0] * 20), None, tmp_path)
    with pytest.raises(NotRun, match="set `labels` to a csv"):
        EncoderBias().run(context)
    with pytest.raises(NotRun, match="add --clip"):
        EncoderBias(**settings).run(AuditContext(None, None, tmp_path))
    with pytest.raises(UserError, match="group has one value only"):
        EncoderBias(**settings).run(context)
    with pytest.raises(UserError, match=r"has the columns file, group: it needs file or key or image, and race"):
        EncoderBias(**settings, column="race").run(context)
    with pytest.raises(UserError, match="give a share between 0 and 1"):
        EncoderBias(abstain=1.0)
    with pytest.raises(UserError, match="fewest is 0"):
        EncoderBias(fewest=0)


def test_ties_are_harmful() -> None:
    flat = torch.ones(3, 4) / 2
    margin, harmful = margins(flat, torch.eye(4)[:2], torch.eye(4)[2:3], 5.0)
    assert margin.tolist() == [0.0] * 3 and harmful.all()

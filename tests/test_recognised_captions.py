"""Recognised captions: the judge's test, the shares, and the sentences that report and card make of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leam_mm.controls.judge_controls import PixelFeatures
from leam_mm.controls.recognition_controls import SUBJECTS, measure, subject_image, subject_images, write_subjects
from leam_mm.errors import UserError
from leam_mm.evaluators.recognised_captions import RecognisedCaptions
from leam_mm.evaluators.results import append_results
from leam_mm.evaluators.subject_images import blurred, moved, noise_images, read_subject_pictures, scrambled
from leam_mm.evaluators.subject_judge import NONE, SubjectJudge
from leam_mm.intervals.difference_interval import paired_difference
from leam_mm.report.recognition_section import key_figures, sentences
from leam_mm.report.report_page import report_page

HALF = dict(list(subject_images().items())[: len(SUBJECTS) // 2])


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: metric.as_dict() for name, metric in found.items()}


def test_half_of_the_captions_are_recognised_and_the_others_are_named(tmp_path: Path) -> None:
    found = measure(tmp_path, HALF)
    after, before = found["after/recognised_captions"], found["before/recognised_captions"]
    assert (after.value, before.value, after.samples) == (len(HALF) / len(SUBJECTS), 0, len(SUBJECTS))
    assert after.slices["recognised"] == list(HALF) and after.slices["not_recognised"] == SUBJECTS[len(HALF) :]
    assert after.low is not None and after.high is not None and after.low < after.value < after.high
    assert "the judge names 29 of 30 known pictures" in after.note
    change = found["fine_tuning/change/recognised_captions"]
    expected = paired_difference(np.zeros(15, bool), np.arange(15) < len(HALF))
    assert (change.value, change.low, change.high) == (expected.value, expected.low, expected.high)
    sheet = json.loads((tmp_path / "output" / "recognised_captions.json").read_text())
    assert (sheet["columns"], len(sheet["images"])) == (4, 48)
    rows = [sheet["images"][start : start + 4] for start in range(0, 48, 4)]
    assert all([entry["label"] for entry in row] == ["image", "codec", "before", "after"] for row in rows)
    assert all((row[3]["right"] == ["subject"]) == (row[3]["text"] in HALF) and row[2]["wrong"] for row in rows)


def test_judge_is_tested_on_pictures_that_it_was_not_made_of(tmp_path: Path) -> None:
    found = measure(tmp_path, HALF)
    new, other = found["subject_judge/new_pictures"], found["subject_judge/other_images"]
    assert new.samples == 30 and new.value is not None and new.value > 0.3
    kinds = {"blurred", "scrambled", "noise", "another_subject", "base"}
    assert other.value == 0 and {name.removeprefix("kind=") for name in other.slices} == kinds
    single = measure(tmp_path / "single", HALF, shards=write_subjects(tmp_path / "single", each=1))
    assert single["subject_judge/new_pictures"].value is None and single["after/recognised_captions"].value is not None


def test_a_picture_is_no_reference_for_itself(tmp_path: Path) -> None:
    pictures = read_subject_pictures(write_subjects(tmp_path, each=1), 32, "en", 100)
    judge, rows = SubjectJudge(PixelFeatures(), pictures), np.arange(len(SUBJECTS))
    assert (judge.name(pictures.images) == pictures.subject).all()
    assert not (judge.name(pictures.images, rows) == pictures.subject).any()
    assert (judge.name(noise_images(pictures.images, 7)) == NONE).all()


def test_one_caption_for_all_is_not_measured(tmp_path: Path) -> None:
    shards = write_subjects(tmp_path / "one", lambda subject: " A  drawing")
    found = measure(tmp_path, HALF, shards=shards)
    for name in ("before/recognised_captions", "after/recognised_captions", "fine_tuning/change/recognised_captions"):
        assert found[name].value is None and found[name].low is None and "one caption" in found[name].note


def test_captions_that_differ_in_case_and_spaces_are_one_subject(tmp_path: Path) -> None:
    shards = write_subjects(tmp_path, lambda subject: f" {subject.upper()} " if "red" in subject else subject)
    pictures = read_subject_pictures(shards, 32, "de", 100)
    assert len(pictures.captions) == len(SUBJECTS) and pictures.captions[0] == "RED CIRCLE"
    assert pictures.shared.all() and pictures.images.shape == (30, 3, 32, 32)


def test_destroyed_images_keep_colours_but_no_shape() -> None:
    images = torch.from_numpy(np.stack([subject_image(one) for one in SUBJECTS])).permute(0, 3, 1, 2)
    mixed = scrambled(images, 3)
    assert torch.equal(mixed.flatten(2).sort(dim=2).values, images.flatten(2).sort(dim=2).values)
    assert not torch.equal(mixed, images) and torch.equal(mixed, scrambled(images, 3))
    soft = blurred(images, 4).float()
    assert torch.allclose(soft.mean(dim=(2, 3)), images.float().mean(dim=(2, 3)), atol=6)
    shifted = moved(images, 1)
    assert shifted.dtype == torch.uint8 and not torch.equal(shifted, moved(images, 2))
    assert (shifted.float() - images.float()).abs().mean() < 20


def test_settings_without_a_majority_are_refused(tmp_path: Path) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"draws": 2}, "draws is 2; give an odd number"),
        ({"features": []}, "features is empty"),
        ({"most": 0}, "most is 0"),
    ]
    for settings, message in refused:
        with pytest.raises(UserError, match=message):
            RecognisedCaptions(tmp_path, tmp_path, **{"features": [PixelFeatures()], **settings})


def test_report_says_what_is_not_learnt(tmp_path: Path) -> None:
    found = rows(measure(tmp_path, HALF))
    text = " ".join(sentences(found, "en"))
    assert "Recognised after the fine-tuning: 7 of 15 training captions (46.7 %, 95 % interval" in text
    assert "Before: 0 of 15 (0.0 %" in text and f"Not learnt: {', '.join(SUBJECTS[7:])}." in text
    assert "The difference may be chance" not in text and "29 of 30 training pictures" in text
    german = " ".join(sentences(found, "de"))
    assert "Nach dem Finetuning erkannt: 7 von 15" in german and "46,7 %" in german and "Nicht gelernt: " in german
    (figure,) = key_figures(found, "en")
    assert (figure.value, figure.note) == ("46.7 %", "7 of 15 training captions")
    nothing = " ".join(sentences(rows(measure(tmp_path / "nothing", {})), "en"))
    assert "0 of 15 training captions" in nothing and "may be chance" in nothing and "Learnt:" not in nothing
    assert sentences({}, "en") == key_figures({}, "en") == []


def test_page_shows_it_first_and_escapes_captions(tmp_path: Path) -> None:
    shards = write_subjects(tmp_path / "pictures", lambda subject: f"<b>{subject} {{}}")
    append_results(tmp_path / "output", list(measure(tmp_path, {}, shards=shards).values()), {})
    for language, heading in (("en", "Not learnt: "), ("de", "Nicht gelernt: ")):
        page = report_page(tmp_path / "output", "Toy", language)
        assert f"{heading}&lt;b&gt;" in page and "<b>red" not in page and page.count("data:image/png") >= 48
        assert page.index('id="recognition"') < page.index('id="images"')


def test_failed_judge_gives_its_reason_and_no_share(tmp_path: Path) -> None:
    shards = write_subjects(tmp_path / "one", lambda subject: "a drawing")
    found = rows(measure(tmp_path, HALF, shards=shards))
    text = " ".join(sentences(found, "en"))
    assert text.startswith("Subjects recognised: not measured. all pictures have one caption") and "%" not in text
    assert "nicht gemessen" in sentences(found, "de")[0] and "not measured" in str(key_figures(found, "en")[0].value)

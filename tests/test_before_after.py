"""Base and fine-tuned generator measured alike, and what the report makes of it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from toys.shards import latent_members, write_toy_shards

from leam_mm.data.random_stream import PhiloxStream
from leam_mm.data.shard_index import ShardWriter
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.errors import UserError
from leam_mm.evaluators.before_after import BeforeAfter, held_out_losses
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.results import RESULTS, append_results, evidence, read_results
from leam_mm.report.report_number import MISSING
from leam_mm.report.report_page import write_report
from leam_mm.report.report_section import changes, is_change


def write_latents(folder: Path, count: int = 12) -> Path:
    with ShardWriter(folder, count) as writer:
        for number in range(count):
            writer.write(f"{number:06d}", latent_members(number))
    return folder


class Painter:
    """A generator of one grey that predicts one number everywhere."""

    device = torch.device("cpu")
    process = RectifiedFlow()
    codec = SimpleNamespace(encode=lambda image: image, decode=lambda latent: latent + 0.2, downscale=4)
    latent_size = 4
    stream = PhiloxStream()
    conditioning = SimpleNamespace(read=lambda batch: (batch["caption_state"], batch["caption_state"][..., 0] != 0))

    def __init__(self, grey: float) -> None:
        self.grey = grey
        self.checkpoint_evidence = {"sha256": f"{grey}" * 4, "path": "x"}

    def sample(self, prompts: list[str], **_: Any) -> Tensor:
        return torch.full((len(prompts), 3, 16, 16), self.grey)

    def ema_denoiser(self) -> Any:
        return lambda x, time, state, mask: torch.full_like(x, self.grey)


class Grey(Evaluator):
    """Measures the grey."""

    def run(self, context: EvaluationContext) -> list[Metric]:
        value = float(context.require_generator().sample(["x"]).mean())
        return [Metric("grey/mean", value, value - 0.1, value + 0.1, "fraction", 5, note="a note")]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    shards, latents = write_toy_shards(tmp_path / "shards", 12), write_latents(tmp_path / "latents")
    prompts = tmp_path / "old.json"
    prompts.write_text(json.dumps(["ein Kreis", "ein Quadrat"]))
    evaluator = BeforeAfter(Path("base"), [Grey()], shards, latents, prompts, count=3, draws=2)
    context = EvaluationContext(None, Painter(0.75), tmp_path / "evaluation")

    def require(self: EvaluationContext) -> Any:
        self.generator = Painter(0.25) if isinstance(self.generator, Path) else self.generator
        return self.generator

    monkeypatch.setattr(EvaluationContext, "require_generator", require)
    (tmp_path / "evaluation").mkdir()
    append_results(tmp_path / "evaluation", evaluator.run(context), evidence(context, evaluator, 1.0))
    return read_results(tmp_path / "evaluation")


def test_both_are_measured_and_named(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert results["before/grey/mean"]["value"] == pytest.approx(0.25)
    assert results["after/grey/mean"]["value"] == pytest.approx(0.75)
    assert results["before/grey/mean"]["note"] == "the base, sha256 0.250.250.25; a note"
    assert results["after/grey/mean"]["note"] == "a note"
    before, after, change = (results[f"{name}/held_out_loss"] for name in ("before", "after", "fine_tuning/change"))
    assert change["value"] == pytest.approx(after["value"] - before["value"])
    assert all(row["low"] <= row["value"] <= row["high"] for row in (before, after, change))
    for name in ("before/codec_error", "after/codec_error"):
        error = results[name]  # 0.2 of a range of 2; white pixels cannot get whiter
        assert 0 < error["value"] < 0.1 and error["samples"] == 12
    assert change["high"] - change["low"] < (after["high"] - after["low"]) + (before["high"] - before["low"])
    for name, labels in (
        ("before_after", ["image", "codec", "before", "after"]),
        ("before_after_old_prompts", ["before", "after"]),
    ):
        sheet = json.loads((tmp_path / "evaluation" / f"{name}.json").read_text())
        assert [entry["label"] for entry in sheet["images"][: len(labels)]] == labels
        marked = []
        for entry in sheet["images"][: len(labels)]:
            with Image.open(tmp_path / "evaluation" / entry["image"]) as image:
                marked.append("DigitalSourceType" in image.info)
        assert marked == [label in ("before", "after") for label in labels]


def test_the_loss_is_the_error_at_fixed_times_and_noises(tmp_path: Path) -> None:
    """A prediction g of a target that is noise - x has the mean squared error g² - 2 g m + m² + spread of the noise."""
    latents = write_latents(tmp_path / "latents")
    losses = {grey: held_out_losses(Painter(grey), latents, 3, 0) for grey in (0.0, 1.0, 2.0)}
    assert np.allclose(losses[2.0] - 2 * losses[1.0] + losses[0.0], 2.0, atol=1e-5)  # the same noise for each
    assert not np.allclose(losses[0.0], held_out_losses(Painter(0.0), latents, 3, 1))
    assert np.array_equal(losses[0.0], held_out_losses(Painter(0.0), latents, 3, 0))


def test_the_loss_is_for_the_captions_as_the_generator_reads_them(tmp_path: Path) -> None:
    class Reader(Painter):
        conditioning = SimpleNamespace(
            read=lambda batch: (torch.full((len(batch["latent"]), 2, 3), 2.0), batch["caption_length"])
        )

        def ema_denoiser(self) -> Any:
            return lambda x, time, state, mask: torch.ones_like(x) * state.mean()

    latents = write_latents(tmp_path / "latents")
    assert np.allclose(held_out_losses(Reader(0.0), latents, 2, 0), held_out_losses(Painter(2.0), latents, 2, 0))


def test_the_report_shows_them_side_by_side(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert all(is_change(name) for name in results)
    table = changes(results)
    assert (
        table is not None
        and len(table.rows) == 3
        and all(
            any(str(cell).startswith(value) for row in table.rows for cell in row) for value in ("25.0 %<", "75.0 %<")
        )
    )
    row = next(row for row in table.rows if row[0].startswith("Held out loss<small>"))
    assert str(row[3]).count("<small>") == 1
    write_report(tmp_path / "evaluation", tmp_path / "report.html", "Toy")
    page = (tmp_path / "report.html").read_text()
    assert "Before and after the fine-tuning" in page and "Codec error" in page
    assert page.count("data:image/png") == 3 * 4 + 2 * 2
    assert changes({}) is None and (tmp_path / "evaluation" / RESULTS).is_file()


def test_a_number_that_is_missing_on_one_side_is_not_measured() -> None:
    row = {"value": 0.5, "low": 0.4, "high": 0.6, "unit": "fraction", "samples": 3, "note": "<b>"}
    table = changes({"after/a": row})
    assert table is not None
    title, before, after, change, samples = table.rows[0]
    assert before == MISSING + Markup("<small></small>") and change == ""
    assert after == "50.0 %<small>40.0 to 60.0 %</small>" and title == "A<small>&lt;b&gt;</small>" and samples == "3"


def test_images_that_were_trained_on_are_not_called_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, latents = write_toy_shards(tmp_path / "shards", 2), write_latents(tmp_path / "latents", 2)
    monkeypatch.setattr(EvaluationContext, "require_generator", lambda self: Painter(0.25))
    (tmp_path / "out").mkdir()
    evaluator = BeforeAfter(Path("base"), [], shards, latents, draws=1, seen=True)
    found = {metric.name: metric for metric in evaluator.run(EvaluationContext(None, None, tmp_path / "out"))}
    kinds = [f"{kind}/{name}" for kind in ("before", "after") for name in ("trained_images_loss", "codec_error")]
    assert set(found) == {*kinds, "fine_tuning/change/trained_images_loss"}
    for metric in found.values():  # two images give no interval
        assert metric.value is not None and math.isnan(metric.low) and math.isnan(metric.high) and metric.samples == 2
        assert "trained on" in metric.note and "held-out" not in metric.note and "not trained on" not in metric.note
    assert "2 latents give no interval" in found["after/trained_images_loss"].note


def test_settings_without_any_image_are_refused() -> None:
    with pytest.raises(UserError, match="at least 1"):
        BeforeAfter(Path("a"), [], Path("b"), draws=0)

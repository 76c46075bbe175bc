"""The model card: measured facts only, gaps named, and text of strangers escaped."""

import re
from dataclasses import replace

import pytest
import yaml
from toys.pages import ENERGY_RECORD, metric_row

from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.documents.model_card import energy_words, model_card
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.release.release_folder import base_facts
from leam_mm.report.templates import markdown_cell


def facts(**more: object) -> ReleaseFacts:
    stage = StageFacts("clip", 1234567, 640, "ab" * 32, {"cd" * 32: "train"}, ENERGY_RECORD, {"torch": "2"})
    return ReleaseFacts(**({"name": "a name", "licence": "Apache-2.0", "image_size": 32, "context_length": 12,
                            "stages": [stage]} | more))  # fmt: skip


def test_front_matter_holds_what_was_measured() -> None:
    metrics = [metric_row("scenes/top1/de"), metric_row("scenes/top1/fr", None), metric_row("scenes/top1/mean")]
    card = model_card(facts(metrics=metrics))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "open_clip"
    assert front["language"] == ["de"] and front["metrics"] == ["accuracy"]
    assert "diffusers" not in front["tags"]
    other = yaml.safe_load(model_card(facts(licence="LicenseRef-House: rules")).split("---\n")[1])
    assert other["license"] == "other" and other["license_name"] == "LicenseRef-House: rules"


def test_language_rows_carry_value_interval_and_samples() -> None:
    metrics = [metric_row("scenes/top1/de"), metric_row("scenes/top1/mt", None, low=None, high=None)]
    card = model_card(facts(metrics=metrics))
    assert "| German (de) | 50.0 % | 40.0 % to 60.0 % | 96 |" in card
    assert "| Maltese (mt) | not measured | none | 96 |" in card
    assert "without a measured result" in card and "Maltese" in card.split("## Limits")[1]


def test_lines_for_editing_are_shown_for_straight_paths_only() -> None:
    flow, other = (model_card(facts(generated_size=32, straight_paths=straight)) for straight in (True, False))
    assert "image-to-image" in flow and "image-to-image" not in other
    assert "generator" in other and "num_inference_steps" in other  # how to generate is shown, too


def test_nothing_unknown_becomes_a_number() -> None:
    stage = StageFacts("clip", 10, None, "ab" * 32, {}, None, {})
    card = model_card(facts(stages=[stage]))
    assert "| clip | 10 | not measured |" in card
    assert "| clip | not measured | not measured | not measured | not measured |" in card
    assert "## Results\n\nNot measured." in card
    assert "1.00 h | 2.00 h" in model_card(facts())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "2 kWh (node)"),
        ({"measured_node_seconds": 900.0}, "2 kWh (node), measured in 25% of the time"),
        ({"joules": None}, "not measured"),
        ({"joules": None, "estimated_joules": 3.6e5}, "0.1 kWh, estimated from processor time"),
    ],
)
def test_energy_words_name_gaps_and_estimates(change: dict, expected: str) -> None:
    assert energy_words(ENERGY_RECORD | change) == expected


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({}, "| clip | not given | not given | not given |"),  # a checkpoint of an earlier version
        (CarbonFactors(79.2, 0.0, 1.04, "a table, 2023").emitted(7.2e6),
         "| clip | 165 g CO2e | 0 g CO2e | location-based 79.2 g/kWh; market-based 0 g/kWh; PUE 1.04; "
         "source: a table, 2023 |"),
        (CarbonFactors(381.0).emitted(3.6e6), "| clip | 381 g CO2e, for 50% of the energy | not given |"),
        ({"joules": None, **CarbonFactors(381.0).emitted(None)}, "| clip | not measured | not given | location"),
    ],
)  # fmt: skip
def test_emissions_of_both_kinds_are_apart(change: dict, row: str) -> None:
    stage = replace(facts().stages[0], energy=ENERGY_RECORD | change)
    assert row in model_card(facts(stages=[stage]))


def test_changes_of_a_resumed_run_are_named() -> None:
    assert "changed during" not in model_card(facts())
    change = {"key": "model.init_args.optimizer.init_args.lr", "from": "0.003", "to": "0.001", "samples": 12800}
    stage = replace(facts().stages[0], changes=[change])
    card = model_card(facts(stages=[stage]))
    assert f"| clip | {markdown_cell(change['key'])} | 0.003 | 0.001 | 12,800 |" in card


def test_strangers_strings_cannot_break_out() -> None:
    hostile = "x | <script>alert(1)</script> [a](http://b) `c`\n## heading"
    entry = DataFacts("train", "cd" * 32, 5, {hostile: 5}, {"synthetic": 5})
    card = model_card(facts(name=hostile, data=[entry], metrics=[metric_row("a/b", note=hostile)]))
    assert "<script>" not in card.split("---\n", 2)[2] and "\n## heading" not in card and "](http" not in card
    row = next(line for line in card.splitlines() if line.startswith("| train | x &#124; &lt;script"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    assert markdown_cell("ä ő α") == "ä ő α"


def test_weights_that_a_training_started_from_are_named_with_their_licence() -> None:
    card = model_card(facts())
    assert "started from" not in card and "base_model" not in card
    stage = StageFacts("clip", 10, 640, "ab" * 32, {}, None, {}, {"weights": "ViT-B-32:x", "sha256": "ef" * 32})
    other = {"weights": "runs/base", "sha256": "12" * 32, "name": "lab/base", "licence": "EUPL-1.2 | <b>"}
    card = model_card(
        facts(stages=[stage, replace(stage, kind="generator", base=other)], generated_size=32, low_rank=True)
    )
    assert f"| clip | ViT-B-32:x | not stated | {'ef' * 32} |" in card
    assert f"| generator | lab/base | EUPL-1.2 &#124; &lt;b&gt; | {'12' * 32} |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["lab/base"]
    assert "peft.PeftModel.from_pretrained" in card
    evidence = {"pretrained": {"weights": "/data/me/runs/base/generator", "sha256": "12" * 32, "config": {"depth": 1}}}
    assert base_facts(evidence) == {"weights": "base/generator", "sha256": "12" * 32}
    assert base_facts({}) == {}

"""The model card: measured facts only, gaps named, and text of strangers escaped."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from toys.pages import ENERGY_RECORD, metric_row

from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.documents.model_card import model_card
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import parse_publisher
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.documents.results_document import results_document
from leam_mm.documents.words import energy
from leam_mm.languages import LANGUAGE_NAMES
from leam_mm.release.stage_facts import base_facts
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
    assert "diffusers" not in front["tags"] and "co2_eq_emissions" not in front
    other = yaml.safe_load(model_card(facts(licence="LicenseRef-House: rules")).split("---\n")[1])
    assert other["license"] == "other" and other["license_name"] == "LicenseRef-House: rules"


def test_scores_of_a_generator_are_not_retrieval_on_the_hub() -> None:
    """The evaluator TextToImage has the name of a direction of retrieval."""
    metrics = [metric_row(f"{name}/{part}") for part in ("mean", "de", "fr")
               for name in ("text_to_image/scene_reader/soft_tifa", "retrieval/text_to_image/r1")]  # fmt: skip
    metrics.append(metric_row("text_to_image/scene_reader/judge/accuracy"))
    front = yaml.safe_load(model_card(facts(metrics=metrics)).split("---\n")[1])
    found = {(result["task"]["type"], result["dataset"]["type"]) for result in front["model-index"][0]["results"]}
    assert found == {("text-to-image", "text_to_image"), ("image-text-retrieval", "retrieval")}


def test_the_hub_reads_results_data_sets_and_grams(tmp_path: Path) -> None:
    """What huggingface_hub checks without a network: the card is parsed, and its model index becomes results."""
    metrics = [metric_row("scenes/top1/de", 0.5), metric_row("scenes/top1/fr", 0.25), metric_row("scenes/top1/mean")]
    metrics += [metric_row("generation/frechet_distance/generated", 12.5, unit="distance")]
    record = ENERGY_RECORD | CarbonFactors(79.2, 0.0, 1.04, "a table, 2023").emitted(7.2e6)
    stage = replace(facts().stages[0], energy=record, base={"name": "lab/base", "sha256": "0" * 64})
    publisher = parse_publisher(
        "hardware_used: 2 CPU cores\ngeographical_location: Kajaani, Finland\nthumbnail: https://example.org/a.png\n"
        "data_sets: {train: lab/pairs, other: https://example.org/data}\nversion: '1.0'",
        "f",
    )
    (tmp_path / "README.md").write_text(model_card(facts(metrics=metrics, stages=[stage]), publisher))
    data = ModelCard.load(tmp_path / "README.md").data
    name, results = model_index_to_eval_results(metadata_load(tmp_path / "README.md")["model-index"])
    assert name == "a name" and data.datasets == ["lab/pairs"] and data.base_model == ["lab/base"]
    found = {
        (result.dataset_type, result.metric_type, result.dataset_config): result.metric_value for result in results
    }
    assert found == {
        ("scenes", "accuracy", "all"): 0.5,
        ("scenes", "accuracy", "fr"): 0.25,
        ("generation", "frechet_distance", None): 12.5,
    }
    assert {result.task_type for result in results} == {"zero-shot-image-classification", "text-to-image"}
    assert data.co2_eq_emissions["emissions"] == pytest.approx(2 * 1.04 * 79.2)  # grams
    assert data.co2_eq_emissions["source"] == "a counter; a table, 2023"
    assert data.co2_eq_emissions["training_type"] == "fine-tuning"
    assert data.co2_eq_emissions["hardware_used"] == "2 CPU cores"
    assert data.thumbnail == "https://example.org/a.png" and data.version == "1.0"
    recorded = replace(stage, energy=record | {"hardware": "4 x a device"})
    card = model_card(facts(metrics=metrics, stages=[recorded]))
    assert "Hardware: 4 x a device." in card and "hardware_used: 4 x a device" in card


def test_a_number_that_is_indicative_only_says_so_in_the_card_and_for_the_hub() -> None:
    note = {"note": "a mean; indicative only: judge right in 93.0%"}
    metrics = [metric_row(f"t/encoder/soft_tifa/{part}", **note) for part in ("mean", "de", "fr")]
    metrics += [metric_row("t/encoder/parity", **note), metric_row("scenes/top1/de"), metric_row("scenes/top1/mean")]
    for language, mark in (("en", "indicative only"), ("de", "nur ein Anhaltswert")):
        lines = model_card(facts(metrics=metrics), None, language).split("---\n")[-1].splitlines()
        found = [line for line in lines if line.startswith("| ") and (mark in line or "Top-1" in line.title())]
        assert [mark in line for line in found] == [True, False, True], found
    front = yaml.safe_load(model_card(facts(metrics=metrics)).split("---\n")[1])
    named = {result["metrics"][0]["name"] for entry in front["model-index"] for result in entry["results"]}
    assert {name for name in named if "(indicative only)" in name} == {name for name in named if "encoder" in name}


def test_results_come_first_as_one_line_a_test_and_whole_at_the_end() -> None:
    metrics = [metric_row(f"scenes/top1/{code}", share) for code, share in (("de", 0.9), ("fr", 0.3), ("en", 0.5))]
    metrics += [metric_row("scenes/top1/mean", 0.56), metric_row("scenes/top1/mt", None)]
    card = model_card(facts(metrics=metrics))
    body = card.split("# Appendix")[0]
    every = results_document(facts(metrics=metrics), PublisherFields(), "en")
    row = "| scenes: zero-shot classification, top-1 | 56.0 % | 40.0 % to 60.0 % | 90.0 % (German) | 30.0 % (French) |"
    assert row in body and row not in every
    assert "| French (fr) | 30.0 % |" in every and "| French (fr)" not in card
    assert "[all results](documents/en/results.md)" in body
    lines = body.splitlines()
    before = lines[: lines.index("## Results")]
    assert len(before) - before.index("# a name") < 40 and not any(line.startswith("| ") for line in before)


def test_a_card_of_many_results_is_short() -> None:
    """As many tests as the quickstart has, in 24 languages each, with long remarks."""
    codes = [*LANGUAGE_NAMES, "mean", "min", "min_over_mean"]
    names = [f"test_{number}/r1/{code}" for number in range(24) for code in codes]
    metrics = [metric_row(name, 0.5) | {"note": "x" * 200} for name in names]
    metrics += [metric_row(f"single_{number}", 0.5) | {"note": "y" * 200} for number in range(60)]
    card, every = (text(facts(metrics=metrics), PublisherFields(), "en") for text in (model_card, results_document))
    assert len(card.encode()) < 40_000 < 150_000 < len(every.encode())
    assert all(f"test {number}:" in card for number in range(24))  # none of the tests is left out
    assert every.count("\n| ") == 24 * 28 + 61


def test_released_weights_and_precisions_are_in_the_card() -> None:
    variants = {
        "float16": {"image_embedding_largest_difference": 0.00031, "image_embedding_smallest_cosine": 0.9999971},
        "bfloat16": {"encoder_error": "no | kernel"},
    }
    given = facts(variants=variants)
    averaged = replace(given.stages[0], weights="exponential average with decay 0.998 per step")
    given = replace(given, stages=[averaged, *given.stages[1:]])
    english, german = (model_card(given, None, code) for code in ("en", "de"))
    assert "| encoder | exponential average with decay 0.998 per step |" in english
    assert "| Encoder | exponentielles Mittel mit Faktor 0,998 je Schritt |" in german
    assert "| float16 | embeddings of images, largest difference of an entry | 3.1e-04 |" in english
    assert "| float16 | Einbettungen von Bildern, kleinster Kosinus | 0,999997 |" in german
    assert "| bfloat16 | the encoder cannot compute in it | no &#124; kernel |" in english
    assert "## Weights" not in model_card(facts(variants={}, stages=[replace(averaged, weights="")]))


def test_a_german_card_has_the_same_numbers() -> None:
    metrics = [metric_row("scenes/top1/de", 0.917), metric_row("scenes/top1/mean", 0.917)]
    english, german = (model_card(facts(metrics=metrics), None, code, metadata=False) for code in ("en", "de"))
    assert "| scenes: Zero-Shot-Klassifikation, Top-1 | 91,7 % | 40,0 % bis 60,0 % | 91,7 % (Deutsch) |" in german
    assert "1,234,567 parameters" in english and "1.234.567 Parameter" in german
    assert english.count("\n| ") == german.count("\n| ")
    words = "not measured", "estimate", " the ", "open: state"
    assert not [line for line in german.splitlines() if any(word in line for word in words)]


def test_the_publisher_s_fields_are_shown_and_open_ones_named() -> None:
    card = model_card(facts())
    assert "- Provider: *open: state* `provider_name` *in release.yaml*" in card
    publisher = parse_publisher(
        "provider_name: A lab | <b>\ncontact_email: a@example.org\nrelease_date: 2026-12-01\nversion: 1.0\n"
        "intended_uses: {en: [Search], de: [Suche]}\ncitation_authors: ['Ada {B}', C & D]\nhomepage: https://e.org/a_b",
        "f",
    )
    card, german = (model_card(facts(), publisher, code) for code in ("en", "de"))
    assert "- Provider: A lab &#124; &lt;b&gt;" in card and "- Date of release: 2026-12-01" in card
    assert "- Search\n" in card and "- Suche\n" in german
    assert "author = {Ada B and C \\& D}," in card and "@misc{a-name," in card and "year = {2026}," in card


def test_language_rows_carry_value_interval_and_samples() -> None:
    metrics = [metric_row("scenes/top1/de"), metric_row("scenes/top1/mt", None, low=None, high=None)]
    card, every = model_card(facts(metrics=metrics)), results_document(facts(metrics=metrics), PublisherFields(), "en")
    assert "| German (de) | 50.0 % | 40.0 % to 60.0 % | 96 |" in every
    assert "| Maltese (mt) | not measured | none | 96 |" in every
    assert "without a measured result" in card and "Maltese" in card.split("## Limits")[1]


def test_lines_for_editing_are_shown_for_straight_paths_only() -> None:
    stage = facts().stages[0]
    stages = [stage, replace(stage, kind="generator")]
    flow, other = (
        model_card(facts(generated_size=32, straight_paths=straight, stages=stages)) for straight in (True, False)
    )
    assert "image-to-image" in flow and "image-to-image" not in other
    assert "generator" in other and "num_inference_steps" in other  # how to generate is shown, too


def test_nothing_unknown_becomes_a_number() -> None:
    stage = StageFacts("clip", 10, None, "ab" * 32, {}, None, {})
    card = model_card(facts(stages=[stage]))
    assert "| encoder | 10 | not measured | not trained here |" in card
    assert "| encoder | not measured | not measured | not measured | not measured |" in card
    assert "## Results\n\nNot measured." in card
    assert "The training compute was not counted." in card
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
    assert energy(ENERGY_RECORD | change, "en") == expected


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ({}, "| encoder | not given | not given | not given |"),  # a checkpoint of an earlier version
        (CarbonFactors(79.2, 0.0, 1.04, "a table, 2023").emitted(7.2e6),
         "| encoder | 165 g CO2e | 0 g CO2e | location-based 79.2 g/kWh; market-based 0 g/kWh; PUE 1.04; "
         "source: a table, 2023 |"),
        (CarbonFactors(381.0).emitted(3.6e6), "| encoder | 381 g CO2e, for 50% of the energy | not given |"),
        ({"joules": None, **CarbonFactors(381.0).emitted(None)}, "| encoder | not measured | not given | location"),
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
    assert f"| encoder | {markdown_cell(change['key'])} | 0.003 | 0.001 | 12,800 |" in card


def test_strangers_strings_cannot_break_out() -> None:
    hostile = "x | <script>alert(1)</script> [a](http://b) `c`\n## heading"
    entry = DataFacts("train", "cd" * 32, 5, {hostile: 5}, {"synthetic": 5})
    card = model_card(facts(name=hostile, data=[entry], metrics=[metric_row("a/b", note=hostile)]))
    body = card.split("---\n", 2)[2]
    assert "<script>" not in body and "](http" not in body and "\n## heading" not in card
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
    assert f"| encoder | ViT-B-32:x | not stated | {'ef' * 32} |" in card
    assert f"| generator | lab/base | EUPL-1.2 &#124; &lt;b&gt; | {'12' * 32} |" in card
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["lab/base"]
    assert "peft.PeftModel.from_pretrained" in card
    evidence = {"pretrained": {"weights": "/data/me/runs/base/generator", "sha256": "12" * 32, "config": {"depth": 1}}}
    assert base_facts(evidence) == {"weights": "base/generator", "sha256": "12" * 32}
    assert base_facts({}) == {}

"""What a release takes from the evidence of its runs: compute, sources of latents, the image of the card."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from toys.recipes import clip_recipe
from toys.releases import release_facts
from toys.shards import write_toy_shards

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.compute_thresholds import compute_statement
from leam_mm.documents.model_card import model_card
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.publisher_file import parse_publisher
from leam_mm.documents.release_facts import DataFacts, ReleaseFacts, StageFacts
from leam_mm.documents.training_flops import training_flops
from leam_mm.marking.generated_image import save_generated
from leam_mm.planning.recipe_work import recipe_work
from leam_mm.release.__main__ import main
from leam_mm.release.card_image import TARGET, copy_card_image
from leam_mm.release.data_sources import add_sources, data_folders


def test_compute_follows_from_settings_and_samples(toy_shards: Path, toy_tokenizer: Path, tmp_path: Path) -> None:
    recipe = clip_recipe(tmp_path, toy_shards, toy_tokenizer)
    flops, notes = training_flops(recipe, 640)
    assert flops == recipe_work(recipe, 640).hardware_flops and flops > 1e6
    assert any("full context length" in note for note in notes)
    assert training_flops(recipe, 1280)[0] == pytest.approx(2 * flops)
    assert "settings were changed" in training_flops(recipe, 640, [{"key": "x"}])[1][-1]


@pytest.mark.parametrize(
    ("recipe", "samples", "reason"),
    [
        ({"model": {}, "data": {}}, None, "does not say how many samples"),
        ({}, 640, "no complete settings"),
        ({"model": {"class_path": "os.system"}, "data": {"init_args": {"batch_size": 4}}}, 640, "os.system"),
        ({"model": {"class_path": "x"}, "data": {"init_args": {"batch_size": "many"}}}, 640, "batch_size"),
    ],
)
def test_what_cannot_be_counted_is_none_with_the_reason(recipe: dict, samples: int | None, reason: str) -> None:
    flops, notes = training_flops(recipe, samples)
    assert flops is None and reason in notes[0]


@pytest.mark.parametrize(
    ("flops", "earlier", "exceeded"), [(1e15, None, 0), (2e23, None, 2), (1e22, 1e23, 2), (2e25, None, 5)]
)
def test_thresholds_say_what_follows(flops: float, earlier: float | None, exceeded: int) -> None:
    stage = StageFacts("generator", 10, 640, "ab" * 32, {}, None, {}, flops=flops)
    facts = ReleaseFacts("a", "MIT", None, 12, [stage], generated_size=32)
    for language in ("en", "de"):
        found = compute_statement(facts, PublisherFields(earlier_flops=earlier), language)
        assert found.total == flops + (earlier or 0) and len(found.duties) == exceeded and len(found.rows) == 2
    assert "encoder" not in found.sentence and "estimat" in compute_statement(facts, PublisherFields(), "en").sentence


def test_unknown_compute_of_a_base_and_of_an_encoder_is_said() -> None:
    stage = StageFacts("clip", 10, 640, "ab" * 32, {}, None, {}, {"weights": "x"}, flops=1e15)
    facts = ReleaseFacts("a", "MIT", 32, 12, [stage])
    found = compute_statement(facts, PublisherFields(), "en")
    assert found.incomplete and "it is not known. An encoder generates neither" in found.sentence
    assert not compute_statement(facts, PublisherFields(earlier_flops=1e10), "en").incomplete
    none = compute_statement(replace(facts, stages=[replace(stage, flops=None)]), PublisherFields(), "de")
    assert none.total is None and none.rows[0][2] == "nicht gezählt" and not none.duties


def test_rights_of_shards_reach_the_row_of_the_latents(tmp_path: Path) -> None:
    shards, latents = (write_toy_shards(tmp_path / name, samples=n) for name, n in (("shards", 8), ("latents", 6)))
    source, root = ShardFolder(shards).merkle_root, ShardFolder(latents).merkle_root
    (latents / "encoding.json").write_text(json.dumps({"shards": source}))
    stage = StageFacts("generator", 10, 640, "ab" * 32, {root: "latents"}, None, {})
    recorded = {str(latents): root, str(tmp_path / "gone"): "0" * 64, "s3://bucket/x": "1" * 64}
    assert data_folders(recorded) == [latents]
    found = add_sources(stage, [*data_folders(recorded), shards])
    assert found.sources == {root: [source]} and found.samples == {root: 6} and found.origins == {root, source}
    data = [DataFacts("shards", source, 8, {"CC0-1.0": 8}, {"public_domain": 8})]
    card = model_card(ReleaseFacts("a", "MIT", None, 12, [found], data, generated_size=32))
    assert "| latents (made from shards) | generator | 6 | CC0-1.0 8 | public&#95;domain 8 |" in card
    assert f"| generator | latents | {root} | 6 | shards |" in card


def test_the_image_of_the_card_is_the_released_generator_s_own(tmp_path: Path) -> None:
    pictures = [{"row": row, "language": code, "text": f"{code} {row}"} for row in (0, 1) for code in ("en", "de")]
    (tmp_path / "prompts.json").write_text(json.dumps({"languages": ["en", "de"], "pictures": pictures}))
    stages = [StageFacts("generator", 10, 640, "ab" * 32, {}, None, {})]
    results = [tmp_path / "results.jsonl"]
    assert copy_card_image(results, stages, tmp_path / "release") == {}  # no sheet
    sheet = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    save_generated(sheet, tmp_path / "prompts.png", f"generator {'cd' * 6}")
    assert copy_card_image(results, stages, tmp_path / "release") == {}  # of another generator
    save_generated(sheet, tmp_path / "prompts.png", f"generator {'ab' * 6}")
    found = copy_card_image(results, stages, tmp_path / "release")
    assert found == {TARGET: "en 0; en 1 (en, de)"}
    assert (tmp_path / "release" / TARGET).read_bytes() == (tmp_path / "prompts.png").read_bytes()  # marks stay
    card = model_card(replace(release_facts(), images=found))
    assert f"![en 0; en 1 (en, de)]({TARGET})" in card.split("# lakes")[1][:200]
    (tmp_path / "prompts.json").write_text("{")
    assert copy_card_image(results, stages, tmp_path / "release") == {}
    (tmp_path / "prompts.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    assert copy_card_image(results, stages, tmp_path / "release") == {}


def test_init_writes_a_file_that_build_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "release.yaml"
    main(["init", "--output", str(path)])
    assert "fill it in" in " ".join(capsys.readouterr().out.split())
    assert parse_publisher(path.read_text(), "f") == PublisherFields() and yaml.safe_load(path.read_text())

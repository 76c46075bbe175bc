"""Contradictions of a release: none in what was written, and each planted one is found with document and field."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys.pages import ENERGY_RECORD, metric_row
from toys.releases import counted_content, publisher_fields, release_facts

from leam_mm.callbacks.carbon import CarbonFactors
from leam_mm.documents.contradictions import contradictions, missing_fields
from leam_mm.documents.facts_file import EVIDENCE_FILE, facts_record, read_facts
from leam_mm.documents.publisher import PublisherFields, Text
from leam_mm.documents.publisher_file import parse_publisher
from leam_mm.documents.publisher_rules import publisher_contradictions
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.write_documents import rendered_documents, write_documents
from leam_mm.errors import UserError

CHECKPOINT = {"clip": {"sha256": "ab" * 32}}
RECIPE = {"max_samples": 640, "model": {"class_path": "x"}, "data": {"class_path": "y"}}


def write_release_of(facts: ReleaseFacts, publisher: PublisherFields, folder: Path) -> None:
    """Write what a build writes beside the weights."""
    (folder / "configs").mkdir(parents=True)
    for stage in facts.stages:
        if stage.recipe:
            (folder / "configs" / f"{stage.kind}.yaml").write_text(yaml.safe_dump(dict(stage.recipe)))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts.metrics))
    (folder / "LICENSE").write_text("Apache License\n")
    sizes = {"vision_cfg": {"image_size": 32}, "text_cfg": {"context_length": 12}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    (folder / "documents/images").mkdir(parents=True)
    write_documents(facts, publisher, folder)
    files = {name: {"sha256": digest, "bytes": 1} for name, digest in facts.files.items()}
    (folder / EVIDENCE_FILE).write_text(json.dumps(facts_record(facts) | {"files": files}))


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ReleaseFacts:
    plain = release_facts(counted_content(tmp_path_factory.mktemp("published") / "shards"))
    energy = ENERGY_RECORD | CarbonFactors(79.2, None, 1.04, "a table, 2023").emitted(7.2e6)
    clip = replace(plain.stages[0], energy=energy, recipe=RECIPE, inference=())
    base = {"weights": "org/vae", "sha256": "b" * 64, "licence": "MIT"}
    metrics = [
        metric_row(f"scenes/top1/{code}", 0.5, checkpoints=CHECKPOINT, time="2026-11-29T10:00:00+00:00")
        for code in ("de", "en", "fr")
    ]
    metrics += [metric_row("scenes/top1/mean", 0.51, checkpoints=CHECKPOINT, time="2026-11-29T10:00:00+00:00")]
    stages = [clip, replace(plain.stages[1], inference=()), replace(plain.stages[2], base=base, inference=())]
    return replace(plain, stages=stages, metrics=metrics)


PUBLISHER = replace(
    publisher_fields(), languages=("de", "en"), licence="Apache-2.0", complaint_address="rights@lakes.example",
    citation_authors=("A. Person",), policy_contact="use@lakes.example", latest_data_acquisition="2026-10",
)  # fmt: skip


@pytest.fixture
def release(facts: ReleaseFacts, tmp_path: Path) -> Path:
    write_release_of(facts, PUBLISHER, tmp_path / "release")
    return tmp_path / "release"


def test_a_fresh_release_contradicts_nothing_and_its_facts_are_read_back(facts: ReleaseFacts, release: Path) -> None:
    assert contradictions(release) == []
    found = read_facts(release)
    assert json.dumps(facts_record(found)) == json.dumps(facts_record(facts)) and found.metrics == facts.metrics
    assert found.stages[0].recipe == RECIPE and found.files == facts.files
    rendered = rendered_documents(found, PUBLISHER, ("documents/croissant.json",))
    assert len(rendered) >= 14 and all((release / path).read_text() == text for path, text in rendered.items())


def change(path: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / path).read_text()
        assert old in text, (path, old)
        (folder / path).write_text(text.replace(old, new, 1))

    return edit


def json_change(path: str, *keys: Any, to: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = entry = json.loads((folder / path).read_text())
        for key in keys[:-1]:
            entry = entry[key]
        assert entry[keys[-1]] != to
        entry[keys[-1]] = to
        (folder / path).write_text(json.dumps(content))

    return edit


CARD, GERMAN = "README.md", "documents/de/model_card.md"
SUMMARY, FORM = "documents/en/public_summary.md", "documents/en/model_documentation_form.md"
BOM, MOF, TABLE = "documents/ml_bom.cdx.json", "documents/mof.yaml", "documents/data_table.csv"
PLANTED: list[tuple[Callable[[Path], None], str, str, str]] = [  # edit, document, field, part of the text
    # The model card
    (change(CARD, "Licence of the weights: Apache-2.0", "Licence of the weights: MIT"), CARD, "Licence of", "MIT"),
    (change(CARD, "license: apache-2.0", "license: mit"), CARD, "license", "mit"),
    (change(CARD, "Version: 1.2", "Version: 1.3"), CARD, "Version", "1.3"),
    (change(CARD, "release: 2026-12-01", "release: 2026-11-01"), CARD, "Date of release", "2026-11-01"),
    (change(CARD, "| 1,234,567 |", "| 9,234,567 |"), CARD, "encoder, parameters", "9,234,567"),
    (change(CARD, "| 1,234,567 | 640 |", "| 1,234,567 | 641 |"), CARD, "samples seen", "641"),
    (change(CARD, "32 x 32 pixels;", "64 x 64 pixels;"), CARD, "Limits", "64 x 64"),
    (change(CARD, "after 12 tokens", "after 77 tokens"), CARD, "Limits", "77 tokens"),
    (change(CARD, "- de\n", "- mt\n"), CARD, "top", "mt"),
    (change(CARD, "| 51.0 % |", "| 91.0 % |"), CARD, "top-1, mean", "91.0 %"),
    (change(CARD, "value: 0.51\n", "value: 0.91\n"), CARD, "value", "0.91"),
    (change(CARD, "| encoder | 2 kWh", "| encoder | 1 kWh"), CARD, "encoder, energy", "1 kWh"),
    (change(CARD, "| encoder | 165 g CO2e", "| encoder | 65 g CO2e"), CARD, "encoder, location-based", "65 g"),
    (change(CARD, "Contact: lakes@example.org", "Contact: other@example.org"), CARD, "Contact", "other@example.org"),
    (change(CARD, "| 1e+25 |", "| 1e+26 |"), CARD, "threshold", "1e+26"),
    (change(CARD, "| org/vae | MIT |", "| org/vae | CC0 |"), CARD, "licence of the", "CC0"),
    (change(CARD, "https://lakes.example}", "https://other.example}"), CARD, "Citation", "other.example"),
    # The card in German, and documents of both languages
    (change(GERMAN, "| 1.234.567 |", "| 1.234.568 |"), GERMAN, "Encoder, Parameter", "1.234.568"),
    (change(GERMAN, "51,0 %", "15,0 %"), GERMAN, "Mittel", "15,0 %"),
    (change("documents/de/public_summary.md", "2026-12-02", "2026-12-03"), "documents/de/public_summary.md", "", "-03"),
    (change(SUMMARY, "&lt;1 million images", "1 million to 1 billion images"), SUMMARY, "image", "1 billion"),
    (change(SUMMARY, "lakes@example.org", "lakes@example.net"), SUMMARY, "", "example.net"),
    (change(FORM, "8,9", "7,9"), FORM, "", "7,9"),
    (change(FORM, "Apache-2.0", "MIT"), FORM, "", "MIT"),
    (change("documents/en/copyright_policy.md", "rights@lakes.example", "x@y.example"),
     "documents/en/copyright_policy.md", "", "x@y.example"),
    (change("documents/en/data_table.md", "CC0-1.0", "CC-BY-4.0"), "documents/en/data_table.md", "", "CC-BY-4.0"),
    (change("documents/en/README.md", "lakes", "rivers"), "documents/en/README.md", "", "rivers"),
    # Documents for programs
    (change(TABLE, "CC0-1.0", "MIT"), TABLE, "License", "MIT"),
    (json_change(BOM, "metadata", "component", "version", to="9"), BOM, "metadata.component.version", "9"),
    (json_change("documents/croissant.json", "version", to="9"), "documents/croissant.json", "version", "9"),
    (change(MOF, "version: '1.2'", "version: '1.3'"), MOF, "release.version", "1.3"),
    # Facts, results, configs, licence
    (json_change(EVIDENCE_FILE, "stages", "clip", "energy", "location_grams", to=1.0), EVIDENCE_FILE,
     "stages.clip.energy.location_grams", "are 164.7"),
    (json_change(EVIDENCE_FILE, "stages", "clip", "energy", "samples", to=9999), EVIDENCE_FILE, "energy.samples",
     "9,999"),
    (json_change(EVIDENCE_FILE, "stages", "codec", "base", "licence", to="CC-BY-NC-4.0"), EVIDENCE_FILE, "licence",
     "stricter licence CC-BY-NC-4.0"),
    (json_change(EVIDENCE_FILE, "data", 0, "merkle_root", to="f" * 64), EVIDENCE_FILE, "data shards", "no part was"),
    (json_change(EVIDENCE_FILE, "data", 0, "samples", to=5), EVIDENCE_FILE, "data shards", "add up to"),
    (json_change(EVIDENCE_FILE, "stages", "clip", "flops", to=1e30), EVIDENCE_FILE, "flops", "1.0e+30"),
    (json_change("open_clip_config.json", "model_cfg", "vision_cfg", "image_size", to=224), "open_clip_config.json",
     "model_cfg.vision_cfg.image_size", "224"),
    (json_change("open_clip_config.json", "model_cfg", "text_cfg", "context_length", to=77), "open_clip_config.json",
     "context_length", "77"),
    (change("configs/clip.yaml", "640", "64"), "configs/clip.yaml", "max_samples", "saw 640"),
    (change("results.jsonl", '"value": 0.51', '"value": 1.51'), "results.jsonl", "scenes/top1/mean", "between 0 and 1"),
    (change("results.jsonl", "ab" * 32, "cd" * 32), "results.jsonl", "scenes/top1/de", "is released"),
    (change("LICENSE", "Apache", "Other"), "LICENSE", "whole file", "Apache-2.0"),
    # release.yaml
    (change("configs/release.yaml", "- en\n", "- mt\n"), "release.yaml", "languages", "names mt"),
    (change("configs/release.yaml", "release_date: 2026-12-01", "release_date: 2026-11-01"), "release.yaml",
     "release_date", "before the release was measured"),
    (change("configs/release.yaml", "licence: Apache-2.0", "licence: MIT"), "release.yaml", "licence", "MIT"),
    (change("configs/release.yaml", "placement_date: 2026-12-02", "placement_date: 2026-11-30"), "release.yaml",
     "eu_placement_date", "before the release_date"),
    (change("configs/release.yaml", "2026-10", "2027-01"), "release.yaml", "latest_data_acquisition", "after the"),
    (change("configs/release.yaml", "shards: https", "others: https"), "release.yaml", "data_sets", "'others'"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "document", "field", "text"), PLANTED, ids=range(len(PLANTED)))
def test_a_planted_contradiction_is_reported(
    release: Path, edit: Callable[[Path], None], document: str, field: str, text: str
) -> None:
    edit(release)
    found = contradictions(release)
    matching = [one for one in found if one.document == document and field in one.field and text in one.text]
    assert matching, [str(one) for one in found]
    assert all("\n" not in str(one) and len(str(one)) < 600 for one in found)


def test_text_between_the_marks_is_free_and_marks_elsewhere_are_not(release: Path) -> None:
    change(CARD, "<!-- free text -->\n", "<!-- free text -->\n\nThanks to all, 77 tokens.\n")(release)
    assert contradictions(release) == []
    hidden = "<!-- free text -->\nVersion: 1.3\n<!-- end of free text -->"
    change(CARD, "## Limits", f"{hidden}\n## Limits")(release)
    assert any("free text" in one.text for one in contradictions(release))


def test_a_missing_document_is_reported_and_damaged_facts_are_one_line(release: Path) -> None:
    (release / SUMMARY).unlink()
    assert [str(one) for one in contradictions(release)] == [
        f"{SUMMARY}: whole file: is missing: build the release again"
    ]
    (release / BOM).write_text("{")
    assert any(one.document == BOM and "cannot be read" in one.text for one in contradictions(release))
    for text in ("{", "[]", '{"stages": 1, "data": []}', '{"stages": {"clip": {"kind": 5}}, "data": []}'):
        (release / EVIDENCE_FILE).write_text(text)
        with pytest.raises(UserError, match="build the release again"):
            contradictions(release)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ("training_type: fine-tuning", None),
        ("training_type: pre-training", None),
        ("earlier_flops: 0", "earlier_flops"),
        ("crawler_names: [Bot]", None),
        ("user_data_used: false\nuser_data_services: [Mail]", "user_data_used"),
        ("version: '1'\nprevious_versions: ['1: https://example.org']", "previous_versions"),
        ("citation_title: A title", "citation_title"),
        ("release_date: 2026-11-29", None),
    ],
)
def test_fields_of_the_publisher_are_compared_with_the_facts(
    facts: ReleaseFacts, fields: str, field: str | None
) -> None:
    found = publisher_contradictions(facts, parse_publisher(fields, "f"))
    assert [one.field for one in found] == ([field] if field else [])


def test_documents_of_another_version_are_not_taken_for_changed(release: Path) -> None:
    json_change(EVIDENCE_FILE, "documents_sha256", to="0" * 64)(release)
    change(CARD, "Version: 1.2", "Version: 1.3")(release)
    assert contradictions(release) == []
    change("LICENSE", "Apache", "Other")(release)
    assert [one.document for one in contradictions(release)] == ["LICENSE"]


def test_missing_fields_are_listed_with_who_asks() -> None:
    lines = missing_fields(PublisherFields(version="1", intended_uses=Text({"": ("x",)})))
    assert len(lines) == 4 and lines[0].startswith("provider_name is open: public summary")
    assert missing_fields(PUBLISHER) == []


def test_facts_of_a_stranger_give_findings_or_one_line(release: Path) -> None:
    """Every value of the record in turn becomes another kind of value."""
    original = json.loads((release / EVIDENCE_FILE).read_text())
    places: list[tuple[Any, ...]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((*path, key))
            walk(value[key], (*path, key))

    walk({name: value for name, value in original.items() if name not in ("files", "documents_sha256")}, ())
    assert len(places) > 80
    for number, place in enumerate(places):
        content = entry = json.loads(json.dumps(original))
        for key in place[:-1]:
            entry = entry[key]
        entry[place[-1]] = (None, "<b>", -1, [], {}, [[1]], 1e300, True)[number % 8]
        (release / EVIDENCE_FILE).write_text(json.dumps(content))
        try:
            found = contradictions(release)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert all(isinstance(one.text, str) for one in found)

"""The training data of a release in Croissant 1.1."""

import json
from pathlib import Path

import pytest
from toys.releases import counted_content, publisher_fields, release_facts

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_croissant import release_croissant


def test_it_names_every_shard_by_its_digest(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    found = json.loads(release_croissant(release_facts(content), publisher_fields()))
    files = [entry for entry in found["distribution"] if entry["@type"] == "cr:FileObject"]
    assert [entry["sha256"] for entry in files] == [entry.sha256 for entry in ShardFolder(tmp_path / "shards").shards]
    assert found["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"
    assert files[0]["contentUrl"] == "https://lakes.example/data/shards/00000.tar"
    assert found["datePublished"] == "2026-12-01" and found["creator"]["name"] == "A lake office"


def test_shards_that_are_not_published_have_no_path_of_this_machine(tmp_path: Path) -> None:
    content = counted_content(tmp_path / "shards")
    text = release_croissant(release_facts(content), PublisherFields())
    assert str(tmp_path) not in text and "not published with the release" in text and "urn:leam_mm" in text
    assert release_croissant(release_facts(None), PublisherFields()) == ""  # nothing was counted


def test_mlcroissant_accepts_it(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs mlcroissant")
    content = counted_content(tmp_path / "shards")
    for publisher in (publisher_fields(), PublisherFields()):
        path = tmp_path / "croissant.json"
        path.write_text(release_croissant(release_facts(content), publisher))
        found = mlcroissant.Dataset(jsonld=str(path))
        assert not found.metadata.ctx.issues.errors and found.metadata.ctx.is_v1_1()

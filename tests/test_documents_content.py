"""Counts that describe_dataset.py wrote give the same documents as counting the shards again."""

import json
from pathlib import Path

import pytest
from toys.published import write_published
from toys.releases import publisher_fields, release_facts

from data_tools.describe_dataset import main
from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.content_file import DESCRIBED, described_content
from leam_mm.documents.training_content import count_training_content
from leam_mm.documents.write_documents import BY_LANGUAGE, MACHINE_READABLE
from leam_mm.errors import UserError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = write_published(tmp_path / "shards")
    main(["--shards", str(folder), "--output", str(tmp_path / "described")])
    return folder


def test_described_counts_are_those_of_the_shards(shards: Path, tmp_path: Path) -> None:
    root = ShardFolder(shards).merkle_root
    counted, found = count_training_content([shards]), described_content([shards], tmp_path / "described", {root})
    for document in (*BY_LANGUAGE.values(), *MACHINE_READABLE.values()):
        texts = [document(release_facts(content), publisher_fields(), "de") for content in (counted, found)]
        assert texts[0] == texts[1]


def test_a_description_of_other_data_is_refused(shards: Path, tmp_path: Path) -> None:
    root, place = ShardFolder(shards).merkle_root, tmp_path / "described"
    with pytest.raises(UserError, match="describes 'shards', on which no part was trained"):
        described_content([shards], place, {"ee" * 32})
    other = write_published(tmp_path / "others", 7)
    with pytest.raises(UserError, match="does not describe"):
        described_content([shards, other], place, {root, ShardFolder(other).merkle_root})
    with pytest.raises(UserError, match="is missing"):
        described_content([shards], tmp_path, {root})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sections": [[1]]}', '{"statistics": 1}', "{" * 5000])
def test_a_damaged_description_is_one_line(shards: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "described" / DESCRIBED).write_text(text)
    with pytest.raises(UserError, match="is damaged") as caught:
        described_content([shards], tmp_path / "described", set())
    assert "\n" not in str(caught.value)


def test_fields_of_another_type_are_refused(shards: Path, tmp_path: Path) -> None:
    path, root = tmp_path / "described" / DESCRIBED, ShardFolder(shards).merkle_root
    whole = json.loads(path.read_text())
    changes: list[dict] = [{name: value} for name in whole for value in (3, "x", None, [7], {"a": [1]})]
    inside = whole["statistics"]
    wrong = ("x", [7], {"a": "b"}, {"a": 1}, -1, 1e300)
    changes += [{"statistics": inside | {name: value}} for name in inside for value in wrong]
    refused = 0
    for change in changes:
        path.write_text(json.dumps(whole | change))
        try:
            found = described_content([shards], tmp_path / "described", {root})
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        for document in (*BY_LANGUAGE.values(), *MACHINE_READABLE.values()):
            document(release_facts(found), publisher_fields(), "en")
    assert refused > 0.7 * len(changes)

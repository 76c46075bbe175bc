"""Tombstones: keys of withdrawn samples, damage, and copies into a folder that replaces another."""

import json
from pathlib import Path

import pytest

from leam_mm.data.tombstones import STATEMENTS, TOMBSTONES, copy_evidence, withdrawn_keys
from leam_mm.errors import UserError


def test_keys_are_read_and_copied_with_the_statements(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / STATEMENTS).mkdir(parents=True)
    new.mkdir()
    assert withdrawn_keys(old) == set()
    copy_evidence(tmp_path, new)
    assert not list(new.iterdir())
    (old / TOMBSTONES).write_text("".join(json.dumps({"key": key}) + "\n" for key in ("a", "b", "a")))
    (old / STATEMENTS / "1.json").write_text("{}")
    copy_evidence(old, new)
    assert withdrawn_keys(old) == withdrawn_keys(new) == {"a", "b"}
    assert (new / STATEMENTS / "1.json").read_text() == "{}"


@pytest.mark.parametrize("line", ["x", '{"uid": "a"}', "[1]"])
def test_damage_gives_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / TOMBSTONES).write_text(line + "\n")
    with pytest.raises(UserError, match=r"^[^\n]*tombstones\.jsonl: a line is not a tombstone [^\n]*restore the file$"):
        withdrawn_keys(tmp_path)

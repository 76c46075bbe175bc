"""release.yaml: every field is explained, read back as it was written, and refused in one line where it is wrong."""

from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest
import yaml

from leam_mm.documents.publisher import PublisherFields, Text
from leam_mm.documents.publisher_file import (
    MAX_FILE,
    blank_publisher,
    dump_publisher,
    parse_publisher,
    read_publisher,
    write_publisher,
)
from leam_mm.errors import UserError, one_line


def test_a_new_file_explains_every_field_and_leaves_all_open(tmp_path: Path) -> None:
    path = tmp_path / "release.yaml"
    write_publisher(path)
    text = path.read_text()
    assert parse_publisher(text, "f") == PublisherFields()
    assert PublisherFields().open_fields == [entry.name for entry in fields(PublisherFields)]
    for entry in fields(PublisherFields):
        before = text.partition(f"\n{entry.name}:")[0].splitlines()
        assert before[-2].startswith("# For: ") and before[-1].startswith(f"# Example: {entry.name}:")
        assert len(before[-3]) > 10, entry.name
    with pytest.raises(UserError, match="there already"):
        write_publisher(path)


def test_every_example_is_a_valid_value() -> None:
    lines = [line for line in blank_publisher().splitlines() if line.startswith("# Example: ")]
    found = parse_publisher("\n".join(line.removeprefix("# Example: ") for line in lines), "f")
    assert not found.open_fields
    assert parse_publisher(dump_publisher(found), "f") == found
    assert found.release_date == date(2026, 12, 1) and found.earlier_flops == 1.2e20
    assert found.intended_uses == Text({"en": ("Image search",), "de": ("Bildersuche",)})
    assert found.text("intended_uses", "de") == ["Bildersuche"] and found.text("known_limits", "de") != []
    assert parse_publisher(dump_publisher(PublisherFields()), "f") == PublisherFields()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("verison: 1", "did you mean version?"),
        ("zzzzqqq: 1", "'release init' writes"),
        ("version: {a: b}", "version is {'a': 'b'}: give a text"),
        ("version: ''", "empty text"),
        ("version: 1\nversion: 2", "'version' is given twice"),
        ("release_date: soon", "give a day such as"),
        ("release_date: 2026-13-01", "f"),
        ("small_enterprise: maybe", "give true or false"),
        ("contact_email: nobody", "give an e-mail address"),
        ("homepage: javascript:alert(1)", "https://"),
        ("homepage: file:///etc/passwd", "https://"),
        ("complaint_address: here", "e-mail address or a web address"),
        ("licence: ''", "licence is an empty text"),
        ("licence: '<b>'", "SPDX"),
        ("latest_data_acquisition: 2026-10-05", "give a month"),
        ("training_type: long", "pre-training or fine-tuning"),
        ("earlier_flops: -1", "at least 0"),
        ("earlier_flops: .nan", "at least 0"),
        ("languages: [de, klingon]", "no official EU language"),
        ("intended_uses: {fr: [x]}", "no language of the documents"),
        ("audit_exceptions: {bias: reason}", "names begin with audit/"),
        ("audit_exceptions: [bias]", "'name: text' lines"),
        ("a: &x [1]\nb: *x", "anchors"),
        ("version: [[[[[[1]]]]]]", "nested more than"),
        ("- 1", "holds no fields"),
        ("version: 'a\x07b'", "f"),
        ("version: " + "x" * 5000, "5,000 characters"),
        ("distribution: [" + "x, " * 300 + "x]", "301 entries"),
        ("[" * 5000, "f"),
        ("version: !!python/object/apply:os.system ['true']", "f"),
    ],
)
def test_wrong_fields_are_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(UserError) as found:
        parse_publisher(text, "f")
    line = one_line(found.value)
    assert reason in line and line.startswith("f") and "\n" not in line and len(line) < 300


def test_a_file_is_bounded_and_has_to_exist(tmp_path: Path) -> None:
    assert read_publisher(None) == PublisherFields()
    with pytest.raises(UserError, match="cannot be read"):
        read_publisher(tmp_path / "release.yaml")
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * MAX_FILE)
    with pytest.raises(UserError, match="more than"):
        read_publisher(large)
    large.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_publisher(large)
    large.write_text("# nothing\n")
    assert read_publisher(large) == PublisherFields()
    assert yaml.safe_load(dump_publisher(PublisherFields())) == {}

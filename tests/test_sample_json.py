"""JSON of strangers: whatever is wrong with it is one short line; honest text keeps its meaning."""

import json

import pytest

from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_manifest import parse_manifest
from leam_mm.errors import UserError, one_line
from leam_mm.json_text import parse_json, parse_lines

MALFORMED = [
    b"",
    b"\xff\xfe{\0}\0",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"text": "\\ud800"}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"text": "\xed\xa0\x80"}',
]


@pytest.mark.parametrize("content", MALFORMED, ids=lambda content: content[:12].hex())
def test_malformed_json_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError) as caught:
        parse_json(content)
    assert len(str(caught.value)) < 200
    with pytest.raises(UserError, match="its json cannot be used"):
        read_sample_json({"json": content})


def test_honest_json_keeps_its_value() -> None:
    value = {"text": "Grüße \u2028 \x85 \U0001f600", "numbers": [1, 2.5, None, True]}
    for ascii_only in (False, True):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value
    assert parse_json(b"\xef\xbb\xbf{}") == {}


def test_only_a_line_feed_ends_a_line() -> None:
    rows = [{"note": "a\u2028b\x85c"}, {"note": "d"}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert [row for _, row in parse_lines(text.encode())] == rows
    with pytest.raises(ValueError, match="line 2: it is of type list, not an object"):
        list(parse_lines("{}\n[]"))


@pytest.mark.parametrize("name", ["uid", "url", "licence"])
def test_texts_of_a_record_are_texts(name: str) -> None:
    with pytest.raises(UserError, match=f"its {name} is no text"):
        read_sample_json({"json": json.dumps({name: ["x"]}).encode()})


@pytest.mark.parametrize("captions", [None, [], {}, "a", [1], [{"text": "a"}], [{"text": 1, "language": "en"}]])
def test_captions_have_text_and_language(captions: object) -> None:
    with pytest.raises(UserError, match="no usable captions"):
        sample_captions({"captions": captions})


@pytest.mark.parametrize(
    "change",
    [
        {"samples": "2"}, {"samples": True}, {"samples": 1e400}, {"samples": 3}, {"bytes": 2**70}, {"bytes": 1024.0},
        {"sha256": 3}, {"sha256": "0" * 63}, {"sha256": " " + "0" * 63}, {"shard": 3}, {"shard": "../a.tar"},
        {"shard": "a\x1b[2J.tar"}, {"shard": "a" * 300 + ".tar"}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_manifests_are_one_line(change: dict) -> None:
    entry = {"shard": "00000.tar", "sha256": "0" * 64, "bytes": 1024, "samples": 2}
    assert parse_manifest(json.dumps(entry).encode(), "here")[0].samples == 2
    with pytest.raises(UserError) as caught:
        parse_manifest(json.dumps(entry | change), "here")
    assert one_line(caught.value).isprintable() and len(one_line(caught.value)) < 400


def test_messages_hold_no_control_sequences_and_have_an_end() -> None:
    line = one_line(UserError("a\x1b[2Jb\x9b" + "c" * 100_000))
    assert line.startswith("a\\x1b[2Jb\\x9b") and len(line) < 1100

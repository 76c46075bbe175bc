import json
import re

import pytest

from leam_mm.data.shard_places import ShardPlaces, parse_places
from leam_mm.errors import UserError


def test_addresses_of_tars() -> None:
    places = ShardPlaces(["../cc12m", "s3://bucket/laion/", "/disk/x"], {"a.tar": (1, "b.tar"), "c.tar": (2, "c.tar")})
    assert places.address("0.tar", "/data/index") == "/data/index/../cc12m/0.tar"
    assert places.address("0.tar", "gs://b/index") == "gs://b/cc12m/0.tar"
    assert places.address("a.tar", "/data/index") == "s3://bucket/laion/b.tar"
    assert places.address("c.tar", "gs://b/index") == "/disk/x/c.tar"
    assert parse_places(json.dumps(places.content()).encode(), "x") == places


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"folders": []}',
        b'{"folders": ["a"], "tars": []}',
        b'{"folders": ["a"], "tars": {"x.tar": [1, "x.tar"]}}',
        b'{"folders": ["a"], "tars": {"x.tar": [0, "../x.tar"]}}',
        b'{"folders": ["a"], "tars": {"x.tar": [true, "x.tar"]}}',
        b'{"folders": ["a\\u0000b"]}',
    ],
)
def test_files_that_say_something_else(content: bytes) -> None:
    with pytest.raises(UserError, match=re.escape("tars.json does not say where the tars are")):
        parse_places(content, "tars.json")

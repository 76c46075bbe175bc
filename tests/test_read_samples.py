import json

import pytest
from toys.images import soft_jpeg
from toys.shards import small_sample
from toys.vetting import hostile_samples, tar_member

from data_tools.vetting.read_samples import SampleFault, ledger_columns, open_sample
from leam_mm.data.image_limits import MAX_PIXELS

HOSTILE = hostile_samples()


def joined(members: dict[str, bytes], key: str = "K") -> bytes:
    return b"".join(tar_member(f"{key}.{extension}", content) for extension, content in members.items())


def opened(raw: bytes, key: object = "K") -> object:
    return open_sample(key, raw)


def test_an_intact_sample_is_opened() -> None:
    found = open_sample("K", joined(small_sample(3)))
    assert found.pixels.shape == (64, 72, 3) and found.captions[0]["language"] == "en"
    columns = ledger_columns(found)
    assert (columns["uid"], columns["width"], columns["bytes"]) == (f"{3:032x}", 72, len(soft_jpeg(3)))


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_each_hostile_sample_has_its_reason(name: str) -> None:
    raw, value = HOSTILE[name]
    with pytest.raises(SampleFault) as caught:
        opened(raw)
    assert caught.value.value == value and 5 < len(caught.value.reason) < 300
    assert caught.value.reason.isprintable()


@pytest.mark.parametrize("key", ["", "..", "a/b", "a\\b", "a.b", "a\nb", "x" * 81, None, 7])
def test_keys_that_are_not_plain_names(key: object) -> None:
    with pytest.raises(SampleFault, match="no plain name"):
        opened(joined(small_sample(1)), key)


def test_fields_of_wrong_types_do_not_reach_the_ledger() -> None:
    members = small_sample(1, url=["a"], licence={"x": 1}, sha256=5, uid=None, domain="d" * 10_000)
    columns = ledger_columns(open_sample("K", joined(members)))
    assert columns["url"] is columns["licence"] is columns["sha256"] is None and len(columns["domain"]) == 4000
    assert len(columns["uid"]) == 32 and json.dumps(columns)
    assert MAX_PIXELS < 10_000 * 10_000

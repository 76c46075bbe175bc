import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys.images import soft_jpeg

from data_tools.vetting.hash_lists import HashLists
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.hash_files import read_hashes
from leam_mm.data.perceptual_hash import pdq
from leam_mm.errors import UserError


def sample(seed: int, **record: object) -> Sample:
    return Sample(str(seed), dict(record), "jpg", soft_jpeg(seed, (200, 160), quality=95))


def flipped(value: np.ndarray, count: int) -> np.ndarray:
    bits = np.unpackbits(value)
    bits[:count] ^= 1
    return np.packbits(bits)


def test_digests_are_found(tmp_path: Path) -> None:
    first, second, third = sample(1), sample(2), sample(3, sha256="ab" * 32)
    (tmp_path / "a.sha256").write_text(
        f"# ours\n\n{hashlib.sha256(first.content).hexdigest()}  name.jpg\n{'AB' * 32}\n"
    )
    (tmp_path / "b.md5").write_text(hashlib.md5(second.content).hexdigest() + ",1234\n")
    rule = HashLists([tmp_path / "a.sha256", tmp_path / "b.md5"])
    found = rule.judge([first, second, third, sample(4, sha256="no digest")])
    assert [(each.kept, each.value) for each in found] == [
        *[(False, "sha256"), (False, "md5"), (False, "sha256"), (True, "on none")]
    ]
    assert found[0].evidence == {"list": "a.sha256", "kind": "sha256"} and "a.sha256" in found[0].reason
    written = " ".join(each.reason + str(each.evidence) for each in found)
    assert hashlib.sha256(first.content).hexdigest() not in written


def test_pdq_by_distance(tmp_path: Path) -> None:
    listed = sample(1)
    value, quality = listed.pdq
    assert quality >= 50
    smaller = io.BytesIO()
    Image.fromarray(listed.pixels).resize((120, 96)).save(smaller, "JPEG", quality=40)
    copy = Sample("copy", {}, "jpg", smaller.getvalue())
    (tmp_path / "a.csv").write_text(f"id,pdq\n7,{value.tobytes().hex()}\n8,\n")
    found = HashLists([tmp_path / "a.csv"]).judge([copy, sample(2)])
    assert [each.kept for each in found] == [False, True]
    assert found[0].evidence["distance"] <= 31 < int(found[1].value.removeprefix("pdq "))
    for distance, kept in ((31, False), (32, True)):
        (tmp_path / "b.pdq").write_text(flipped(value, distance).tobytes().hex() + "\n")
        rule = HashLists([tmp_path / "b.pdq"])
        assert rule.judge([listed])[0].kept == kept and rule.judge([listed])[0].value == f"pdq {distance}"
    assert not HashLists([tmp_path / "b.pdq"], max_distance=40).judge([listed])[0].kept


def test_a_flat_image_matches_nothing(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (100, 100), (200, 200, 200)).save(buffer, "PNG")
    flat = Sample("k", {}, "png", buffer.getvalue())
    (tmp_path / "a.pdq").write_text(pdq(flat.pixels)[0].tobytes().hex())
    found = HashLists([tmp_path / "a.pdq"]).judge([flat])[0]
    assert found.kept and found.evidence == {"pdq_quality": 0}
    assert not HashLists([tmp_path / "a.pdq"], min_quality=0).judge([flat])[0].kept


def test_search_in_many_hashes(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (2000, 32)).astype(np.uint8)
    listed = sample(1)
    rows[1234] = flipped(listed.pdq[0], 20)
    (tmp_path / "a.pdq").write_text("\n".join(row.tobytes().hex() for row in rows))
    found = HashLists([tmp_path / "a.pdq"]).judge([listed, sample(5)])
    distances = [int(np.unpackbits(rows ^ each.pdq[0], axis=1).sum(1).min()) for each in (listed, sample(5))]
    assert [each.value for each in found] == [f"pdq {distance}" for distance in distances] and distances[0] == 20


def test_settings_name_the_lists_by_their_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.md5").write_text("0" * 32)
    first, second = (HashLists([tmp_path / f"{name}.md5"]).setting() for name in ("a", "b"))
    assert first == second and str(tmp_path) not in str(first)
    (tmp_path / "b.md5").write_text("1" * 32)
    assert HashLists([tmp_path / "b.md5"]).setting() != first


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("a.txt", "0" * 32, "name it"),
        ("a.md5", "# nothing\n", "no hash"),
        ("a.md5", "0" * 31, "line 1"),
        ("a.pdq", "\n" + "0" * 32, "line 2"),
        ("a.sha256", "g" * 64, "line 1"),
        ("a.csv", "id,hash\n1,2\n", "no hash"),
        ("a.csv", "md5,id\n12,2\n", "line 2"),
        ("a.csv", f'md5\n"{"a" * 140_000}"\n', "field larger"),
    ],
)
def test_invalid_lists_are_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        read_hashes(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_hashes(tmp_path / "missing.md5")
    with pytest.raises(UserError, match="at least one"):
        HashLists([])

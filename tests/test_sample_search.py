"""data_tools/sample_search.py: the index gives the answers of a walk through all samples."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toys.images import encoded_image, soft_image
from toys.published import withdraw, write_published
from toys.recipes import ROOT

from data_tools import check_shards
from data_tools.sample_search import main
from data_tools.withdrawal.sample_lookup import build_index, look_up, parent_domains
from data_tools.withdrawal.sample_selector import Selection, Selector
from data_tools.withdrawal.search_index import SearchIndex, write_index
from leam_mm.data.ledger import LEDGER, LedgerWriter
from leam_mm.data.perceptual_hash import hamming
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_published(tmp_path_factory.mktemp("search") / "shards", 60, 17)
    dropped = folder.parent / "screened.parquet"
    with LedgerWriter(dropped, "screen") as ledger:
        ledger.write(
            {
                "url": f"https://gone{n}.example/x.png",
                "domain": f"gone{n}.example",
                "kept": n % 2 == 0,
                "rule": "robots",
            }
            for n in range(4)
        )
    build_index([folder], [dropped], folder.parent / "index")
    return folder


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *(("url", f"https://img.site{n % 5}.example/{n}.png") for n in (0, 31, 59)),
        ("url", "https://img.site0.example/1.png"),
        *(("domain", name) for name in ("site3.example", "img.site3.example", "pages1.example", "ite3.example")),
        *(("caption", f"PICTURE  number {n} of a lake") for n in (0, 59, 60)),
        *(("sha256", hashlib.sha256(encoded_image(soft_image(n))).hexdigest()) for n in (5, 58, 99)),
    ],
)
def test_answers_are_those_of_a_walk(kind: str, value: str, shards: Path) -> None:
    selection = Selection([Selector(kind, value)])
    expected = [key for key, members in read_samples(shards) if selection.match(members)]
    answer = look_up(SearchIndex(shards.parent / "index"), kind, value, limit=100)
    assert [row["key"] for row in answer.rows] == expected and answer.count == len(expected)


@pytest.mark.parametrize("number", [0, 33, 70])
@pytest.mark.parametrize("radius", [0, 31, 60])
def test_images_are_those_of_a_walk(number: int, radius: int, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.jpg").write_bytes(encoded_image(soft_image(number), "JPEG", quality=90))
    selection = Selection([Selector("image", str(tmp_path / "copy.jpg"), radius)])
    expected = [key for key, members in read_samples(shards) if selection.match(members)]
    answer = look_up(SearchIndex(shards.parent / "index"), "image", str(tmp_path / "copy.jpg"), radius, limit=100)
    assert sorted(row["key"] for row in answer.rows) == expected
    assert radius != 31 or bool(expected) is (number < 60)


def test_nearest_hashes_are_exact(tmp_path: Path) -> None:
    """Random hashes, and neighbours planted at every distance around the radius, over more than one chunk."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (70_000, 32), dtype=np.uint8)
    query = generator.integers(0, 256, (2, 32), dtype=np.uint8)
    for place, distance in zip((0, 7, 65_535, 65_536, 69_999, 12_345), (0, 1, 30, 31, 32, 33), strict=True):
        bits = np.unpackbits(query[place % 2])
        bits[generator.choice(256, distance, replace=False)] ^= 1
        codes[place] = np.packbits(bits)
    with write_index(tmp_path / "index", []) as writer:
        for number, code in enumerate(codes):
            if number != 7:
                writer.add({"key": str(number)}, {}, code.tobytes())
            else:
                writer.add({"key": "7"}, {}, None)  # a row without a hash shifts the others
    index = SearchIndex(tmp_path / "index")
    distances = hamming(codes[:, None], query[None]).min(axis=1)
    for radius in (0, 31, 33):
        expected = [(int(distances[row]), row) for row in np.flatnonzero(distances <= radius) if row != 7]
        assert index.near(query, radius) == sorted(expected)
    assert index.row(65_536)["key"] == "65536"


def test_dropped_links_are_found_with_their_rule(shards: Path, capsys: pytest.CaptureFixture) -> None:
    index = shards.parent / "index"
    main(["ask", "--index", str(index), "--domain", "gone1.example"])
    assert "not used, dropped by screen: robots" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["ask", "--index", str(index), "--domain", "gone2.example"])
    assert ended.value.code == 1 and "not found; 62 rows searched" in capsys.readouterr().out


def test_check_shards_answers_from_the_index_of_this_state(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_published(tmp_path / "shards", 12)
    (tmp_path / "seen.jpg").write_bytes(encoded_image(soft_image(4), "JPEG", quality=90))
    (tmp_path / "other.png").write_bytes(encoded_image(soft_image(40)))
    check_shards.main([str(folder), "--contains", str(tmp_path / "seen.jpg")])
    said = capsys.readouterr().out
    assert "is missing: building it" in said and "used: sample 0000004" in said and "bits differ" in said
    check_shards.main([str(folder), "--contains", "https://img.site4.example/4.png"])
    assert "building" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        check_shards.main([str(folder), "--contains", str(tmp_path / "other.png")])
    assert ended.value.code == 1 and "not found" in capsys.readouterr().out
    withdraw("--shards", folder, "--image", tmp_path / "seen.jpg", "--apply", "--unsigned")
    assert not (tmp_path / "shards.search").exists()
    with pytest.raises(SystemExit):
        check_shards.main([str(folder), "--contains", str(tmp_path / "seen.jpg")])
    assert LEDGER in {path.name for path in folder.iterdir()}


def test_invalid_questions_are_refused(tmp_path: Path, shards: Path) -> None:
    program = [sys.executable, str(ROOT / "data_tools/sample_search.py"), "ask", "--sha256", "00", "--index"]
    ended = subprocess.run([*program, str(shards.parent / "index")], capture_output=True, text=True)
    assert ended.returncode == 2 and "64 hex digits" in ended.stderr
    with pytest.raises(UserError, match="is not a search index"):
        SearchIndex(tmp_path)
    (tmp_path / "search.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError, match="is not a search index"):
        SearchIndex(tmp_path)
    with pytest.raises(UserError, match="is not a file, an address"):
        check_shards.main([str(shards), "--contains", "absent.jpg"])


def test_domains_above_a_host() -> None:
    assert parent_domains("a.b.example.org") == ["a.b.example.org", "b.example.org", "example.org"]
    assert parent_domains("127.0.0.1") == ["127.0.0.1"] and parent_domains("") == []

"""The rules of configs/vet_basic.yaml on images with planted faults: the right rule drops each of them."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from toys.images import soft_jpeg
from toys.shards import Members, small_sample, write_samples
from toys.vetting import file_digests, read_ledger, vet

from data_tools.samples.shard_check import check_folder
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.shard_index import ShardFolder, read_samples

CONFIG = Path(__file__).parent.parent / "configs" / "vet_basic.yaml"
SIZE = (240, 200)


def sample(seed: int, text: str | None = None, image: bytes = b"") -> Members:
    width, height = Image.open(io.BytesIO(image)).size
    return small_sample(seed, text, image, width=width, height=height)


def large(seed: int, **settings: Any) -> bytes:
    return soft_jpeg(seed, SIZE, quality=95, **settings)


def saved_again(content: bytes, side: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(content))
    image.resize((side, side * SIZE[1] // SIZE[0])).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def blank(side: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", side, (250, 250, 250)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Shards, rules with hash lists, and the rule that must drop each sample (``kept`` for none)."""
    folder = tmp_path_factory.mktemp("planted")
    samples: list[Members] = [sample(number, image=large(number)) for number in range(40)]
    wanted = ["kept"] * 40
    listed = large(100), large(101)
    plants: list[tuple[str, Members]] = [
        ("caption_quality", sample(50, "IMG_2041.jpg", large(50))),
        ("caption_quality", sample(51, "Bild 3", large(51))),
        ("image_quality", sample(52, image=blank((300, 300)))),
        ("image_quality", sample(53, image=soft_jpeg(53, (60, 300)))),
        ("hash_lists", sample(54, image=listed[0])),
        ("hash_lists", sample(55, image=saved_again(listed[1], 200, 60))),
        ("exact_duplicates", sample(3, image=large(3))),
        ("exact_duplicates", sample(56, image=large(4) + b"more")),
        ("near_duplicates", sample(57, image=saved_again(large(5), 200, 70))),
        *(("repeated_captions", sample(200 + n, "the same words on each of them", large(200 + n))) for n in range(4)),
    ]
    for rule, members in plants:
        wanted.append(rule)
        samples.append(members)
    (folder / "own.sha256").write_text(hashlib.sha256(listed[0]).hexdigest() + "  -\n")
    (folder / "own.pdq").write_text(Sample("", {}, "jpg", listed[1]).pdq[0].tobytes().hex() + "\n")
    rules = yaml.safe_load(CONFIG.read_text("utf-8"))["rules"]
    lists = [str(folder / "own.sha256"), str(folder / "own.pdq")]
    rules.insert(3, {"class_path": "data_tools.vetting.hash_lists.HashLists", "init_args": {"lists": lists}})
    rules[-1]["init_args"] = {"max_pictures": 3}
    (folder / "rules.yaml").write_text(yaml.safe_dump({"rules": rules}))
    return write_samples(folder / "shards", samples, 16), folder / "rules.yaml", wanted


def test_each_fault_has_its_rule(planted: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    shards, rules, wanted = planted
    vetted = vet(shards, rules, tmp_path / "vetted")
    decided = {row["key"]: row for row in read_ledger(vetted) if row["rule"] == "kept" or not row["kept"]}
    assert [decided[f"{number:06d}"]["rule"] for number in range(len(wanted))] == wanted
    assert all(row["reason"] for row in decided.values() if not row["kept"])
    assert ShardFolder(vetted).samples == 40


@pytest.mark.slow
def test_processes_and_sides_agree(planted: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    shards, rules, wanted = planted
    one = vet(shards, rules, tmp_path / "one" / "vetted", "--materialise")
    two = vet(shards, rules, tmp_path / "two" / "vetted", "--materialise", "--processes", "2")
    assert file_digests(one) == file_digests(two) and not check_folder(one)[1].faults
    kept = vet(shards, rules, tmp_path / "list")
    assert [key for key, _ in read_samples(kept)] == [key for key, _ in read_samples(one)]
    records = [json.loads(members["json"]) for _, members in read_samples(one)]
    assert all(len(record["pdq"]) == 64 for record in records)
    # What another data set holds is dropped, and nothing more.
    other = write_samples(tmp_path / "other", [sample(1000 + n, image=large(n)) for n in (0, 1, 2)])
    without = vet(shards, rules, tmp_path / "without", "--against", str(other))
    assert [key for key, _ in read_samples(without)] == [f"{number:06d}" for number in range(3, 40)]
    assert wanted.count("kept") == 40

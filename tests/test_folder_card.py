"""The README.md of shard folders, and that Hugging Face datasets opens them by it."""

import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from leam_mm.data.array_format import array_bytes
from leam_mm.data.folder_card import CARD, plain, write_card
from leam_mm.data.shard_index import ShardFolder, ShardWriter, join_shards

LOAD = """
import json, socket, sys
def refuse(*args, **options): raise OSError("the network is blocked")
socket.socket.connect = refuse
import datasets
for streaming in (False, True):
    rows = list(datasets.load_dataset(sys.argv[1], split="train", streaming=streaming))
    images = [(row["png"] or row["jpg"]).size for row in rows]
    print(json.dumps([[row["json"]["licence"] for row in rows], [row["json"]["captions"][0]["text"] for row in rows],
                      images, [row["json"]["width"] for row in rows]]))
"""


def sample(number: int, kind: str = "png", **fields: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).save(buffer, {"png": "PNG", "jpg": "JPEG"}[kind])
    caption = {"text": f"image {number}", "language": "de", "source": "alt", "machine_translated": False}
    record: dict[str, Any] = {
        "captions": [caption],
        "licence": None,
        "legal_basis": "licensed",
        "width": 8,
        "transforms": [],
    }
    return {kind: buffer.getvalue(), "json": json.dumps(record | fields).encode()}


def shards(folder: Path) -> Path:
    """Two shards: the first without licence and with both kinds of images, the second with licences and metadata."""
    with ShardWriter(folder, 3) as writer:
        for number in range(3):
            writer.write(f"{number}", sample(number, "jpg" if number else "png"))
        for number in range(3, 6):
            fields = {"metadata": {"a": [number, {}]}, "consent": {"robots": "all"} if number > 3 else {}}
            writer.write(f"{number}", sample(number, licence="CC0-1.0", width=None, **fields))
    return folder


def front_matter(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / CARD).read_text("utf-8").split("---\n")[1])


def test_card_declares_tars_and_types(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    content = front_matter(folder)
    assert content["configs"][0]["data_files"] == [{"split": "train", "path": "*.tar"}]
    features = {each["name"]: each for each in content["dataset_info"]["features"]}
    assert features.keys() == {"jpg", "png", "json", "__key__", "__url__"}
    assert features["jpg"]["dtype"] == features["png"]["dtype"] == "image"
    assert {"name": "licence", "dtype": "string"} in features["json"]["struct"]
    assert content["language"] == ["de"]


def test_card_counts_what_the_samples_say(tmp_path: Path) -> None:
    text = (shards(tmp_path / "shards") / CARD).read_text("utf-8")
    assert "| CC0-1.0 | 3 |" in text and "| not stated | 3 |" in text and "| licensed | 6 |" in text
    assert "| de | 6 |" in text and "6 samples in 2 WebDataset tars" in text
    assert ShardFolder(tmp_path / "shards").merkle_root in text


def test_card_is_no_part_of_the_data_set(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    root = ShardFolder(folder).merkle_root
    (folder / CARD).unlink()
    assert ShardFolder(folder).merkle_root == root


def test_joined_parts_have_one_card(tmp_path: Path) -> None:
    parts = []
    for number in range(2):
        with ShardWriter(tmp_path / f"part{number}", 2, card=False) as writer:
            writer.write(f"{number}", sample(number, licence="CC0-1.0"))
        parts.append(tmp_path / f"part{number}")
        assert not (parts[-1] / CARD).exists()
    join_shards(parts, tmp_path / "work")
    text = (tmp_path / "work" / CARD).read_text("utf-8")
    assert "| CC0-1.0 | 2 |" in text


def test_readme_of_others_is_kept(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    (folder / CARD).write_text("# Notes of the curator\n")
    write_card(folder, ShardFolder(folder).shards)
    assert (folder / CARD).read_text() == "# Notes of the curator\n"


def test_arrays_are_declared_as_nested_lists(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "latents", 2) as writer:
        writer.write("0", sample(0) | {"latent.npy": array_bytes(np.zeros((4, 2, 2), np.float16))})
    features = {each["name"]: each for each in front_matter(tmp_path / "latents")["dataset_info"]["features"]}
    assert features["latent.npy"]["list"] == {"list": {"list": "float16"}}


def test_licence_of_a_stranger_is_no_markup(tmp_path: Path) -> None:
    hostile = "[x](javascript:alert(1))<script>|a|\n# b `c` ![](http://x.example/y.png)"
    with ShardWriter(tmp_path / "shards", 2) as writer:
        writer.write("0", sample(0, licence=hostile))
    text = (tmp_path / "shards" / CARD).read_text("utf-8")
    line = next(line for line in text.splitlines() if "javascript" in line)
    assert "<script" not in text and "\n# b" not in text and "](" not in line
    assert plain("a|b\n<c>") == "a\\|b &lt;c&gt;"
    assert front_matter(tmp_path / "shards")["configs"]


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs Hugging Face datasets")
def test_datasets_loads_the_folder_offline(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", LOAD, str(folder)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    licences = [None] * 3 + ["CC0-1.0"] * 3
    expected = [licences, [f"image {n}" for n in range(6)], [[8, 6]] * 6, [8] * 3 + [None] * 3]
    assert [json.loads(line) for line in found.stdout.splitlines()] == [expected, expected]

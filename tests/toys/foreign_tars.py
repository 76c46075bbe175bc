"""Tars that others made: by hand, by webdataset, and by img2dataset itself."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from data_tools.index_shards import main
from data_tools.samples.shard_check import check_folder
from leam_mm.data.shard_index import read_samples
from toys.images import soft_jpeg

Item = tuple[str, bytes]


def write_tar(path: Path, items: Iterable[Item | tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> Path:
    """Write members in the given order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for item in items:
            if isinstance(item, tarfile.TarInfo):
                tar.addfile(item)
                continue
            header = tarfile.TarInfo(item[0])
            header.size, header.mtime = len(item[1]), 1_700_000_000
            tar.addfile(header, io.BytesIO(item[1]))
    return path


def pair(key: str, number: int = 0, caption: str | None = None) -> list[Item]:
    """An image and its caption."""
    return [(f"{key}.jpg", soft_jpeg(number)), (f"{key}.txt", (caption or f"caption {number}").encode())]


def index(*words: object, basis: str = "synthetic") -> None:
    """Run index_shards."""
    main([*map(str, words), "--legal-basis", basis])


def write_links(folder: Path, count: int, missing: int = 0) -> Path:
    """Write images, and a table of their addresses; the last ``missing`` addresses name no file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(soft_jpeg(number))
    urls = [(folder / f"{number:05d}.jpg").resolve().as_uri() for number in range(count + missing)]
    captions = [f"image {number} of {count}" for number in range(count + missing)]
    pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "links.parquet")
    return folder / "links.parquet"


def run_img2dataset(links: Path, output: Path, per_shard: int, **options: Any) -> Path:
    """Run img2dataset, which keeps the bytes and the order of the images."""
    given = {
        "url_list": links, "input_format": "parquet", "url_col": "url", "caption_col": "caption",
        "output_folder": output, "output_format": "webdataset", "disable_all_reencoding": True, "retries": 0,
        "processes_count": 1, "thread_count": 1, "number_sample_per_shard": per_shard, "enable_wandb": False,
    } | options  # fmt: skip
    program = Path(sys.executable).with_name("img2dataset")
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [str(program), *(f"--{name}={value}" for name, value in given.items())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=output.parent, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return output


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of all files of records of a folder."""
    files = sorted(folder.glob("*.records.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def captions_of(folder: Path) -> dict[str, str]:
    """First caption of each sample, by key."""
    return {key: json.loads(members["json"])["captions"][0]["text"] for key, members in read_samples(folder)}


def faults_of(folder: Path) -> list[str]:
    """What check_shards finds."""
    return check_folder(folder)[1].faults


def original_keys(folder: Path) -> list[str]:
    """Keys of the samples in their tars."""
    return [line["record"]["metadata"]["key"] for line in records_of(folder)]


def shard_writer(folder: Path) -> Path:
    """Tars as webdataset writes them, with a gap in the numbers."""
    folder.mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=10, verbose=0) as writer:
        for number in range(30):
            writer.write({"__key__": f"{number:06d}", "jpg": soft_jpeg(number), "txt": f"caption {number}"})
    (folder / "train-000001.tar").rename(folder / "train-000007.tar")
    return folder

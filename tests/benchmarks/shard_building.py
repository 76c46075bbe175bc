"""Final shards from a list of links: screening and download against img2dataset 1.47 alone, as whole processes.

Both fetch the same 256 px JPEGs from a server on this machine, decode each one, and keep its bytes in tar files.
img2dataset does so with skip_reencode and resize_only_if_bigger; otherwise it would encode every image again. Ours
first screens the table (data_tools/screen_links.py, which asks the origin for robots.txt and the rest) and is timed for
both; with --rules also for data_tools/vet_shards.py, with --no-screen for the download alone.
"""

import hashlib
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import pyarrow as pa
import pyarrow.parquet as pq
from processes import IMG2DATASET, ONE_THREAD, answer_with, call, data_tool, served
from toy_input import captions, jpeg

from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import run

SIZE, DISTINCT, PROCESSES, THREADS = 256, 100, 2, 32


def reply_picture(request: bytes, pictures: Sequence[bytes]) -> bytes:
    """Answer GET /NUMBER.jpg; a comment holds the number, so that no two files are the same.

    The comment follows the JFIF segment: img2dataset takes a file without JFIF at byte 6 for no JPEG, and encodes it.
    """
    name = request.split(b" ", 2)[1].strip(b"/").partition(b".")[0]
    if not name.isdigit():
        return answer_with(b"", "404 Not Found")
    picture, comment = pictures[int(name) % len(pictures)], b"\xff\xfe\x00\x0a" + int(name).to_bytes(8, "big")
    end = 4 + int.from_bytes(picture[4:6], "big")  # of the first segment, behind the marker of the image and its own
    return answer_with(picture[:end] + comment + picture[end:], kind="image/jpeg")


def our_stages(links: Path, output: Path, scratch: Path, settings: Any) -> list[list[str]]:
    """The commands of ours, one after the other; the shards to compare lie in ``output``."""
    own = ["--allow-private", "127.0.0.1", "--overwrite", "--processes", str(PROCESSES)]
    stages, table = [], links
    if not settings.no_screen:
        table = scratch / "screened" / "links.parquet"
        stages.append(["screen_links", "--table", str(links), "--output", str(table.parent), *own])
    stages.append(["download_shards", "--table", str(table), "--output", str(output), *own, "--threads", str(THREADS)])
    if settings.rules:
        vetted = ["--shards", str(output), "--rules", str(settings.rules.resolve()), "--overwrite"]
        stages.append(["vet_shards", *vetted, "--output", str(scratch / "vetted"), "--processes", str(PROCESSES)])
    return [data_tool(*stage) for stage in stages]


def our_digests(folder: Path) -> list[str]:
    """Of the pictures in our shards."""
    return sorted(hashlib.sha256(members["jpg"]).hexdigest() for _, members in read_samples(folder))


def peer_digests(folder: Path) -> list[str]:
    """Of the pictures in img2dataset's shards."""
    found = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found.append(hashlib.sha256(content.read()).hexdigest())
    return sorted(found)


@measure.benchmark(
    repeats=3,
    links=(2000, "images fetched in each run"),
    no_screen=(False, "skip screen_links"),
    rules=(Path, "YAML of vet_shards, which is then part of ours"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Serve, check that both keep the same bytes, time both."""
    # Vetting drops copies before its later rules see them: it gets as many pictures as links.
    count = settings.links if settings.rules else min(DISTINCT, settings.links)
    pictures = [jpeg(number, SIZE) for number in range(count)]
    with served(reply_picture, pictures) as port, tempfile.TemporaryDirectory() as scratch:
        return [_measure(Path(scratch), port, settings)]


def _measure(scratch: Path, port: int, settings: Any) -> Path:
    links = scratch / "links.parquet"
    urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(settings.links)]
    pq.write_table(pa.table({"url": urls, "caption": captions(settings.links)}), links)
    ours_folder, peer_folder = scratch / "ours", scratch / "peer"
    stages = our_stages(links, ours_folder, scratch, settings)
    options = {
        "url_list": links,
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": peer_folder,
        "output_format": "webdataset",
        "image_size": SIZE,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "skip_reencode": True,
        "processes_count": PROCESSES,
        "thread_count": THREADS,
        "number_sample_per_shard": 1000,
        "compute_hash": "sha256",
        "retries": 1,
        "enable_wandb": False,
    }
    program = Path(sys.executable).with_name("img2dataset")
    peer_command = [str(program), *(f"--{name}={value}" for name, value in options.items())]

    def ours() -> None:
        for command in stages:
            call(command, **ONE_THREAD)

    def peer() -> None:
        shutil.rmtree(peer_folder, ignore_errors=True)
        call(peer_command, scratch, **IMG2DATASET)

    ours()
    peer()
    kept = our_digests(ours_folder), peer_digests(peer_folder)
    differing = len(set(kept[0]) ^ set(kept[1])) + abs(len(kept[0]) - len(kept[1])) + settings.links - len(kept[0])
    same = [measure.require_same("digests of the pictures kept, number that differs or is missing", differing, 0)]
    found = measure.time_pairs(ours, peer, settings.repeats, warmup=0)
    names = [command[2].rpartition(".")[2] for command in stages]
    notes = (
        f"{PROCESSES} processes x {THREADS} connections, {SIZE} px JPEG, the server on the same processors; start-up "
        f"of Python included, {len(stages)} times for ours; ours also reads rights on every hop, keeps the table's "
        "order, writes index and ledger"
    )
    if settings.rules:
        notes += f"; of {settings.links} vetted, {ShardFolder(scratch / 'vetted').samples} stayed"
    labels = (" + ".join(names), "img2dataset")
    name = "shard_building" + ("_alone" if settings.no_screen else "") + ("_vetted" if settings.rules else "")
    return measure.write_comparison(name, labels, found, (settings.links, "image"), same, settings, notes)


if __name__ == "__main__":
    run(main)

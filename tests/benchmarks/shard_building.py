"""Final shards from a list of links: screening and download against img2dataset 1.47 alone, as whole processes.

Both fetch the same 256 px JPEGs from a server on this machine, decode each one, and keep its bytes in tar files.
img2dataset is told to (skip_reencode, resize_only_if_bigger): otherwise it would encode every picture again. Ours first
screens the table (data_tools/screen_links.py, its origin asked for robots.txt and the rest) and is timed for both; with
--rules also for data_tools/vet_shards.py, with --no-screen for the download alone.
"""

import asyncio
import hashlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import measure
import pyarrow as pa
import pyarrow.parquet as pq
from toy_input import captions, jpeg

from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError, run

SIZE, DISTINCT, PROCESSES, THREADS = 256, 100, 2, 32
HEADER = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"


def serve(pictures: Sequence[bytes], pipe: Connection) -> None:
    """Answer GET /NUMBER.jpg; the number's own bytes follow a JPEG's end, so that no two files are the same."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            name = request.split(b" ", 2)[1].strip(b"/").partition(b".")[0]
            if name.isdigit():
                content = pictures[int(name) % len(pictures)] + int(name).to_bytes(8, "big")
                writer.write(HEADER.format(len(content)).encode() + content)
            else:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        finally:
            writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


@contextmanager
def served(pictures: Sequence[bytes]) -> Iterator[int]:
    """Serve pictures in a process of its own, for as long as this lasts; gives the port on 127.0.0.1."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    server = context.Process(target=serve, args=(pictures, other), daemon=True)
    server.start()
    try:
        if not mine.poll(60):
            raise UserError("the server on 127.0.0.1 did not start within a minute")
        yield int(mine.recv())
    finally:
        server.terminate()
        server.join()


def call(command: list[str], folder: Path) -> None:
    """Run a program to its end."""
    environment = dict(os.environ, NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{command[:3]} failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")


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
    return [[sys.executable, "-m", f"data_tools.{name}", *arguments] for name, *arguments in stages]


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


def main(args: list[str] | None = None) -> list[Path]:
    """Serve, check that both keep the same bytes, time both."""

    def extend(parser: Any) -> None:
        parser.add_argument("--links", type=int, default=2000, help="pictures fetched in each run (%(default)s)")
        parser.add_argument("--no-screen", action="store_true", help="leave screen_links out")
        parser.add_argument("--rules", type=Path, help="YAML of vet_shards, which is then part of ours")

    settings = measure.parse_arguments("shard_building", __doc__ or "", args, 3, extend)
    # Vetting drops copies before its later rules see them: it gets as many pictures as links.
    count = settings.links if settings.rules else min(DISTINCT, settings.links)
    pictures = [jpeg(number, SIZE) for number in range(count)]
    with served(pictures) as port, tempfile.TemporaryDirectory() as scratch:
        return [_measure(Path(scratch), port, settings)]


def _measure(scratch: Path, port: int, settings: Any) -> Path:
    links, root = scratch / "links.parquet", Path(__file__).resolve().parents[2]
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
            call(command, root)

    def peer() -> None:
        shutil.rmtree(peer_folder, ignore_errors=True)
        call(peer_command, scratch)

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

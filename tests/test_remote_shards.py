import functools
import http.server
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from toys.racers import fetch_first, read_everything
from toys.shards import write_toy_shards

from leam_mm.data import remote_shards
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.data.pairs_module import PairsModule
from leam_mm.data.plan_datamodule import Loading
from leam_mm.data.remote_shards import RemoteFolder, ShardCache, Unreachable, open_folder
from leam_mm.data.sample_plan import SamplePlan, Source
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.errors import UserError, one_line

Spawn = multiprocessing.get_context("spawn")  # a fork would copy locks of this process's threads


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples in ten shards."""
    return write_toy_shards(tmp_path_factory.mktemp("remote") / "shards", samples=40, samples_per_shard=4)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts, and misbehaves as configured."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()  # how many more answers end early
        self.swapped: Counter[str] = Counter()  # how many more answers have a wrong byte
        self.slow = 0.0  # seconds before the second half of a tar
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, folder))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def __init__(self, folder: Path, *args: Any) -> None:
        self.folder = folder
        super().__init__(*args)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked[name] += 1
        if not (self.folder / name).is_file():
            self.send_error(404)
            return
        content = bytearray((self.folder / name).read_bytes())
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.server.swapped[name] > 0:
            self.server.swapped[name] -= 1
            content[700] ^= 1
        if self.server.cut[name] > 0:
            self.server.cut[name] -= 1
            content = content[:1000]
        self.wfile.write(content[: len(content) // 2])
        if name.endswith(".tar"):
            time.sleep(self.server.slow)
        self.wfile.write(content[len(content) // 2 :])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(shards: Path) -> Iterator[Server]:
    made = Server(shards)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_shards, "PAUSE", 0.01)


def names(cache: Path, ending: str = ".tar") -> list[str]:
    return sorted(path.name for path in cache.glob(f"*{ending}"))


def keys(plan: SamplePlan, count: int) -> list[str]:
    return [plan.read(number).key for number in range(count)]


@pytest.fixture
def memory(shards: Path) -> Iterator[str]:
    url = "memory://bucket/set"
    filesystem = fsspec.filesystem("memory")
    for path in shards.iterdir():
        filesystem.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    yield url
    filesystem.rm("/bucket", recursive=True)


def test_every_filesystem_gives_the_order_and_bytes_of_the_folder(
    shards: Path, server: Server, memory: str, tmp_path: Path
) -> None:
    local = SamplePlan([Source(shards)], seed=3, shuffle=True)
    for number, url in enumerate((server.url, memory, f"file://{shards}/")):
        remote = SamplePlan([Source(url)], 3, True, ShardCache(tmp_path / str(number)))
        assert all(local.read(index)[1:] == remote.read(index)[1:] for index in range(80))
        assert remote.roots() == {url.rstrip("/"): ShardFolder(shards).merkle_root}
        assert remote.read(0).shard.startswith(url.rstrip("/"))
    assert all(count == 1 for count in server.asked.values()) and len(server.asked) == 21


def test_a_full_cache_is_read_without_asking_again(server: Server, shards: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path)
    first = keys(SamplePlan([Source(server.url)], 0, True, cache), 40)
    server.asked.clear()
    assert keys(SamplePlan([Source(server.url)], 0, True, cache), 40) == first
    assert set(server.asked) == {"manifest.jsonl"}
    digests = [entry.sha256 for entry in ShardFolder(shards).shards]
    assert names(tmp_path) == sorted(f"{digest}.tar" for digest in digests) and not names(tmp_path, ".partial")


def test_processes_that_race_fetch_each_tar_once(server: Server, shards: Path, tmp_path: Path) -> None:
    server.slow = 0.1
    queue = Spawn.Queue()
    racers = [Spawn.Process(target=read_everything, args=(server.url, tmp_path, queue)) for _ in range(4)]
    for process in racers:
        process.start()
    found = [queue.get(timeout=120) for _ in racers]
    local = ShardFolder(shards)
    expected = [(local.index(number).keys, entry.bytes) for number, entry in enumerate(local.shards)]
    assert found == [expected] * 4
    for process in racers:
        process.join(60)
    assert all(count == 1 for name, count in server.asked.items() if name != "manifest.jsonl")


def test_loader_workers_read_through_the_cache(server: Server, shards: Path, tmp_path: Path) -> None:
    def loaded(train: str | Path, cache: ShardCache | None, workers: int) -> list[Any]:
        made = PairsModule(train, ImageDecoding(16, (0.5, 1.0)), 8, loading=Loading(workers, cache=cache))
        made.setup("fit")
        return [(batch["key"], batch["caption"], batch["image"].sum()) for batch in made.train_dataloader()]

    assert loaded(server.url, ShardCache(tmp_path), 3) == loaded(shards, None, 0)
    assert all(count == 1 for name, count in server.asked.items() if name.endswith(".tar"))


def test_a_damaged_download_is_fetched_again(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.swapped["00000.tar"] = 2
    server.cut["00001.tar"] = 2
    plan = SamplePlan([Source(server.url)], 0, False, ShardCache(tmp_path))
    assert keys(plan, 8) == [f"{number:06d}" for number in range(8)]
    assert server.asked["00000.tar"] == server.asked["00001.tar"] == 3
    assert "00000.tar has sha256" in caplog.text and "attempt 1 of 4" in caplog.text


def test_a_shard_that_stays_damaged_is_named_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    server.swapped["00000.tar"] = 10**6
    folder = RemoteFolder(server.url, ShardCache(tmp_path))
    with pytest.raises(
        UserError, match=r"00000\.tar has sha256 .* the manifest says .*: upload the shard again"
    ) as caught:
        folder.open(0)
    assert type(caught.value) is UserError and server.asked["00000.tar"] == 4
    assert not names(tmp_path) and not names(tmp_path, ".partial")


def test_a_missing_shard_is_a_fault_of_the_data_and_a_silent_server_is_not(
    server: Server, shards: Path, tmp_path: Path
) -> None:
    folder = RemoteFolder(server.url, ShardCache(tmp_path / "a"))
    object.__setattr__(folder.shards[0], "shard", "99999.tar")
    with pytest.raises(UserError, match=r"99999\.tar is missing: upload") as caught:
        folder.open(0)
    assert type(caught.value) is UserError
    made = PairsModule(server.url, ImageDecoding(16), 4, loading=Loading(1, 0.9, ShardCache(tmp_path / "b")))
    made.setup("fit")
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as refused:  # replaced would be a sample of which nothing bad is known
        next(iter(made.train_dataloader()))
    line = one_line(refused.value)
    assert line.startswith(server.url) and "cannot be fetched" in line and "copy the folder to this machine" in line
    with pytest.raises(Unreachable, match=r"manifest\.jsonl cannot be fetched"):
        RemoteFolder(server.url, ShardCache(tmp_path / "c"))


def test_a_kill_in_the_middle_of_a_fetch_leaves_nothing_that_looks_whole(
    server: Server, shards: Path, tmp_path: Path
) -> None:
    server.slow = 30.0
    process = Spawn.Process(target=fetch_first, args=(server.url, tmp_path))
    process.start()
    until = time.monotonic() + 30
    while not any(path.stat().st_size for path in tmp_path.glob("*.partial")):
        assert time.monotonic() < until and process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not names(tmp_path) and len(names(tmp_path, ".partial")) == 1
    server.slow = 0.0
    entry = ShardFolder(shards).shards[0]
    # Another shard's fetch clears what the dead left, as no lock is held for it.
    small = ShardCache(tmp_path, max_bytes=2 * entry.bytes)
    RemoteFolder(server.url, small).tar(1)
    assert not names(tmp_path, ".partial")
    assert RemoteFolder(server.url, small).tar(0).read_bytes() == (shards / entry.shard).read_bytes()


def test_longest_unused_tars_go_first_and_never_one_that_is_open(server: Server, shards: Path, tmp_path: Path) -> None:
    entries = ShardFolder(shards).shards
    indexes = [path.stat().st_size for path in shards.glob("*.index.parquet")]
    room = 3 * (max(entry.bytes for entry in entries) + max(indexes)) + 5000  # the file system's folder itself
    folder = RemoteFolder(server.url, ShardCache(tmp_path, max_bytes=room))
    held = folder.open(0)
    for number in range(1, len(entries)):
        folder.open(number).close()
        folder.index(number)
        there = set(names(tmp_path))
        assert f"{entries[0].sha256}.tar" in there and f"{entries[number].sha256}.tar" in there
        tars = sum((tmp_path / name).stat().st_size for name in there)
        assert tars <= room
    assert len(names(tmp_path)) < len(entries) and len(names(tmp_path, ".index.parquet")) <= len(names(tmp_path))
    kept = [number for number, entry in enumerate(entries) if f"{entry.sha256}.tar" in names(tmp_path)]
    assert kept == [0, *range(len(entries) - len(kept) + 1, len(entries))]  # those used last
    assert held.read(1024) == (shards / entries[0].shard).read_bytes()[:1024]
    held.close()
    folder.open(1).close()
    assert f"{entries[0].sha256}.tar" not in names(tmp_path)  # closed, it was the one used longest ago


def test_all_in_use_goes_above_the_limit_and_says_so(
    server: Server, shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RemoteFolder(server.url, ShardCache(tmp_path, max_bytes=ShardFolder(shards).shards[0].bytes))
    held = [folder.open(number) for number in range(2)]
    assert len(names(tmp_path)) == 2 and "all are in use" in caplog.text
    for file in held:
        file.close()


def test_cache_smaller_than_what_is_open_at_a_time_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_bytes is 1000: give at least \d+, the 16 shards"):
        SamplePlan([Source(server.url)], 0, True, ShardCache(tmp_path, max_bytes=1000))


def test_url_without_cache_and_unknown_protocol_name_the_cure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a folder .* data.init_args.loading.cache"):
        open_folder("s3://bucket/folder")
    with pytest.raises(UserError, match="gopher"):
        open_folder("gopher://bucket/folder", ShardCache(tmp_path))
    with pytest.raises(UserError, match=r"manifest.jsonl is missing"):
        open_folder("memory://nothing", ShardCache(tmp_path))


def test_next_block_is_fetched_before_it_is_read(server: Server, tmp_path: Path) -> None:
    plan = SamplePlan([Source(server.url)], 0, True, ShardCache(tmp_path))
    plan.read(0)  # of a block of eight; two shards follow
    ahead = {plan.readers[0].folder.shards[number].shard for number in plan.orders[0].upcoming(0)}
    assert len(ahead) == 2
    until = time.monotonic() + 20
    while not ahead <= set(server.asked):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_folder_travels_to_workers(server: Server, tmp_path: Path) -> None:
    folder = pickle.loads(pickle.dumps(RemoteFolder(server.url, ShardCache(tmp_path))))
    assert folder.tar(3).is_file() and folder.index(3).keys == [f"{number:06d}" for number in range(12, 16)]


def test_damaged_index_is_not_kept(server: Server, shards: Path, tmp_path: Path) -> None:
    folder = RemoteFolder(server.url, ShardCache(tmp_path))
    server.swapped["00000.index.parquet"] = 0
    server.cut["00000.index.parquet"] = 0
    original = (shards / "00000.index.parquet").read_bytes()
    try:
        (shards / "00000.index.parquet").write_bytes(original[:200])
        with pytest.raises(UserError, match=r"00000\.index\.parquet is no readable index"):
            folder.index(0)
    finally:
        (shards / "00000.index.parquet").write_bytes(original)
    assert not names(tmp_path, ".index.parquet")
    assert folder.index(0).keys == [key for key, _ in list(read_samples(shards))[:4]]


def test_a_port_where_nobody_listens_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with caplog.at_level(logging.WARNING), pytest.raises(Unreachable) as caught:
        RemoteFolder(f"http://127.0.0.1:{port}/set", ShardCache(tmp_path))
    assert "\n" not in str(caught.value) and caplog.text.count("does not answer") == 3

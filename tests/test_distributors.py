"""The same download through each of img2dataset's distributors on this machine."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.images import encoded_image, two_coloured_image
from toys.recipes import ROOT
from toys.servers import Server
from toys.slurm import Cluster, wait_for

from data_tools.download.download_worker import PartDownloader
from data_tools.network.image_fetch import FetchSetting

ROWS = 50
SCRIPT = ROOT / "configs" / "clusters" / "slurm_download.sh"
NEEDED = {"pyspark": "pyspark", "ray": "ray"}
FAILS_ONCE = """
    import pathlib, sys
    if "data_tools.download.distributors" in " ".join(sys.orig_argv) or "ray" in " ".join(sys.orig_argv):
        try:
            from data_tools.download import download_worker
        except ImportError:
            download_worker = None
        if download_worker:
            fetch, mark = download_worker.Part.fetch, pathlib.Path({mark!r})
            def fails_once(part):
                if part.number == 1 and not mark.exists():
                    mark.write_text("failed")
                    raise OSError("the disk was full for a moment")
                fetch(part)
            download_worker.Part.fetch = fails_once
"""


@pytest.fixture()
def links(server: Server, tmp_path: Path) -> Iterator[Path]:
    for number in range(ROWS):
        server.answers[f"/{number}.png"] = (200, {}, encoded_image(two_coloured_image(8 + number % 5, 9)))
    table = {"url": [f"{server.url}/{i}.png" for i in range(ROWS)], "caption": [f"picture {i}" for i in range(ROWS)]}
    pq.write_table(pa.table(table), tmp_path / "links.parquet")
    yield tmp_path / "links.parquet"


def arguments(links: Path, output: str, *more: str) -> list[str]:
    command = ["--table", str(links), "--output", str(links.parent / output), "--allow-private", "127.0.0.1"]
    return [*command, "--threads", "2", "--processes", "2", *more]


def download(links: Path, output: str, *more: str, **environment: str) -> str:
    program = [sys.executable, "-m", "data_tools.download_shards", *arguments(links, output, *more)]
    done = subprocess.run(program, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stderr


def manifest(links: Path, output: str) -> bytes:
    return (links.parent / output / "manifest.jsonl").read_bytes()


def test_the_class_is_pickled_by_name_and_imports_no_heavy_library() -> None:
    setting = FetchSetting("", "", "Agent", "")
    given = {name: None for name in ("sample_writer_class", "resizer", "thread_count", "output_folder")}
    packed = pickle.dumps(PartDownloader(setting, **given))
    code = """
        import pickle, sys
        found = pickle.loads(sys.stdin.buffer.read())
        heavy = {"img2dataset", "cv2", "pandas", "torch", "webdataset"} & set(sys.modules)
        print(type(found).__module__, *sorted(heavy))
        print(found.setting.agent)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], input=packed, capture_output=True, cwd=ROOT, check=True
    )
    assert done.stdout.split() == [b"data_tools.download.download_worker", b"Agent"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("distributor", ["pyspark", "ray"])
def test_another_distributor_gives_the_same_bytes(distributor: str, server: Server, links: Path) -> None:
    if importlib.util.find_spec(NEEDED[distributor]) is None:
        pytest.skip(f"{distributor} is not installed")
    download(links, "plain")
    asked = len(server.requests)
    assert asked == ROWS
    download(links, "other", "--distributor", distributor)
    assert manifest(links, "other") == manifest(links, "plain")
    assert len(server.requests) == 2 * asked


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_part_that_failed_under_ray_is_fetched_again(server: Server, links: Path, tmp_path: Path) -> None:
    """The ray distributor of img2dataset 1.47 neither retries nor reports failed parts."""
    pytest.importorskip("ray")
    patches = tmp_path / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(textwrap.dedent(FAILS_ONCE).format(mark=str(tmp_path / "mark")))
    path = os.pathsep.join((str(patches), str(ROOT)))
    said = download(links, "shaken", "--distributor", "ray", "--keep-work", PYTHONPATH=path)
    assert (tmp_path / "mark").exists() and "1 parts did not come back whole" in said
    download(links, "plain")
    assert manifest(links, "shaken") == manifest(links, "plain")
    assert "the disk was full" not in said  # output of the distributor stays in the journal


@pytest.mark.slow
def test_slices_side_by_side_give_the_same_bytes(links: Path) -> None:
    threads = [threading.Thread(target=download, args=(links, "sliced", "--slice", f"{i}/3")) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not (links.parent / "sliced").exists()
    assert len(list((links.parent / "sliced.work" / "raw").glob("*.parquet"))) == 3
    download(links, "sliced")
    download(links, "plain")
    assert manifest(links, "sliced") == manifest(links, "plain")


def test_the_slurm_script_is_valid() -> None:
    assert subprocess.run(["bash", "-n", str(SCRIPT)]).returncode == 0
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    empty = subprocess.run(["bash", str(SCRIPT), "--table"], capture_output=True, text=True, env=plain)
    assert empty.returncode == 2 and "how many jobs" in empty.stderr


@pytest.mark.slurm
@pytest.mark.timeout(1800)
def test_an_array_of_slurm_jobs_gives_the_same_bytes(cluster: Cluster, server: Server, links: Path) -> None:
    log = links.parent / "job-%A-%a.out"
    environment = {"PYTHONPATH": str(ROOT), "LEAM_PYTHON": sys.executable, "LEAM_SBATCH": f"--time=20 --output={log}"}
    printed = cluster.call("bash", str(SCRIPT), "3", *arguments(links, "array"), **environment)
    last = printed.split("job ")[1].split()[0]
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    wait_for("the last job", lambda: cluster.job(last)["JobState"] in over, links.parent, seconds=900)
    logs = "\n".join(path.read_text() for path in sorted(links.parent.glob("job-*.out")))
    assert cluster.job(last)["JobState"] == "COMPLETED", logs
    assert logs.count("is fetched; no shards are written yet") == 3
    assert len(server.requests) == ROWS  # the array fetched all of it, and nothing twice
    download(links, "plain")
    assert manifest(links, "array") == manifest(links, "plain")
    seal = json.loads((links.parent / "array" / "download.json").read_text())
    assert seal == json.loads((links.parent / "plain" / "download.json").read_text())

"""From a table of links to vetted shards, killed (signal 9) at random times and started again: what differs.

The programs run one after the other, each a process of its own: screen_links, download_shards, vet_shards with
--materialise. One is killed at a time drawn over the time of the undisturbed run, and the same commands are given
again at once; processes that it had started must end by themselves. Whenever the pipeline has finished, every shard,
index and manifest is compared with the undisturbed run's, and it starts again until all kills are done. Counts,
not times.
"""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import pyarrow as pa
import pyarrow.parquet as pq
from processes import ROOT, data_tool, served
from rich.table import Table
from shard_building import reply_picture
from toy_input import captions, jpeg

from leam_mm.errors import UserError, run
from leam_mm.files import file_sha256

STAGES = ("screen", "download", "vet")
OUTPUTS = {"screen": "screened", "download": "shards", "vet": "vetted"}
COMPARED = ("*.tar", "*.index.parquet", "manifest.jsonl", "keep.parquet", "links.parquet", "vetting.json")
PATIENCE = 600.0  # seconds that a program may take


def commands(links: Path, folder: Path, stages: list[str], rules: Path) -> list[tuple[str, Path, list[str]]]:
    """Name, output and command of every stage, in order."""
    output = {name: folder / OUTPUTS[name] for name in STAGES}
    table = output["screen"] / "links.parquet" if "screen" in stages else links
    own = ["--allow-private", "127.0.0.1"]
    fetch = ["--table", str(table), "--output", str(output["download"]), "--samples-per-shard", "50", "--threads", "4"]
    vet = ["--shards", str(output["download"]), "--output", str(output["vet"]), "--rules", str(rules)]
    given = {
        "screen": ("screen_links", "--table", links, "--output", output["screen"], *own),
        "download": ("download_shards", *fetch, *own),
        "vet": ("vet_shards", *vet, "--materialise"),
    }
    return [(name, output[name], data_tool(*given[name])) for name in stages]


def walk(stages: list[tuple[str, Path, list[str]]], kill_after: float | None) -> str | None:
    """Run what is not done yet, until the end or until a kill.

    Args:
        stages: Of `commands`.
        kill_after: Seconds from now to the kill; None for none.

    Returns:
        The stage that was killed, or None if the end was reached first.
    """
    begin = time.monotonic()
    for name, output, command in stages:
        if output.exists():
            continue
        limit = PATIENCE if kill_after is None else max(0.0, kill_after - (time.monotonic() - begin))
        with tempfile.TemporaryFile() as log:
            program = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            try:
                code = program.wait(limit)
            except subprocess.TimeoutExpired:
                program.send_signal(signal.SIGKILL)
                program.wait()
                if kill_after is None:
                    raise UserError(f"{name} did not end within {PATIENCE:.0f} s") from None
                return name
            if code:
                log.seek(0)
                raise UserError(f"{name} ended with {code}: {log.read().decode(errors='replace').strip()[-600:]}")
    return None


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that must be the same."""
    paths = [path for output in OUTPUTS.values() for kind in COMPARED for path in (folder / output).glob(kind)]
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(paths)}


@measure.benchmark(
    repeats=1,
    kills=(20, "number of kills"),
    links=(400, "links to images"),
    stages=(list(STAGES), "stages of the pipeline", {"choices": STAGES}),
    rules=(ROOT / "configs/vet_basic.yaml", "rules of vet"),
    seed=(0, "seed of the times of the kills"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Serve, run undisturbed, then kill and compare."""
    settings.stages = [name for name in STAGES if name in settings.stages]
    if "download" not in settings.stages:
        raise UserError("--stages: without download nothing is made that could be compared")
    pictures = [jpeg(number, 96) for number in range(min(100, settings.links))]
    with served(reply_picture, pictures) as port, tempfile.TemporaryDirectory() as scratch:
        return [_measure(Path(scratch), port, settings)]


def _measure(scratch: Path, port: int, settings: Any) -> Path:
    links = scratch / "links.parquet"
    urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(settings.links)]
    pq.write_table(pa.table({"url": urls, "caption": captions(settings.links)}), links)
    begin = time.monotonic()
    walk(commands(links, scratch / "whole", settings.stages, settings.rules), None)
    seconds = time.monotonic() - begin
    expected = digests(scratch / "whole")
    rng, killed, finished = random.Random(settings.seed), Counter[str](), 0
    differing: list[str] = []
    folder = scratch / "killed"
    stages = commands(links, folder, settings.stages, settings.rules)
    while True:
        done = killed.total() == settings.kills
        stage = walk(stages, None if done else rng.uniform(0.0, seconds))
        if stage is not None:
            killed[stage] += 1
            continue
        finished += 1
        found = digests(folder)
        differing += [name for name in expected | found if expected.get(name) != found.get(name)]
        if differing:
            raise UserError(f"after {dict(killed)} kills these differ from the undisturbed run's: {differing[:8]}")
        shutil.rmtree(folder)
        if done:
            break
    same = [measure.require_same("files that differ from the undisturbed run's", len(differing), 0)]
    content = {
        "kills": dict(killed),
        "ways_finished": finished,
        "files_compared": len(expected),
        "seconds_undisturbed": seconds,
        "links": settings.links,
        "same_work": same,
    }
    table = Table("", "", title="shard_resume")
    for name in STAGES:
        table.add_row(f"kills in {name}", str(killed[name]))
    table.add_row("ways finished, each compared", str(finished))
    table.add_row("files compared, differing", f"{len(expected)}, {len(differing)}")
    return measure.write_result(content, settings, table)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run(main)

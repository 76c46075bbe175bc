"""Memory and cost of data_tools/screen_links.py over tables of growing length, whole processes, all text rules on.

    python tests/benchmarks/screen_memory.py --rows 100000 1000000
    python tests/benchmarks/screen_memory.py --rows 10000000 --network off

Captions are those of scenes in 24 languages, one in five with sizes or dates and one in thirty with personal data;
hosts are as unequal as on the web; 3 % of the links occur twice. Blocklists hold 100,000 domains, 10,000
digests and 20,000 phrases. With --network loopback the hosts are addresses of this machine, where a server answers.
Memory is that of all processes together, pages that they share counted once (PSS), four times a second.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from processes import ROOT, answer_with, data_tool, served, tree_memory
from rich.table import Table

from data_tools.corpora.scene_corpus import make_scene
from data_tools.corpora.scene_prompts import captions
from leam_mm.errors import UserError, run

MIB, PART, LIMIT = 2**20, 50_000, 2000
ENDINGS = [
    ", 1200 x 800 px",
    ", 12.05.2021",
    ", Art.-Nr. 4006381333931",
    ", 1.299,00 €",
    " (3/12)",
    ", 2021-05-12 14:30",
]
PERSONAL = [", anna.berg@example.de", ", Tel. 030 901820", " by @anna_b", ", +33 1 23 45 67 89", ", PESEL 44051401359"]


def write_table(path: Path, rows: int, hosts: list[str]) -> None:
    """A table of links; the same rows for the same numbers of rows and hosts."""
    chance = np.random.default_rng(0)
    texts = [text for number in range(4000) for text in captions(make_scene("train", 0, number), chance).values()]
    weights = 1 / np.arange(1, len(hosts) + 1)
    edges = np.cumsum(weights / weights.sum())
    schema = pa.schema([(name, pa.string()) for name in ("url", "caption", "page_url", "language", "source")])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            number = np.arange(start, start + count)
            twice = (chance.random(count) < 0.03) & (number > 1000)
            number[twice] -= chance.integers(1, 1000, twice.sum())
            place = np.minimum(np.searchsorted(edges, _spread(number)), len(hosts) - 1)
            words, kind = chance.integers(0, len(texts), count), chance.random(count)
            endings, people = chance.integers(0, len(ENDINGS), count), chance.integers(0, len(PERSONAL), count)
            found = [
                texts[word] + (PERSONAL[who] if share < 1 / 30 else ENDINGS[which] if share < 0.23 else "")
                for word, share, which, who in zip(words, kind, endings, people, strict=True)
            ]
            urls = [f"http://{hosts[host]}/images/{n:010d}.jpg" for host, n in zip(place, number, strict=True)]
            pages = [f"https://page{n % 9973}.example/articles/{n}.html" for n in number]
            empty = pa.nulls(count, pa.string())
            writer.write_table(pa.table([urls, found, pages, empty, pa.array(["crawl"] * count)], schema=schema))


def _spread(number: np.ndarray) -> np.ndarray:
    """A number in [0, 1) of each row, so that both copies of a link have the same host."""
    with np.errstate(over="ignore"):
        mixed = number.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2**53


def write_lists(folder: Path) -> list[str]:
    """Blocklists that match few of the links."""
    (folder / "domains.txt").write_text("".join(f"bad{number}.example\n" for number in range(100_000)))
    digests = (hashlib.sha256(f"http://bad.example/{number}".encode()).hexdigest() for number in range(10_000))
    (folder / "digests.txt").write_text("\n".join(digests))
    (folder / "phrases.txt").write_text("".join(f"bad{number} phrase{number}\n" for number in range(20_000)))
    names = ("domains", "digests", "phrases")
    options = zip(("--block-domains", "--block-urls", "--block-phrases"), names, strict=True)
    return [word for option, name in options for word in (option, str(folder / f"{name}.txt"))]


def reply_rules(request: bytes) -> bytes:
    """Answer for every origin: some refuse a folder, some have no rules, some are broken."""
    host = request.decode("latin-1").partition("Host: ")[2].partition("\r\n")[0].partition(":")[0]
    last = int(host.rpartition(".")[2]) % 20
    if b"/robots.txt" not in request or last == 0:
        return answer_with(b"", "404 Not Found")
    if last == 1:
        return answer_with(b"", "503 Service Unavailable")
    return answer_with(b"User-agent: *\nDisallow: /private/\nCrawl-delay: 1\n")


def watch(command: list[str]) -> tuple[float, int, int]:
    """Run a program; seconds, largest PSS and largest sum of RSS of its processes, in bytes."""
    begin, pss, rss = time.perf_counter(), 0, 0
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    whole = psutil.Process(running.pid)
    while running.poll() is None:
        try:
            now = tree_memory(whole)
            pss, rss = max(pss, now[0]), max(rss, now[1])
        except psutil.Error:
            pass  # a process ended between two looks
        time.sleep(0.25)
    if running.returncode:
        assert running.stderr is not None
        raise UserError(f"{command[:4]} failed: {running.stderr.read().strip()[-600:]}")
    return time.perf_counter() - begin, pss, rss


@measure.benchmark(
    repeats=1,
    rows=([20_000, 100_000], "length of each table"),
    network=("loopback", "where origins are asked", {"choices": ("loopback", "off")}),
    hosts=(200, "number of hosts with --network loopback"),
    processes=(2, "processes that check rows"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Screen tables of each length."""
    found = []
    with served(reply_rules, host="0.0.0.0") as port:
        for rows in settings.rows:
            with tempfile.TemporaryDirectory() as scratch:
                found.append(_measure(Path(scratch), rows, port, settings))
    return [_report(found, settings)]


def _measure(scratch: Path, rows: int, port: int, settings: Any) -> dict[str, Any]:
    own = [f"127.0.{number // 250}.{1 + number % 250}" for number in range(settings.hosts)]
    hosts = [f"{host}:{port}" for host in own] if settings.network == "loopback" else []
    hosts = hosts or [f"img.site{number}.example" for number in range(max(10, rows // 20))]
    write_table(scratch / "links.parquet", rows, hosts)
    output = scratch / "screened"
    words = ["--table", scratch / "links.parquet", "--output", output, "--processes", settings.processes]
    words += write_lists(scratch)
    words += ["--skip-origins"] if settings.network == "off" else []
    words += [word for host in own for word in ("--allow-private", host)] if settings.network == "loopback" else []
    seconds, pss, rss = watch(data_tool("screen_links", *words))
    ledger = pq.ParquetFile(output / "ledger.parquet").metadata.num_rows
    kept = pq.ParquetFile(output / "links.parquet").metadata.num_rows
    summary = json.loads((output / "summary.json").read_text())
    dropped = Counter(summary["dropped"])
    same = [
        measure.require_same(f"{rows} rows: rows of the ledger", abs(ledger - rows), 0),
        measure.require_same(f"{rows} rows: kept and dropped", abs(kept + dropped.total() - rows), 0),
        measure.require_same(f"{rows} rows: no duplicate found", float(not dropped["duplicate_link"]), 0),
    ]
    return {
        "rows": rows,
        "kept": kept,
        "seconds": seconds,
        "rows_per_second": rows / seconds,
        "peak_pss_mib": pss / MIB,
        "peak_rss_sum_mib": rss / MIB,
        "cpu_ms_per_row": summary["cpu_ms_per_row"],
        "cpu_ms_per_row_by_rule": {name: entry["cpu_ms_per_row"] for name, entry in summary["cost"].items()},
        "dropped": summary["dropped"],
        "disk_of_results_mib": sum(path.stat().st_size for path in output.iterdir()) / MIB,
        "same_work": same,
    }


def _report(found: list[dict[str, Any]], settings: Any) -> Path:
    table = Table("rows", "peak MiB (PSS)", "sum of RSS", "rows/s", "CPU ms/row", title="screen_links")
    for each in found:
        numbers = (each["peak_pss_mib"], each["peak_rss_sum_mib"], each["rows_per_second"])
        table.add_row(f"{each['rows']:,}", *(f"{number:,.0f}" for number in numbers), f"{each['cpu_ms_per_row']:.3f}")
    content: dict[str, Any] = {"same_work": [entry for each in found for entry in each.pop("same_work")]}
    content |= {"tables": found, "network": settings.network, "processes": settings.processes, "limit_mib": LIMIT}
    content["under_limit"] = all(each["peak_pss_mib"] < LIMIT for each in found)
    if len(found) > 1:
        (small, large), base = (min(found, key=_rows), max(found, key=_rows)), 10_000_000
        slope = (large["peak_pss_mib"] - small["peak_pss_mib"]) / max(1, large["rows"] - small["rows"])
        content["mib_per_million_rows"] = slope * 1e6
        content["estimated_mib_at_10_million_rows"] = large["peak_pss_mib"] + max(0.0, slope) * (base - large["rows"])
    return measure.write_result(content, settings, table)


def _rows(found: dict[str, Any]) -> int:
    return int(found["rows"])


if __name__ == "__main__":
    run(main)

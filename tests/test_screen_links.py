import hashlib
import http.server
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.recipes import ROOT

from data_tools import screen_links
from data_tools.download.image_download import screened_hosts
from data_tools.links.link_table import read_links
from data_tools.rights.robots_rules import RobotsRules
from data_tools.screen_links import main
from leam_mm.data.ledger import SCHEMA
from leam_mm.errors import UserError

CAPTION = "Eine rote Katze schläft auf dem alten Sofa im Garten"
HOSTS = [f"127.0.0.{number}" for number in range(1, 13)]
ROBOTS = {
    "127.0.0.2": (200, "User-agent: *\nDisallow: /private/\nCrawl-delay: 3\n"),
    "127.0.0.3": (503, ""),
    "127.0.0.4": (404, ""),
    "127.0.0.5": (200, "User-agent: leam_mm\nDisallow: /\n"),
}
TDMREP = {"127.0.0.6": '[{"location": "/art/*", "tdm-reservation": 1}]'}


class Origins(http.server.ThreadingHTTPServer):
    """Twelve hosts on one port; counts what each is asked and how many connections it sees at a time."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self.open: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.total_most, self.pause, self.lock = 0, 0.0, threading.Lock()
        super().__init__(("0.0.0.0", 0), Answer)

    def handle_error(self, *_: Any) -> None:
        pass  # a client that was killed leaves in the middle of an answer


class Answer(http.server.BaseHTTPRequestHandler):
    server: Origins

    def do_GET(self) -> None:
        host = self.headers["Host"].partition(":")[0]
        with self.server.lock:
            self.server.asked[host, self.path] += 1
            self.server.open[host] += 1
            self.server.most[host] = max(self.server.most[host], self.server.open[host])
            self.server.total_most = max(self.server.total_most, sum(self.server.open.values()))
        time.sleep(self.server.pause)
        status, text = ROBOTS.get(host, (200, "User-agent: *\nAllow: /\n")) if self.path == "/robots.txt" else (404, "")
        if self.path == "/.well-known/tdmrep.json" and host in TDMREP:
            status, text = 200, TDMREP[host]
        with self.server.lock:
            self.server.open[host] -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Origins]:
    with Origins() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


def write_table(folder: Path, port: int, rows: int = 200) -> Path:
    chance = random.Random(0)
    urls, captions = [], []
    for number in range(rows):
        place = chance.choice(["art", "private", "open"])
        urls.append(f"http://{chance.choice(HOSTS)}:{port}/{place}/{number % (rows - 20)}.jpg")
        captions.append(CAPTION + chance.choice(["", "", ", anna@example.de", ", Tel. 030 901820"]))
    urls[7], urls[8], captions[9] = "ftp://127.0.0.9/a.jpg", "http://10.0.0.1/a.jpg", ""
    urls[20:30] = urls[10:20]
    consent = [json.dumps({"page_rights": []}) if number % 2 else None for number in range(rows)]
    path = folder / "links.parquet"
    pq.write_table(pa.table({"url": urls, "caption": captions, "consent": consent, "source": ["x"] * rows}), path)
    return path


def command(table: Path, output: Path, *more: str) -> list[str]:
    private = [word for host in HOSTS for word in ("--allow-private", host)]
    return ["--table", str(table), "--output", str(output), "--processes", "1", *private, *more]


def results(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("links.parquet", "ledger.parquet")
    }


def test_links_are_screened_with_evidence(server: Origins, tmp_path: Path) -> None:
    table, output = write_table(tmp_path, server.server_port), tmp_path / "screened"
    server.pause = 0.02
    main(command(table, output))
    ledger = pq.read_table(output / "ledger.parquet")
    assert ledger.schema.equals(SCHEMA) and ledger.num_rows == 200
    given = read_links(table)["url"].to_pylist()
    rows = ledger.to_pylist()
    assert [row["url"] for row in rows] == given and all(row["uid"] and row["stage"] == "screen_links" for row in rows)
    first: dict[str, str] = {}
    for row in rows:
        host, _, path = str(row["url"]).partition("//")[2].partition(f":{server.server_port}/")
        wanted = "kept"
        if str(row["url"]).startswith("ftp"):
            wanted = "scheme"
        elif "10.0.0.1" in str(row["url"]):
            wanted = "private_address"
        elif row is rows[9]:
            wanted = "caption"
        elif row["url"] in first:
            wanted = "duplicate_link"
            assert row["value"] == first[row["url"]] and json.loads(row["evidence"]) == {"first": row["value"]}
        elif (host == "127.0.0.2" and path.startswith("private")) or host in ("127.0.0.3", "127.0.0.5"):
            wanted = "robots.txt"
            assert json.loads(row["evidence"])["signal"]["source"] == f"http://{host}:{server.server_port}/robots.txt"
        elif host == "127.0.0.6" and path.startswith("art"):
            wanted = "tdmrep.json"
        assert (row["rule"], row["kept"]) == (wanted, wanted == "kept"), row
        if wanted in ("kept", "robots.txt", "tdmrep.json"):
            first[row["url"]] = row["uid"]
    links = pq.read_table(output / "links.parquet")
    kept = {row["uid"]: row for row in rows if row["kept"]}
    assert set(links["uid"].to_pylist()) == set(kept) and links.num_rows == len(kept) > 80
    for row in links.to_pylist():
        assert (
            row["url"] == kept[row["uid"]]["url"] and row["language"] == "de" and row["legal_basis"] == "art4_general"
        )
        assert "@" not in row["caption"] and "901820" not in row["caption"] and row["source"] == "x"
        consent = json.loads(row["consent"])
        robots = [each for each in consent["origin"] if each["kind"] == "robots.txt"]
        assert robots and not robots[0]["reserved"] and row["origin"] in robots[0]["source"]
    summary = json.loads((output / "summary.json").read_text())
    assert summary["rows"] == 200 and summary["kept"] == len(kept) and summary["origins"]["origins"] == 12
    assert sum(summary["dropped"].values()) + summary["kept"] == 200 and summary["language"] == {"de": len(kept)}
    assert all(entry["cpu_seconds"] >= 0 for entry in summary["cost"].values())
    assert read_links(output / "links.parquet").num_rows == len(kept) and not (tmp_path / "screened.work").exists()


def test_each_origin_is_asked_once_and_alone_and_its_budget_is_written(server: Origins, tmp_path: Path) -> None:
    server.pause = 0.05
    main(command(write_table(tmp_path, server.server_port), tmp_path / "screened", "--delay", "0.5"))
    assert set(server.asked.values()) == {1} and {host for host, _ in server.asked} == set(HOSTS)
    assert set(server.most.values()) == {1} and server.total_most >= 4
    rows = [json.loads(line) for line in (tmp_path / "screened/origins.jsonl").read_text().splitlines()]
    origins = {row["origin"].rpartition("/")[2].partition(":")[0]: row for row in rows}
    assert set(origins) == set(HOSTS)
    slow, usual = origins["127.0.0.2"], origins["127.0.0.9"]
    assert (slow["crawl_delay"], slow["delay"], slow["connections"]) == (3.0, 3.0, 1) and usual["delay"] == 0.5
    assert slow["least_seconds"] == 3.0 * (slow["kept"] - 1)
    assert slow["links"] == slow["kept"] + sum(slow["refused"].values())
    robots = slow["evidence"]["/robots.txt"]
    assert robots["status"] == 200 and robots["sha256"] == hashlib.sha256(ROBOTS["127.0.0.2"][1].encode()).hexdigest()
    assert "Crawl-delay" in (tmp_path / "screened/answers.jsonl").read_text()
    assert screened_hosts(tmp_path / "screened/origins.jsonl")[0]["127.0.0.2"] == 3.0


def test_neighbours_in_the_order_are_of_different_origins(server: Origins, tmp_path: Path) -> None:
    main(command(write_table(tmp_path, server.server_port, 700), tmp_path / "screened"))
    origins = pq.read_table(tmp_path / "screened/links.parquet")["origin"].to_pylist()
    counts = Counter(origins)
    for start in range(0, len(origins) - 100, 10):
        inside = Counter(origins[start : start + 100])
        assert all(inside[name] <= 2 + 1.5 * 100 * counts[name] / len(origins) for name in inside)


def test_the_same_input_gives_the_same_bytes_in_any_order_of_rows(server: Origins, tmp_path: Path) -> None:
    table = write_table(tmp_path, server.server_port)
    for name in ("one", "two"):
        main(command(table, tmp_path / name))
    assert results(tmp_path / "one") == results(tmp_path / "two")
    rows = pq.read_table(table)
    fresh = rows.slice(30)  # without duplicates, of which the first in the table stays
    pq.write_table(fresh.slice(0, 150), tmp_path / "a.parquet")
    pq.write_table(fresh.slice(0, 150).take(list(range(149, -1, -1))), tmp_path / "b.parquet")
    for name in ("a", "b"):
        main(command(tmp_path / f"{name}.parquet", tmp_path / name))
    assert results(tmp_path / "a")["links.parquet"] == results(tmp_path / "b")["links.parquet"]
    main(command(tmp_path / "a.parquet", tmp_path / "seeded", "--seed", "1"))
    assert results(tmp_path / "seeded")["links.parquet"] != results(tmp_path / "a")["links.parquet"]


def test_a_run_stopped_while_asking_continues(server: Origins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, output = write_table(tmp_path, server.server_port), tmp_path / "screened"
    ask, asked = RobotsRules._ask, []

    def ask_five(self: RobotsRules, origin: str) -> dict[str, Any]:
        asked.append(origin)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return ask(self, origin)

    monkeypatch.setattr(RobotsRules, "_ask", ask_five)
    with pytest.raises(KeyboardInterrupt):
        main(command(table, output, "--connections", "1"))
    assert not output.exists() and 6 <= len(asked) < 12
    before = len(asked)
    with pytest.raises(UserError, match="seed"):
        main(command(table, output, "--seed", "3"))
    main(command(table, output))
    assert len(asked) == 13 > before and sum(path == "/robots.txt" for _, path in server.asked) == 12
    assert set(server.asked.values()) == {1}
    main(command(table, tmp_path / "undisturbed"))
    assert results(output) == results(tmp_path / "undisturbed")


def test_agreements_lift_rules_of_the_hosts_they_name(server: Origins, tmp_path: Path) -> None:
    table = write_table(tmp_path, server.server_port)
    sources = tmp_path / "sources.yaml"
    sources.write_text("default: licensed\nsources: [{domain: 127.0.0.5, basis: licensed, licence: contract 7}]")
    main(command(table, tmp_path / "screened", "--sources", str(sources)))
    links = pq.read_table(tmp_path / "screened/links.parquet").to_pylist()
    named = [row for row in links if "127.0.0.5" in row["url"]]
    assert named and all(row["licence"] == "contract 7" for row in named)
    hosts = {row["url"].partition("//")[2].partition(":")[0] for row in links}
    assert "127.0.0.3" not in hosts  # licensed, but its owner is not named: robots.txt holds
    assert any("/art/" in row["url"] for row in links if "127.0.0.6" in row["url"])  # no reservation outside article 4
    assert ("127.0.0.5", "/robots.txt") not in server.asked


def test_wrong_settings_are_refused_before_any_work(tmp_path: Path) -> None:
    table = tmp_path / "links.jsonl"
    table.write_text(json.dumps({"url": "https://a.example/1.jpg", "caption": CAPTION}) + "\n")
    base = ["--table", str(table), "--output", str(tmp_path / "screened"), "--processes", "1"]
    (tmp_path / "domains").write_text("co.uk\n")
    for more, word in [
        (["--personal-data", "phone=burn"], "KIND=ACTION"),
        (["--block-domains", str(tmp_path / "domains")], "public suffix"),
        (["--block-domains", str(tmp_path / "missing")], "missing"),
        (["--connections", "0"], "at least 1"),
        (["--sources", str(tmp_path / "none.yaml")], r"none\.yaml"),
        ([], "--agent-contact is missing"),
    ]:
        with pytest.raises(UserError, match=word):
            main([*base, *more])
    assert not (tmp_path / "screened").exists() and not (tmp_path / "screened.work").exists()
    (tmp_path / "none.csv").write_text("url,caption\n")
    with pytest.raises(UserError, match="holds no row"):
        main(["--table", str(tmp_path / "none.csv"), "--output", str(tmp_path / "screened"), "--processes", "1"])
    (tmp_path / "screened").mkdir()
    with pytest.raises(UserError, match="exists already"):
        main(base)


def test_skip_origins_asks_no_origin(server: Origins, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    main(command(write_table(tmp_path, server.server_port), tmp_path / "screened", "--skip-origins"))
    assert not server.asked and "--skip-origins" in caplog.text
    links = pq.read_table(tmp_path / "screened/links.parquet")
    assert {json.loads(text)["origin"] for text in links["consent"].to_pylist()} == {"not asked"}
    assert json.loads((tmp_path / "screened/summary.json").read_text())["origins"]["network"] == "not asked"
    assert not (tmp_path / "screened/origins.jsonl").exists()  # or download_shards would not ask either


def test_memory_is_bounded_by_parts(server: Origins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes, whether all rows are held at once or a few at a time."""
    table = write_table(tmp_path, server.server_port)
    main(command(table, tmp_path / "large"))
    monkeypatch.setattr(screen_links, "BUCKET_ROWS", 40)
    monkeypatch.setattr("data_tools.links.link_duplicates.ROWS", 50)
    monkeypatch.setattr("data_tools.links.robots_screen.ROWS", 16)
    main(command(table, tmp_path / "small"))
    assert results(tmp_path / "large") == results(tmp_path / "small")


@pytest.mark.slow
def test_a_killed_run_continues(server: Origins, tmp_path: Path) -> None:
    table, output = write_table(tmp_path, server.server_port, 3000), tmp_path / "screened"
    program = [sys.executable, "-m", "data_tools.screen_links", *command(table, output, "--connections", "1")]
    program[program.index("--processes") + 1] = "2"
    server.pause, chance, kills = 0.5, random.Random(0), 0
    for _ in range(20):
        running = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(chance.uniform(1, 6))
            break
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            kills += 1
    assert kills >= 3
    if not output.exists():
        assert subprocess.run(program, cwd=ROOT, capture_output=True).returncode == 0
    main(command(table, tmp_path / "undisturbed"))
    assert results(output) == results(tmp_path / "undisturbed")

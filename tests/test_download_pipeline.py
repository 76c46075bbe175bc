"""From links through screening, download, vetting, description and withdrawal: the counts of all links add up."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.images import encoded_image, soft_image
from toys.published import keys_of
from toys.recipes import ROOT
from toys.servers import Server

from data_tools.describe_dataset import main as describe
from data_tools.withdraw_samples import main as withdraw

LINKS = 30


def program(name: str, *args: object) -> None:
    command = [sys.executable, str(ROOT / f"data_tools/{name}.py"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def described(output: Path, *args: object) -> dict:
    describe([*map(str, args), "--output", str(output)])  # exits with 1 if the counts do not add up
    return json.loads((output / "statistics.json").read_text())


@pytest.mark.slow
def test_every_link_is_accounted_for(server: Server, tmp_path: Path) -> None:
    """Thirty links: three without caption, two forbidden by robots.txt, two gone, one reserved, and four copies."""
    server.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed/\n")
    rows = []
    for number in range(LINKS):
        path = f"/{'closed' if number in (3, 4) else 'open'}/{number}.png"
        kept = 20 if number in (21, 22, 23, 24) else number
        headers = {"X-Robots-Tag": "noai"} if number == 7 else {}
        if number not in (5, 6):
            server.answers[path] = (200, headers, encoded_image(soft_image(kept)))
        text = "" if number < 3 else f"A picture of the lake, number {number}"
        rows.append({"url": server.url + path, "caption": text, "licence": "CC0-1.0", "legal_basis": "art4_general"})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "links.parquet")
    network = ["--agent-contact", "https://lab.example/bot", "--allow-private", "127.0.0.1"]
    program("screen_links", "--table", tmp_path / "links.parquet", "--output", tmp_path / "screened", *network)
    download = ["--table", tmp_path / "screened/links.parquet", "--output", tmp_path / "shards", "--min-success", "0.5"]
    download += ["--samples-per-shard", "6", "--retries", "0", *network]
    program("download_shards", *download)
    (tmp_path / "rules.yaml").write_text("rules:\n- class_path: data_tools.vetting.exact_duplicates.ExactDuplicates\n")
    vetting = ["--shards", tmp_path / "shards", "--rules", tmp_path / "rules.yaml", "--output", tmp_path / "vetted"]
    program("vet_shards", *vetting)

    ledger = ["--ledger", tmp_path / "screened/ledger.parquet"]
    found = described(tmp_path / "first", "--shards", tmp_path / "vetted", *ledger)
    drops = {stage["stage"]: sum(stage["dropped"].values()) for stage in found["stages"]}
    assert drops == {"screen_links": 5, "download_shards": 3, "vet_shards": 4} and found["duplicates_removed"] == 4
    assert found["accounting"]["links"] == LINKS and found["samples"] == LINKS - 12
    assert sum(found["months"].values()) == LINKS - 8 and found["domain_bytes"] == "fetched"

    wanted = server.url + "/open/12.png"
    derived = ["--derived", str(tmp_path / "vetted"), "--apply", "--unsigned"]
    withdraw(["--shards", str(tmp_path / "shards"), "--url", wanted, *derived])
    after = described(tmp_path / "second", "--shards", tmp_path / "vetted", *ledger)
    assert after["accounting"]["links"] == LINKS and after["accounting"]["withdrawn"] == 1
    assert after["samples"] == found["samples"] - 1

    # A withdrawn image does not return: neither when failed links are retried nor after a new screening.
    before = keys_of(tmp_path / "shards")
    statement = (tmp_path / "shards/withdrawals/0001.json").read_bytes()
    server.answers["/open/5.png"] = (200, {}, encoded_image(soft_image(5)))
    server.requests.clear()
    program("download_shards", *download, "--retry-failed")
    assert "/open/12.png" not in server.requests
    added = set(keys_of(tmp_path / "shards")) - set(before)
    assert len(added) == 1 and not set(before) - set(keys_of(tmp_path / "shards"))
    assert (tmp_path / "shards/withdrawals/0001.json").read_bytes() == statement
    digest = hashlib.sha256(encoded_image(soft_image(12))).hexdigest()
    assert all(digest.encode() not in path.read_bytes() for path in (tmp_path / "shards").glob("*.tar"))
    program("download_shards", *download, "--overwrite")
    assert "/open/12.png" not in server.requests
    anew = {row["url"]: row["rule"] for row in pq.read_table(tmp_path / "shards/ledger.parquet").to_pylist()}
    assert anew[wanted] == "blocked_url" and list(anew.values()).count("blocked_url") == 1
    blocked = ["--block-urls", tmp_path / "shards.blocklists/url_sha256.txt"]
    program("screen_links", "--table", tmp_path / "links.parquet", "--output", tmp_path / "again", *blocked, *network)
    rules = {row["url"]: row["rule"] for row in pq.read_table(tmp_path / "again/ledger.parquet").to_pylist()}
    assert rules[wanted] == "blocked_url" and list(rules.values()).count("blocked_url") == 1

"""No page, table, redirect or folder of a stranger lifts what the owner of an image reserves, through all programs."""

import json
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from toys.images import encoded_image, two_coloured_image
from toys.servers import Server

from data_tools import crawl_links, screen_links
from data_tools.download_shards import main as download

CC0 = "https://creativecommons.org/publicdomain/zero/1.0/"
PAGE = """<html lang="en"><head><link rel="license" href="{cc}">{more}</head><body>
<figure><img src="{v}/figure.png" alt="the first photograph of a bird"><a rel="license" href="{cc}">CC0</a></figure>
<img src="{v}/json.png" alt="the second photograph of a tree"><script type="application/ld+json">
{{"@type": "ImageObject", "contentUrl": "{v}/json.png", "license": "{cc}", "creator": "me"}}</script>
<div itemscope itemtype="https://schema.org/ImageObject"><img itemprop="contentUrl" src="{v}/micro.png"
alt="the third photograph of a house"><a itemprop="license" href="{cc}">CC0</a></div>
<img src="{v}/rdfa.png" alt="the fourth photograph of a lake"><a rel="license" about="{v}/rdfa.png" href="{cc}">CC0</a>
<img src="{v}/plain.png" alt="the fifth photograph of a hill"></body></html>"""
NAMES = ("figure", "json", "micro", "rdfa", "plain")


def test_a_stranger_lifts_no_reservation(server: Server, tmp_path: Path) -> None:
    """Every way to name a licence on a page, of a stranger and of the site itself; in both, the table is trusted."""
    for name in NAMES:
        image = encoded_image(two_coloured_image())
        headers = {"X-Robots-Tag": "noai", "Link": f'<{CC0}>; rel="license"'}
        server.answers[f"/{name}.png"] = (200, headers, image)
    server.answers["/.well-known/tdmrep.json"] = (200, {}, b'[{"location": "/", "tdm-reservation": 1}]')
    (tmp_path / "sources.yaml").write_text("trust_tables: [links.parquet]")
    common = ["--allow-private", "127.0.0.1", "--agent-contact", "https://lab.example/bot", "--processes", "1"]
    common += ["--sources", str(tmp_path / "sources.yaml")]
    for site, base_url in (("stranger", "http://aggregator.example/"), ("owner", server.url)):
        (tmp_path / site).mkdir()
        (tmp_path / site / "page.html").write_text(PAGE.format(cc=CC0, v=server.url, more=""))
        crawled, screened = tmp_path / f"{site}_crawled", tmp_path / f"{site}_screened"
        words = ["--html", str(tmp_path / site), "--base-url", base_url, "--output", str(crawled), "--processes", "1"]
        crawl_links.main(words)
        rows = pq.read_table(crawled / "links.parquet").to_pylist()
        licensed = [] if site == "stranger" else list(NAMES[:4])
        assert [row["url"].rsplit("/")[-1][:-4] for row in rows if row["licence"]] == licensed
        assert {row["legal_basis"] for row in rows if row["licence"]} == ({"public_domain"} if licensed else set())
        claims = [json.loads(row["consent"])["licences"] for row in rows]
        assert all(any(one["license"] == CC0 for one in said) for said in claims)  # kept as evidence
        with pytest.raises(SystemExit) if not licensed else nullcontext():  # 1, for no link stays
            screen_links.main(["--table", str(crawled / "links.parquet"), "--output", str(screened), *common])
        decided = pq.read_table(screened / "ledger.parquet").to_pylist()
        assert [row["rule"] for row in decided] == ["kept"] * len(licensed) + ["tdmrep.json"] * (5 - len(licensed))
    words = ["--table", str(tmp_path / "owner_crawled/links.parquet"), "--output", str(tmp_path / "shards"), *common]
    download([*words, "--spare-private", "--delay-per-host", "0", "--min-success", "0", "--retries", "0"])
    fetched = pq.read_table(tmp_path / "shards/ledger.parquet").to_pylist()
    assert [row["rule"] for row in fetched] == ["kept"] * 4 + ["reservation"]

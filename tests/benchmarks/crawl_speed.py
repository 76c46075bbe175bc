"""Pages a second that crawl_links reads, beside the least that can be done: fastwarc and resiliparse alone.

The pages are made up: 20 kB of prose and markup each, a dozen images, half of them in figures or with several sizes, a
meta robots tag and JSON-LD. The peer iterates over the same gzipped WARC, parses each page and takes src and alt of its
images, without captions, language, rights, licences, limits or a table: what remains is the price of those.
"""

import random
import tempfile
from pathlib import Path
from urllib.parse import urljoin

import measure
import numpy as np
import psutil
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.parse.encoding import bytes_to_str
from resiliparse.parse.html import HTMLTree
from toys.warc import WarcFile

from data_tools.corpora.scene_corpus import make_scene
from data_tools.corpora.scene_prompts import captions
from data_tools.pages.crawl_jobs import CrawlJob, PageSettings, crawl_part, part_paths
from leam_mm.errors import run

LANGUAGES = ("de", "en", "fr", "pl", "el", "fi")


def make_page(number: int) -> str:
    """A page like those of small sites."""
    draw = random.Random(number)
    language = LANGUAGES[number % len(LANGUAGES)]
    words = np.random.default_rng([1, number])
    texts = [captions(make_scene("train", 1, 13 * number + k), words, 0.0)[language] for k in range(12)]
    parts = []
    for k, text in enumerate(texts):
        image = f'<img src="/img/{number}-{k}.jpg" alt="{text}" width="640" height="480" loading="lazy" class="c{k}">'
        if k % 4 == 0:
            image = f"<figure>{image}<figcaption>{text}, {k}</figcaption></figure>"
        if k % 4 == 2:
            image = image.replace("src=", f'srcset="/s/{number}-{k}.jpg 320w, /img/{number}-{k}.jpg 1280w" src=')
        prose = " ".join(draw.choice(texts) for _ in range(25))
        links = "".join(
            f'<li class="item"><a href="/p/{draw.randrange(9999)}">{draw.choice(texts)}</a></li>' for _ in range(6)
        )
        parts.append(
            f'<section id="s{k}"><h2>{text}</h2><div class="box">{image}<p>{prose}</p><ul>{links}</ul></div></section>'
        )
    head = (
        '<meta name="robots" content="index, follow"><script type="application/ld+json">{"@type": "WebPage"}</script>'
    )
    head = f'<!doctype html><html lang="{language}"><head><title>{texts[0]}</title>{head}</head>'
    return f"{head}<body>{''.join(parts)}</body></html>"


def floor(path: Path) -> list[tuple[str, str]]:
    """Addresses and alt texts of all images."""
    found = []
    with path.open("rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            url = record.headers["WARC-Target-URI"]
            tree = HTMLTree.parse(bytes_to_str(record.reader.read()))
            for image in tree.document.query_selector_all("img[alt]").values():
                found.append((urljoin(url, image.get_attribute("src")), image.get_attribute("alt")))
    return found


@measure.benchmark(repeats=5, pages=(500, "in the archive"))
def main(settings: measure.Settings) -> list[Path]:
    """Measure and write crawl_speed.json."""
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder) / "pages.warc.gz", Path(folder)
        with WarcFile(path) as file:
            for number in range(settings.pages):
                file.add(f"https://site{number % 50}.example/page/{number}", make_page(number))
        job, setting = CrawlJob(0, path), PageSettings("leam_mm")

        def ours() -> None:
            crawl_part(work, setting, job, [0.0, 0.0, 0.0])

        ours()
        table = pq.read_table(part_paths(work, 0)[0]).to_pylist()
        difference = len(set(floor(path)) ^ {(row["url"], row["caption"]) for row in table})
        same = measure.require_same("pairs of address and alt text that one side lacks", difference, 0)
        before = psutil.Process().memory_info().rss
        found = measure.time_pairs(ours, lambda: floor(path), settings.repeats)
        grown = (psutil.Process().memory_info().rss - before) / 2**20
        further = {"links": len(table), "archive_bytes": path.stat().st_size, "memory_grown_mib": grown}
        labels = ("crawl_links, one process", "fastwarc + resiliparse, src and alt only")
        notes = "A lower bound, not an alternative: the peer writes nothing and checks neither language nor rights."
        work_done = (float(settings.pages), "pages")
        return [measure.write_comparison("crawl_speed", labels, found, work_done, [same], settings, notes, further)]


if __name__ == "__main__":
    run(main)

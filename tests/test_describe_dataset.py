"""data_tools/describe_dataset.py: numbers are those of the samples, all files agree, and gaps are called gaps."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from toys.images import encoded_image, soft_image
from toys.pages import HtmlChecker, shown_in_browser
from toys.published import derived_from, keys_of, record_of, withdraw, write_published

from data_tools.describe_dataset import main, read_provider
from leam_mm.data.ledger import LedgerWriter, link_uid
from leam_mm.data.shard_index import ShardFolder, ShardWriter
from leam_mm.documents.dataset_statistics import DomainCount, Tally, thumbnails
from leam_mm.documents.decision_flow import account, identity, own_ledgers, read_flow
from leam_mm.documents.training_summary import IMAGE_BANDS, band, listed_domains, text_band
from leam_mm.errors import UserError

SECTIONS = ("1.3", "2.1", "2.2.1", "2.2.2", "2.3", "2.4", "2.5", "2.6", "3.1", "3.2", "3.3")
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
FILES = (
    *("croissant.json", "statistics.html", "statistics.de.html", "statistics.json", "training_content.json"),
    *("training_summary.json", "training_summary.md"),
)


def screened(place: Path, dropped: int = 6) -> Path:
    """A ledger of screening over the 23 links of the shards and some that were dropped."""
    with LedgerWriter(place, "screen_links") as ledger:
        rows = [record_of(number, b"") for number in range(23)]
        ledger.write({"uid": row["uid"], "url": row["url"], "rule": "kept", "kept": True} for row in rows)
        rules = ("robots.txt", "duplicate_link", "personal_data")
        ledger.write(
            {"uid": link_uid(str(n), None, "x"), "rule": rules[n % 3], "kept": False, "reason": "no"}
            for n in range(dropped)
        )
    return place


def describe(place: Path, *args: object) -> dict[str, dict]:
    main([str(arg) for arg in args] + ["--output", str(place)])
    return {path.name: json.loads(path.read_text()) for path in place.glob("*.json")}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = write_published(tmp_path / "shards")
    with LedgerWriter(folder / "ledger.parquet", "download_shards") as ledger:  # as the real one names its stage
        rows = [record_of(number, encoded_image(soft_image(number))) for number in range(23)]
        ledger.write(
            {name: row[name] for name in ("uid", "url", "domain", "licence", "legal_basis", "sha256")}
            | {"key": f"{number:07d}", "rule": "kept", "kept": True, "bytes": 1000 * (1 + number % 5)}
            | {"fetched_at": f"2026-1{number % 2}-07T10:00:00+00:00"}
            for number, row in enumerate(rows)
        )
    return folder


def test_numbers_are_those_of_the_samples(shards: Path, tmp_path: Path) -> None:
    found = describe(tmp_path / "out", "--shards", shards, "--ledger", screened(tmp_path / "screen.parquet"))
    counted, summary = found["statistics.json"], found["training_summary.json"]
    assert counted["accounting"] == {
        "links": 29, "dropped": 6, "withdrawn": 0, "kept": 23, "samples": 23, "faults": [],
    }  # fmt: skip
    assert counted["stages"][0]["dropped"] == {"robots.txt": 2, "duplicate_link": 2, "personal_data": 2}
    assert counted["duplicates_removed"] == 2 and counted["languages"] == {"en": 23} and counted["words"] == 6 * 23
    assert {entry["domain"]: entry["samples"] for entry in counted["largest_domains"]} == {
        f"site{n}.example": 5 if n < 3 else 4 for n in range(5)
    }
    assert sum(entry["bytes"] for entry in counted["largest_domains"]) == sum(1000 * (1 + n % 5) for n in range(23))
    assert counted["domain_bytes"] == "fetched" and sum(counted["sides"].values()) == 23
    for name in ("licence", "legal_basis", "crawler", "formats", "shapes", "consent"):
        assert sum(counted[name].values()) == 23, name

    assert set(summary) - {"template", "data"} == set(SECTIONS)
    assert summary["1.3"]["image"]["size_range"] == "<1 million images"
    assert summary["1.3"]["latest_date_of_data_acquisition"] == "11/2026"
    crawled = summary["2.3"]
    assert crawled["samples"] == 23 and crawled["crawler_names"] == ["leam_mm"] and crawled["domains_counted"] == 5
    assert crawled["period_of_collection"] == "10/2026 to 11/2026" and crawled["behaviour"] == "not stated"
    assert [entry["domain"] for entry in crawled["domains"]] == ["site4.example"]  # the largest by bytes, of five
    assert summary["3.1"]["links_dropped_by_rule"] == {"robots.txt": 2}
    assert "bg" in summary["1.3"]["linguistic_characteristics"]["eu_languages_missing"]
    text = (tmp_path / "out/training_summary.md").read_text()
    assert "site4.example" in text and all(f"## {number} " in text for number in SECTIONS)


def test_the_same_input_gives_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        describe(tmp_path / name, "--shards", shards)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(FILES)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in FILES)


def test_a_gap_between_stages_ends_with_code_1_and_is_shown(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with LedgerWriter(tmp_path / "screen.parquet", "screen_links") as ledger:
        ledger.write({"uid": link_uid(str(n), None, ""), "rule": "kept", "kept": True} for n in range(24))
    with pytest.raises(SystemExit) as ended:
        describe(tmp_path / "out", "--shards", shards, "--ledger", tmp_path / "screen.parquet")
    assert ended.value.code == 1
    assert "screen_links kept 24 links, download_shards decided on 23" in capsys.readouterr().out
    assert "screen_links kept 24 links" in (tmp_path / "out/statistics.html").read_text()


def test_withdrawals_and_keep_lists_add_up(shards: Path, tmp_path: Path) -> None:
    kept, _ = derived_from(shards, tmp_path)
    named = set(keys_of(kept))
    with LedgerWriter(kept / "ledger.parquet", "vet_shards") as ledger:
        for number in range(23):
            key, uid = f"{number:07d}", record_of(number, b"")["uid"]
            ledger.write([{"uid": uid, "key": key, "rule": "orientation", "kept": True}])
            ledger.write(
                [{"uid": uid, "key": key, "rule": "kept" if key in named else "exact_duplicates", "kept": key in named}]
            )
    withdraw("--shards", shards, "--derived", kept, "--domain", "site3.example", "--apply", "--unsigned")
    counted = describe(tmp_path / "out", "--shards", kept)["statistics.json"]
    assert counted["accounting"]["faults"] == [] and counted["accounting"]["links"] == 23
    assert counted["accounting"]["withdrawn"] == sum(f"{n:07d}" in named for n in (3, 8, 13, 18))
    assert counted["samples"] == len(keys_of(kept)) and "+keep." in counted["data_sets"][0]["merkle_root"]
    assert counted["duplicates_removed"] == 23 - len(named)
    raw = describe(tmp_path / "raw", "--shards", shards)["statistics.json"]
    assert raw["accounting"] == {"links": 23, "dropped": 0, "withdrawn": 4, "kept": 19, "samples": 19, "faults": []}


def test_what_the_provider_says_stands_and_the_rest_is_not_stated(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "provider.yaml").write_text(
        "small_enterprise: true\n"
        "dataset: {name: Lakes, description: Pictures of lakes., licence: 'https://creativecommons.org/publicdomain/zero/1.0/',"
        " url: 'https://lakes.example', creator: Lake Office, date_published: 2026-11-22}\n"
        "crawled: {behaviour: robots.txt is obeyed}\n"
        "responsible: {dataBiases: [Northern lakes only]}\n"
        "public_data_sets: [{name: Open Lakes, link: 'https://open.example', folder: open}]\n"
    )
    other = write_published(tmp_path / "open", 7)
    args = ["--shards", shards, "--shards", other, "--provider", tmp_path / "provider.yaml"]
    args += ["--place", "https://x.example/d"]
    with pytest.raises(SystemExit):  # the second folder's ledger is of another stage: the numbers do not add up
        describe(tmp_path / "out", *args)
    summary = json.loads((tmp_path / "out/training_summary.json").read_text())
    found = json.loads((tmp_path / "out/croissant.json").read_text())
    assert summary["2.1"]["samples"] == 7 and summary["2.1"]["large_datasets"][0]["name"] == "Open Lakes"
    assert summary["2.3"]["samples"] == 23 and summary["2.3"]["behaviour"] == "robots.txt is obeyed"
    assert summary["2.3"]["purposes"] == "not stated" and summary["2.4"]["from_model_interactions"] == "not stated"
    assert summary["2.5"]["used"] == "no" and summary["2.3"]["domains_rule"].startswith("top 5 %")
    assert (found["name"], found["datePublished"]) == ("Lakes", "2026-11-22")
    assert found["rai:dataBiases"] == ["Northern lakes only"]
    assert found["rai:dataLimitations"] == ["not stated"]
    assert found["distribution"][0]["contentUrl"] == "https://x.example/d/shards/00000.tar"
    with pytest.raises(UserError, match="names the folder 'open'"):
        describe(tmp_path / "no", "--shards", shards, "--provider", tmp_path / "provider.yaml")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "hostile", 9) as writer:
        for number in range(9):
            content = encoded_image(soft_image(number))
            record = record_of(number, content) | {"licence": HOSTILE, "domain": HOSTILE, "crawler": HOSTILE}
            record["captions"] = [{"text": HOSTILE * 9, "language": HOSTILE, "source": HOSTILE}]
            record["consent"] = {"page": {HOSTILE: 1}, "origin": [{"kind": HOSTILE}]}
            writer.write(f"{number}", {"png": content, "json": json.dumps(record).encode()})
    describe(tmp_path / "out", "--shards", tmp_path / "hostile", "--title", HOSTILE)
    return tmp_path / "out"


def test_the_page_is_whole_and_escapes_what_strangers_wrote(hostile: Path) -> None:
    text = (hostile / "statistics.html").read_text()
    balance = HtmlChecker()
    balance.feed(text)
    assert balance.open == [] and not any(tag == "script" for tag, _ in balance.seen)
    images = [attributes for tag, attributes in balance.seen if tag == "img"]
    assert len(images) == 9 and all((each["src"] or "").startswith("data:image/jpeg;base64,") for each in images)
    assert not any("onerror" in attributes for _, attributes in balance.seen)
    outside = [value for _, each in balance.seen for name, value in each.items() if name in ("src", "href") and value]
    assert all(value.startswith(("data:", "#", "statistics.de.html")) for value in outside)
    assert "No ledger" not in text.replace("No ledger was given: what was left out is not known", "")
    assert "not measured" in text  # duplicates and withdrawals, of which no ledger tells


def test_captions_are_in_the_language_of_the_page_and_the_others_are_folded(tmp_path: Path) -> None:
    texts = {"bg": "червен кръг", "de": "roter Kreis", "en": "red circle"}
    with ShardWriter(tmp_path / "three", 9) as writer:
        for number, codes in enumerate((["bg", "de", "en"], ["bg", "en"], ["bg"])):
            content = encoded_image(soft_image(number))
            captions = [{"text": texts[code], "language": code, "source": "own"} for code in codes]
            record = record_of(number, content) | {"captions": captions}
            writer.write(f"{number}", {"png": content, "json": json.dumps(record).encode()})
    describe(tmp_path / "out", "--shards", tmp_path / "three")
    shown = {}
    for name in ("statistics.html", "statistics.de.html"):
        text = (tmp_path / "out" / name).read_text()
        shown[name] = sorted(re.findall(r'<figcaption><span class="code">(..)</span>', text))
        assert text.count("<details>") == 2 and '<span lang="bg">червен кръг</span>' in text
    assert shown == {"statistics.html": ["bg", "en", "en"], "statistics.de.html": ["bg", "de", "en"]}
    assert "Alle 3 Bildtexte" in text and '<html lang="de">' in text and 'href="statistics.html"' in text
    assert 'Bulgarisch<span class="code">bg</span>' in text


def test_a_browser_has_no_complaint(hostile: Path, tmp_path: Path) -> None:
    shown = shown_in_browser(hostile / "statistics.html", tmp_path / "profile")
    assert '<section id="fate">' in shown and "<script" not in shown


def test_croissant_names_every_shard_by_its_digest(shards: Path, tmp_path: Path) -> None:
    found = describe(tmp_path / "out", "--shards", shards)["croissant.json"]
    files = [entry for entry in found["distribution"] if entry["@type"] == "cr:FileObject"]
    for entry, shard in zip(files, ShardFolder(shards).shards, strict=True):
        assert entry["sha256"] == shard.sha256 and entry["contentSize"] == f"{shard.bytes} B"
        assert (tmp_path / "out" / entry["contentUrl"]).resolve() == (shards / shard.shard).resolve()
    named = {entry["@id"] for entry in found["distribution"]}
    sets = [entry for entry in found["distribution"] if entry["@type"] == "cr:FileSet"]
    assert all(inside["@id"] in named for entry in sets for inside in entry["containedIn"])
    fields = [field for records in found["recordSet"] for field in records["field"]]
    assert all(field["source"]["fileSet"]["@id"] in named for field in fields)
    assert len({field["@id"] for field in fields}) == len(fields)
    assert found["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
    assert "datePublished" not in found and "url" not in found  # nobody said so


@pytest.mark.slow
def test_mlcroissant_accepts_it_and_loads_the_samples(shards: Path, tmp_path: Path) -> None:
    """In an environment of its own, for its pandas is not that of img2dataset: pip install mlcroissant pillow."""
    python = os.environ.get("MLCROISSANT_PYTHON")
    if not python:
        pytest.skip("set MLCROISSANT_PYTHON to a python that has mlcroissant")
    describe(tmp_path / "out", "--shards", shards)
    code = (
        "import sys, mlcroissant\n"
        "for name in ('records', 'pictures'):\n"
        "    found = mlcroissant.Dataset(jsonld=sys.argv[1])\n"
        "    assert not found.metadata.ctx.issues.errors, found.metadata.ctx.issues.report()\n"
        "    print(name, len({row[f'{name}/key'] for row in found.records(name)}))\n"
    )
    place = str(tmp_path / "out/croissant.json")
    own = os.environ | {"CROISSANT_CACHE": str(tmp_path / "cache")}  # it knows files by their addresses only
    done = subprocess.run([python, "-c", code, place], capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["records", "23", "pictures", "23"]


def test_sizes_are_stated_only_where_they_are_certain() -> None:
    found = [band(count, IMAGE_BANDS) for count in (0, 999_999, 10**6, 10**9)]
    assert found == [*["<1 million images"] * 2, "1 million to 1 billion images", ">1 billion images"]
    assert text_band(10**8, 10**7, None) == "<1 billion tokens"
    assert text_band(5 * 10**9, 10**9, None) == "1 billion to 10 trillion tokens"
    assert text_band(5 * 10**9, 10**8, None) == "not stated"  # somewhere between 0.1 and 5 billion tokens
    assert text_band(5 * 10**9, 10**8, 2 * 10**9) == "1 billion to 10 trillion tokens"


@pytest.mark.parametrize(
    ("domains", "small", "count"), [(5, False, 1), (95, False, 10), (95, True, 5), (30_000, True, 1000)]
)
def test_the_largest_domains_are_listed(domains: int, small: bool, count: int) -> None:
    found = {f"{n}.example": DomainCount(1, n) for n in range(domains)}
    listed = listed_domains(found, small)
    assert len(listed) == count and listed[0]["bytes"] == domains - 1
    assert [entry["bytes"] for entry in listed] == sorted((entry["bytes"] for entry in listed), reverse=True)


def test_a_providers_file_with_unknown_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "provider.yaml"
    for text, word in (
        ("crawlt: {}", "section 'crawlt' is not known"),
        ("crawled: {purpose: x}", "crawled.purpose is not known"),
        ("crawled: everything", "is no mapping"),
        ("[1, 2]", "is no mapping"),
        ("public_data_sets: [{name: x}]", "needs name, link and folder"),
        ("a: [", "cannot be read as YAML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=word):
            read_provider(path)
    path.write_text("")
    assert read_provider(path) == {}


def test_hostile_text_in_the_summary_stays_text(hostile: Path) -> None:
    text = (hostile / "training_summary.md").read_text()
    assert "<" not in text.replace("<1 ", "") and "&lt;script&gt;alert(1)" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("##") and line.split()[1] in SECTIONS] == [
        *SECTIONS
    ]
    rows = text.partition("| Domain |")[2].partition("\n\n")[0].splitlines()
    assert len(rows) == 3 and all(
        line.count("|") == 4 for line in rows[1:]
    )  # one domain; its name has no cell of its own


UIDS = [link_uid(str(number), None, "") for number in range(20)]


def ledger(path: Path, stage: str, rows: list[tuple[int, str, bool]]) -> Path:
    """Write a ledger from rows of (link, rule, kept)."""
    with LedgerWriter(path, stage) as writer:
        writer.write(
            {"uid": UIDS[n], "rule": rule, "kept": kept, "bytes": 100 + n, "domain": "a.example" if n % 2 else ""}
            | {"fetched_at": f"2026-0{1 + n % 3}-05T00:00:00"}
            for n, rule, kept in rows
        )
    return path


def stages(folder: Path) -> dict[str, Path]:
    """Twenty links: four dropped by screening, two failed, three dropped by vetting, one withdrawn, ten left."""
    screen = [(n, "robots" if n < 3 else "duplicate_link" if n == 3 else "kept", n > 3) for n in range(20)]
    download = [(n, "download" if n in (4, 5) else "kept", n > 5) for n in range(4, 20)]
    vet: list[tuple[int, str, bool]] = []
    for n in range(6, 20):
        vet.append((n, "orientation", True))  # the answer of one rule, no decision
        rule = "near_duplicates" if n in (6, 7) else "faces" if n == 8 else "withdrawn" if n == 9 else "kept"
        vet.append((n, rule, rule == "kept"))
    return {
        "vet_shards": ledger(folder / "vet.parquet", "vet_shards", vet),
        "screen_links": ledger(folder / "screen.parquet", "screen_links", screen),
        "download_shards": ledger(folder / "download.parquet", "download_shards", download),
        "withdraw_samples": ledger(folder / "gone.parquet", "withdraw_samples", [(9, "url", False)]),
    }


def test_decisions_add_up(tmp_path: Path) -> None:
    flow = read_flow(stages(tmp_path).values())
    assert list(flow.stages) == ["screen_links", "download_shards", "vet_shards"]
    assert [stage.given for stage in flow.stages.values()] == [20, 16, 14]
    found = account(flow, 10, np.array([identity(UIDS[n]) for n in range(10, 20)], np.uint64))
    assert found == {"links": 20, "dropped": 9, "withdrawn": 1, "kept": 10, "samples": 10, "faults": []}
    assert found["links"] == found["dropped"] + found["withdrawn"] + found["kept"]
    assert flow.stages["vet_shards"].dropped == {"near_duplicates": 2, "faces": 1}
    assert flow.bytes_of(UIDS[12]) == 112 and flow.bytes_of(UIDS[4]) is None and flow.bytes_of(None) is None
    assert set(flow.months) == {"2026-01", "2026-02", "2026-03"}
    assert (sum(flow.months.values()), sum(flow.crawl_months.values())) == (14, 7)


@pytest.mark.parametrize("fault", ["lost", "exchanged", "samples", "foreign", "twice"])
def test_decisions_that_do_not_add_up_are_named(fault: str, tmp_path: Path) -> None:
    found = stages(tmp_path)
    kept, samples = list(range(10, 20)), 10
    word = {"lost": "kept 16 links", "exchanged": "1 links that", "samples": "hold 9 samples", "foreign": "not among"}
    if fault == "lost":
        ledger(found["download_shards"], "download_shards", [(n, "kept", True) for n in range(6, 20)])
    elif fault == "exchanged":
        rows = [(n, "download" if n in (4, 5) else "kept", n > 5) for n in range(4, 20)]
        ledger(found["download_shards"], "download_shards", [(3, *rows[0][1:]), *rows[1:]])
    elif fault == "samples":
        kept, samples = kept[1:], 9
    elif fault == "foreign":
        kept[0] = 0
    else:
        found["again"] = ledger(tmp_path / "again.parquet", "vet_shards", [(19, "kept", True)])
        word["twice"] = "download_shards kept 14 links, vet_shards decided on 15"
    ids = np.array([identity(UIDS[n]) for n in kept], np.uint64)
    faults = account(read_flow(found.values()), samples, ids)["faults"]
    assert any(word[fault] in sentence for sentence in faults), faults


def test_without_ledgers_nothing_is_stated(tmp_path: Path) -> None:
    found = account(read_flow([]), 5, np.empty(0, np.uint64))
    assert found["links"] is None and found["dropped"] is None and found["faults"] == []
    (tmp_path / "folder").mkdir()
    assert own_ledgers(tmp_path / "folder") == []


def test_an_image_that_cannot_be_read_is_not_shown() -> None:
    tally = Tally(read_flow([]))
    good = encoded_image(soft_image(1), "JPEG")
    tally.chosen = [(-1, "good", {}, good), (-2, "bad", {}, b"no image"), (-3, "other", {}, b"GIF89a")]
    assert [each["key"] for each in thumbnails(tally)] == ["good"]

"""Which reservations of rights are obeyed: all of rights_cases.yaml, decided by data_tools and by img2dataset 1.47.

Both ask the same server on this machine for the same links. Ours must decide every case as the rule beside it demands,
with the right words as evidence, and must not ask for an image that was refused before it could be asked for.
img2dataset runs as it comes, with its own opt-out switches on (user_agent_token, disallowed_header_directives); it
knows neither robots.txt, tdmrep.json, ai.txt and trust.txt nor pages and legal bases: the table tells the kinds apart.
"""

import json
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import measure
import pyarrow as pa
import pyarrow.parquet as pq
from processes import IMG2DATASET, ONE_THREAD, call, data_tool
from rich.table import Table
from rights_server import PLACES, Case, RightsServer, read_cases

from data_tools.download.image_request import ImageRequest
from data_tools.network.image_fetch import FetchSetting
from data_tools.pages.page_links import PageLimits, link_evidence, read_page
from data_tools.pages.warc_pages import Page
from data_tools.rights.opt_out_registry import OptOutRegistry
from data_tools.rights.reservation_grammar import WORDS
from data_tools.rights.reservations import Signal, decide
from data_tools.rights.robots_rules import RobotsRules
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.errors import UserError, run

AGENT, CONTACT = "LeamBot", "https://lab.example/bot"
DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex"]  # what img2dataset's README offers
ADDRESSES = ("private_address", "scheme")  # refused for what they are: nobody said anything
FILTERED = ("robots.txt", "tdmrep.json", "ai.txt", "trust.txt", "registry", "reservation", "page_rights")
MOMENT = datetime(2026, 11, 22, tzinfo=UTC)


class Pipeline:
    """Decides links as the programs do: the page, then the origin, then the answers hop by hop.

    Args:
        folder: For the evidence and the registries.
        trusted: Hosts of the cases.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, folder: Path, trusted: list[str], timeout: float) -> None:
        """Open the door to the network."""
        self.folder = folder
        limits = {"timeout": timeout, "image_seconds": 3 * timeout, "spare_private": True, "ask_origins": "redirects"}
        self.setting = FetchSetting("", "", AGENT, CONTACT, allow_private=trusted, **limits)
        self.rules = RobotsRules(self.setting, folder / "origins.jsonl")
        self.request = ImageRequest(self.setting, self.rules.decide, self.rules.terms)

    def decide(self, case: Case) -> dict[str, Any]:
        """Give ``refused``, the kind of the signal or the rule that refused or "", and ``evidence``."""
        basis = LegalBasis.of(case.row.get("basis"), LegalBasis.art4_general)
        rules = self.rules
        agreed = [case.host] if case.row.get("agreed", basis is LegalBasis.consent) else []
        if (entry := case.registry()) or agreed:
            path = self.folder / "registry.txt"
            path.write_text((entry or "nobody.example") + "\n", encoding="utf-8")
            rules = RobotsRules(self.setting, self.folder / "origins.jsonl", [OptOutRegistry(path)], agreed)
        content = case.page_answer().partition(b"\r\n\r\n")[2]
        page = Page(0, case.page, content, headers=case.page_headers, fetched_at=MOMENT)
        reading = read_page(page, AGENT, PageLimits())
        found = link_evidence(page, reading, reading.links[0])
        forbids = decide([Signal(**signal) for signal in found["page_rights"]], basis)
        if forbids is None:
            forbids, _ = rules.decide(case.url, basis)
        for terms in found.get("page_terms", []):
            forbids = forbids or decide(rules.terms(terms, "page:rsl", [case.page, case.url]), basis)
        if forbids is not None:
            return {"refused": forbids.kind, "evidence": asdict(forbids)}
        answer = self.request.ask(case.url, basis)
        if answer.content is not None:
            return {"refused": "", "evidence": answer.response}
        kind = answer.value.partition(": ")[0] if answer.rule == "reservation" else answer.rule
        return {"refused": kind, "evidence": {"value": answer.value, "reason": answer.reason, **answer.response}}


def our_faults(cases: list[Case], folder: Path) -> list[str]:
    """What is wrong in our decisions, in words; an empty list is what is wanted."""
    trusted, pipelines = sorted({case.host for case in cases}), {}
    for hangs, seconds in ((False, 30.0), (True, 3.0)):  # on a busy machine an answer takes seconds
        (folder / f"{seconds:g}").mkdir()
        pipelines[hangs] = Pipeline(folder / f"{seconds:g}", trusted, seconds)
    return [fault for case in cases for fault in case_faults(case, pipelines[case.hangs].decide(case))]


def case_faults(case: Case, found: dict[str, Any]) -> Iterator[str]:
    """What is wrong in one decision, and in what was asked for it."""
    name, wanted = case.row["name"], case.row.get("refused", "")
    if found["refused"] != wanted:
        yield f"{name}: {found['refused'] or 'taken'} instead of {wanted or 'taken'} ({found['evidence']})"
    evidence = json.dumps(found["evidence"])
    if wanted and not (found["evidence"].get("value") and ("source" in evidence or wanted in ADDRESSES)):
        yield f"{name}: refused without words and where they were found ({evidence})"
    if case.spared and case.image_asked:
        yield f"{name}: the image was asked for, though it was refused before"
    if any(agent != f"{AGENT} (+{CONTACT})" for _, agent in case.asked):
        yield f"{name}: asked under another name than our own"


def program_faults(cases: list[Case], folder: Path) -> list[str]:
    """The same of the programs, one after the other, on an archive of the pages; their ledgers are read.

    crawl_links finds the images and the pages' rights, screen_links asks the origins, download_shards the images.
    """
    (folder / "pages.warc").write_bytes(b"".join(map(_record, cases)))
    words = ["--warc", folder / "pages.warc", "--output", folder / "crawled", "--agent-name", AGENT]
    call(data_tool("crawl_links", *words, "--processes", 1), **ONE_THREAD)
    table = pq.read_table(folder / "crawled" / "links.parquet")
    numbers = {case.url: number for number, case in enumerate(cases)}
    places = [numbers[url] for url in table["url"].to_pylist()]
    if sorted(places) != list(range(len(cases))):
        raise UserError(f"crawl_links found {len(places)} of {len(cases)} images: its tests come first")
    bases = [case.row.get("basis", "art4_general") for case in cases]
    sources = [f"case {number}" for number in range(len(cases))]
    for name, values in (("legal_basis", bases), ("source", sources)):
        table = table.set_column(table.column_names.index(name), name, [[values[place] for place in places]])
    pq.write_table(table, folder / "links.parquet")
    (folder / "registry.txt").write_text("\n".join(filter(None, (case.registry() for case in cases))), "utf-8")
    agreed = [
        {"domain": case.host, "source": source, "basis": basis}
        for case, source, basis in zip(cases, sources, bases, strict=True)
        if case.row.get("agreed", basis == "consent")
    ]
    (folder / "sources.yaml").write_text(json.dumps({"sources": agreed, "trust_tables": ["links.parquet"]}), "utf-8")
    trusted = [word for host in sorted({case.host for case in cases}) for word in ("--allow-private", host)]
    common = [*trusted, "--agent-name", AGENT, "--agent-contact", CONTACT, "--timeout", "5"]
    files = ["--sources", str(folder / "sources.yaml"), "--registry", str(folder / "registry.txt")]
    screened, shards = folder / "screened", folder / "shards"
    words = ["--table", folder / "links.parquet", "--output", screened]
    call(data_tool("screen_links", *words, *files, *common), **ONE_THREAD)
    words = ["--table", screened / "links.parquet", "--output", shards, "--min-success", 0]
    words += ["--spare-private", "--delay-per-host", 0]  # our own hosts are asked like those of others
    call(data_tool("download_shards", *words, *common), **ONE_THREAD)
    ledgers = [pq.read_table(place / "ledger.parquet").to_pylist() for place in (screened, shards)]
    rows = {row["url"]: row for ledger in ledgers for row in ledger}  # what the download says stands last
    faults = []
    for case in cases:
        row = rows[case.url]
        kind = (row["value"] or "").partition(": ")[0] if row["rule"] in FILTERED else row["rule"]
        evidence = {"value": row["value"], "reason": row["reason"], "evidence": row["evidence"]}
        found = {"refused": "" if row["kept"] else kind, "evidence": evidence}
        faults += [f"programs: {fault}" for fault in case_faults(case, found)]
    return faults


def _record(case: Case) -> bytes:
    """The page of a case as a crawler archives it (WARC 1.1, ISO 28500, section 6.3)."""
    answer = case.page_answer()
    lines = ["WARC/1.1", "WARC-Type: response", f"WARC-Target-URI: {case.page}", "WARC-Date: 2026-11-22T00:00:00Z"]
    lines += [f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, case.page)}>"]
    lines += ["Content-Type: application/http; msgtype=response", f"Content-Length: {len(answer)}", "", ""]
    return "\r\n".join(lines).encode() + answer + b"\r\n\r\n"


def peer_takes(cases: list[Case], folder: Path, directives: list[str]) -> list[bool]:
    """Whether img2dataset takes the image of each case, configured to obey these words of X-Robots-Tag."""
    folder.mkdir()
    links = folder / "links.parquet"
    pq.write_table(pa.table({"url": [case.url for case in cases], "row": list(range(len(cases)))}), links)
    code = (
        "from img2dataset import download\n"
        "if __name__ == '__main__':\n"
        f"    download(url_list={str(links)!r}, input_format='parquet', output_folder={str(folder / 'peer')!r},\n"
        "        output_format='parquet', save_additional_columns=['row'], processes_count=1, thread_count=16,\n"
        "        image_size=64, number_sample_per_shard=1000, timeout=3, enable_wandb=False,\n"
        f"        user_agent_token={AGENT!r}, disallowed_header_directives={directives!r})\n"
    )
    program = folder / "peer.py"
    program.write_text(code)
    call([sys.executable, str(program)], seconds=600, **IMG2DATASET)
    files = sorted((folder / "peer").glob("*.parquet"))
    if not files:
        raise UserError("img2dataset wrote no table of what it took")
    taken = {row["row"]: row["status"] == "success" for row in pq.read_table(files).to_pylist()}
    return [taken[number] for number in range(len(cases))]


def kind_of(case: Case) -> str:
    """What a case is about, for the table."""
    if case.row.get("basis"):
        return "legal basis"
    kinds = {
        "hops": "redirects",
        "robots": "robots.txt",
        "tdmrep": "tdmrep.json",
        "ai": "ai.txt",
        "trust": "trust.txt",
        "known_trust": "trust.txt",
        "registry": "registry",
    }
    if "RSL" in case.row["name"]:
        return "RSL"
    found = next(
        (kind for key, kind in (kinds | dict.fromkeys(("meta", "page_headers"), "page")).items() if key in case.row),
        None,
    )
    return found or ("headers" if "headers" in case.row else "silence")


@measure.benchmark(repeats=1)
def main(settings: measure.Settings) -> list[Path]:
    """Serve, decide all cases on both sides, print the table, write the record."""
    cases = read_cases()
    with tempfile.TemporaryDirectory() as scratch, RightsServer(cases) as server:
        folder = Path(scratch)
        faults = our_faults(cases, folder)
        server.forget()
        faults += program_faults(cases, folder)
        if faults:
            raise UserError(f"{len(faults)} decisions in {len(cases)} cases are wrong: " + "; ".join(faults)[:4000])
        server.forget()
        taken = peer_takes(cases, folder / "peer", DIRECTIVES)
        asked = {path for case in cases for path, _ in case.asked}
        all_words = peer_takes(cases, folder / "peer_all_words", WORDS["robots"]["reserving"])
    wanted = [not case.row.get("refused") for case in cases]
    wrong = [case for case, took, free in zip(cases, taken, wanted, strict=True) if took != free]
    used = [case.row["name"] for case in wrong if case.row.get("refused")]
    totals, missed = Counter(map(kind_of, cases)), Counter(map(kind_of, wrong))
    table = Table("cases about", "number", "ours right", "img2dataset right")
    for kind, count in sorted(totals.items()):
        table.add_row(kind, str(count), str(count), str(count - missed[kind]))
    table.add_row("all", str(len(cases)), str(len(cases)), str(len(cases) - len(wrong)))
    content = {
        "cases": len(cases),
        "ours_right": len(cases) - len(faults),
        "peer_right": len(cases) - len(wrong),
        "peer_right_when_told_all_words": sum(took == free for took, free in zip(all_words, wanted, strict=True)),
        "peer_takes_what_was_refused": used,
        "peer_leaves_what_was_free": [case.row["name"] for case in wrong if case.row["name"] not in used],
        "peer_right_by_kind": {kind: [count - missed[kind], count] for kind, count in sorted(totals.items())},
        "peer_asked_for_rules": sorted(asked & set(PLACES)),
        "same_work": [measure.require_same("ours, decisions against the rules", len(faults) / len(cases), 0.0)],
    }
    right = content["peer_right_when_told_all_words"]
    message = f"img2dataset takes {len(used)} images that it must not take; with all words, it is right {right} times"
    return [measure.write_result(content, settings, table, message=message)]


if __name__ == "__main__":
    run(main)

"""Fetch robots.txt, tdmrep.json, ai.txt and trust.txt of many origins in parallel, and apply them to each link.

Links come grouped by origin, one bucket at a time (links/disk_buckets.py). One thread handles one origin, so no origin
sees two connections at once. The results of a bucket are written when the whole bucket is decided; the answers of
origins are stored by rights/robots_rules.py, so a resumed run does not fetch them again.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.links.disk_buckets import append_stream, read_bucket, read_streams
from data_tools.links.host_shuffle import even_positions
from data_tools.links.link_sources import LinkSources
from data_tools.network.link_address import host_of
from data_tools.rights.reservations import Signal, decide
from data_tools.rights.robots_rules import RobotsRules
from leam_mm.data.ledger import evidence_text
from leam_mm.data.legal_basis import LegalBasis
from leam_mm.files import write_text

ROWS = 400_000  # links decided at a time
LINKS = pa.schema(
    [("row", pa.int64())]
    + [(name, pa.string()) for name in ("fetch", "origin", "source", "legal_basis", "page_url", "terms")]
    + [(name, pa.uint64()) for name in ("origin_hash", "link_hash")]
)
TEXTS = ("rule", "value", "reason", "evidence", "consent")
DECISIONS = pa.schema([("row", pa.int64())] + [(name, pa.dictionary(pa.int32(), pa.string())) for name in TEXTS])
POSITIONS = pa.schema([("row", pa.int64()), ("position", pa.float64())])
NOT_ASKED = json.dumps({"origin": "not asked"})
Decision = tuple[str | None, str | None, str | None, str | None, str | None]  # one text for each of TEXTS


@dataclass
class RobotsScreen:
    """Decides buckets of links.

    Args:
        rules: Rules of the origins; None if no origin is asked.
        sources: Legal bases by host and source.
        connections: Number of origins asked at a time.
        delay: Seconds between two requests to an origin that names no delay.
        seed: Seed of the order of links.
    """

    rules: RobotsRules | None
    sources: LinkSources
    connections: int
    delay: float
    seed: int

    def screen_bucket(self, links: Path, number: int, output: Path) -> None:
        """Decide one bucket, unless that is done; write its decisions, positions and origins to ``output``."""
        done = output / f"{number:06d}.jsonl"
        if done.exists():
            return
        decided, positioned = _paths(output, number)
        for old in (decided, positioned):
            old.unlink(missing_ok=True)
        origins: dict[str, dict[str, Any]] = {}
        kept: list[np.ndarray] = []
        with decided.open("ab") as file:
            for table in slabs(links, number):
                decisions, passed = self._screen_slab(table, origins)
                append_stream(file, decisions)
                names = ("row", "origin_hash", "link_hash")
                kept.append(np.stack([table[name].to_numpy().astype(np.uint64)[passed] for name in names]))
        row, origin, link = np.concatenate(kept, axis=1) if kept else np.zeros((3, 0), np.uint64)
        position = even_positions(origin, link, self.seed)
        with positioned.open("wb") as file:
            append_stream(file, pa.table([row.astype(np.int64), position], schema=POSITIONS))
        budgets = [self._budget(name, origins[name]) for name in sorted(origins)]
        write_text(done, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in budgets))

    def _screen_slab(self, table: pa.Table, origins: dict[str, dict[str, Any]]) -> tuple[pa.Table, np.ndarray]:
        """Return the decisions of all rows and which rows pass; count the links of each origin in ``origins``."""
        hashes = table["origin_hash"].to_numpy()
        order = np.argsort(hashes, kind="stable")
        starts = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]])
        groups = [np.sort(group) for group in np.split(order, starts[1:])]
        names = [table["origin"][int(group[0])].as_py() for group in groups]
        found: list[tuple[list[Decision], np.ndarray]]
        if self.rules is None:
            found = [([(None, None, None, None, NOT_ASKED)], np.zeros(len(group), np.int32)) for group in groups]
        else:
            with ThreadPoolExecutor(self.connections) as pool:
                found = list(pool.map(lambda group: self._screen_origin(table.take(pa.array(group))), groups))
        decisions: list[Decision] = []
        index = np.zeros(table.num_rows, np.int32)
        for name, group, (own, codes) in zip(names, groups, found, strict=True):
            index[group] = codes + len(decisions)
            decisions += own
            entry = origins.setdefault(name, {"links": 0, "kept": 0, "refused": {}})
            entry["links"] += len(group)
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                rule, value = own[code][:2]
                if rule is None:
                    entry["kept"] += int(count)
                else:
                    entry["refused"][str(value)] = entry["refused"].get(str(value), 0) + int(count)
        columns: list[pa.Array] = [table["row"].combine_chunks()]
        for texts in zip(*decisions, strict=True):
            words = pa.array(texts, pa.string()).dictionary_encode()
            columns.append(pa.DictionaryArray.from_arrays(words.indices.take(pa.array(index)), words.dictionary))
        passed = np.array([decision[0] is None for decision in decisions])[index]
        return pa.table(columns, schema=DECISIONS), passed

    def _screen_origin(self, links: pa.Table) -> tuple[list[Decision], np.ndarray]:
        """Return the distinct decisions about one origin's N links, and (N,) the number of each link's decision."""
        assert self.rules is not None
        numbers: dict[Decision, int] = {}
        codes = np.zeros(links.num_rows, np.int32)
        columns = (links[name].to_pylist() for name in ("fetch", "source", "legal_basis", "page_url", "terms"))
        for row, (url, source, word, page, terms) in enumerate(zip(*columns, strict=True)):
            basis = LegalBasis.of(word)
            host = host_of(url)
            if basis.may_be_agreed:
                if self.sources.names_host(host, source):
                    self.rules.agreed_hosts.add(host)
                else:
                    basis = LegalBasis.public_domain  # ignores reservations as well, but obeys robots.txt
            refusal, signals = self.rules.decide(url, basis)
            if terms and refusal is None and basis.honours_reservations:
                targets = [page, url] if host_of(page) else [url]
                for address in json.loads(terms):
                    signals += self.rules.terms(address, "page:rsl", targets)
                refusal = decide(signals, basis)
            codes[row] = numbers.setdefault(_decision(refusal, signals), len(numbers))
        return list(numbers), codes

    def _budget(self, origin: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Return an origin's line of origins.jsonl, which the downloader reads."""
        agreed = self.rules is not None and host_of(origin) in self.rules.agreed_hosts
        asked = self.rules is not None and not agreed
        wanted = self.rules.crawl_delay(origin + "/") if self.rules and asked else None
        delay = max(wanted or 0.0, self.delay)
        found = {"origin": origin, **entry, "crawl_delay": wanted, "delay": delay, "connections": 1}
        found |= {"least_seconds": round(max(0, entry["kept"] - 1) * delay, 3)}
        found |= {"evidence": self.rules.evidence(origin + "/") if self.rules and asked else None}
        return found | {"asked": asked, "agreed": agreed}


def slabs(links: Path, number: int) -> Iterator[pa.Table]:
    """Yield the rows of a bucket in tables of about ``ROWS`` rows, at most one stream more."""
    waiting: list[pa.Table] = []
    for table in read_bucket(links, number):
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def decision_tables(output: Path, number: int) -> tuple[Iterator[pa.Table], Iterator[pa.Table]]:
    """Return what ``screen_bucket`` wrote: decisions of all links, and positions of those that stay."""
    decided, positioned = _paths(output, number)
    return read_streams(decided), read_streams(positioned)


def _paths(output: Path, number: int) -> tuple[Path, Path]:
    return output / f"{number:06d}.decisions", output / f"{number:06d}.positions"


def _decision(refusal: Signal | None, signals: list[Signal]) -> Decision:
    consent = evidence_text({"origin": [asdict(signal) for signal in signals]})
    if refusal is None:
        return None, None, None, None, consent
    rule = (
        refusal.kind
        if refusal.kind in ("robots.txt", "tdmrep.json", "ai.txt", "trust.txt", "registry")
        else "reservation"
    )
    reason = f"{refusal.kind} of the origin forbids it"
    return rule, f"{refusal.kind}: {refusal.value}", reason, evidence_text({"signal": asdict(refusal)}), None

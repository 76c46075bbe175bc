"""Ask the origins of many links what they allow, in parallel, and judge each link by the answers.

Links come parted by origin, a bucket at a time (links/disk_buckets.py). Each origin is one task of one thread, so
that it never sees two connections of ours; many origins are asked at once. A bucket's verdicts are written when all of
it is judged; the answers themselves are kept by rights/robots_rules.py, so that a killed run does not ask again.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from data_tools.links.disk_buckets import append_stream, read_bucket, read_streams
from data_tools.links.host_shuffle import even_positions
from data_tools.links.link_sources import LinkSources
from data_tools.rights.legal_basis import LegalBasis
from data_tools.rights.reservations import Signal
from data_tools.rights.robots_rules import RobotsRules
from data_tools.work.ledger import evidence_text

ROWS = 400_000  # links judged at a time
LINKS = pa.schema(
    [("row", pa.int64())]
    + [(name, pa.string()) for name in ("fetch", "origin", "source", "legal_basis")]
    + [(name, pa.uint64()) for name in ("origin_hash", "link_hash")]
)
TEXTS = ("rule", "value", "reason", "evidence", "consent")
FATES = pa.schema([("row", pa.int64())] + [(name, pa.dictionary(pa.int32(), pa.string())) for name in TEXTS])
PLACES = pa.schema([("row", pa.int64()), ("position", pa.float64())])
NOT_ASKED = json.dumps({"origin": "not asked"})
Verdict = tuple[str | None, str | None, str | None, str | None, str | None]  # one text for each of TEXTS


@dataclass
class RobotsScreen:
    """Judges buckets of links.

    Args:
        rules: What origins say; None where nobody is asked.
        sources: Who has agreed.
        connections: Origins asked at a time.
        delay: Seconds between two requests to one origin, where it names none.
        seed: Of the order.
    """

    rules: RobotsRules | None
    sources: LinkSources
    connections: int
    delay: float
    seed: int

    def bucket(self, links: Path, number: int, output: Path) -> None:
        """Judge one bucket and write its verdicts, places and origins under ``output``; done ones are left alone."""
        done = output / f"{number:06d}.jsonl"
        if done.exists():
            return
        fates, places = output / f"{number:06d}.fates", output / f"{number:06d}.places"
        for old in (fates, places):
            old.unlink(missing_ok=True)
        origins: dict[str, dict[str, Any]] = {}
        kept: list[np.ndarray] = []
        with fates.open("ab") as file:
            for table in slabs(links, number):
                texts, passed = self._slab(table, origins)
                append_stream(file, texts)
                names = ("row", "origin_hash", "link_hash")
                kept.append(np.stack([table[name].to_numpy().astype(np.uint64)[passed] for name in names]))
        row, origin, link = np.concatenate(kept, axis=1) if kept else np.zeros((3, 0), np.uint64)
        position = even_positions(origin, link, self.seed)
        with places.open("wb") as file:
            append_stream(file, pa.table([row.astype(np.int64), position], schema=PLACES))
        temporary = done.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as lines:
            for name in sorted(origins):
                lines.write(json.dumps(self._budget(name, origins[name]), ensure_ascii=False, sort_keys=True) + "\n")
        os.replace(temporary, done)

    def _slab(self, table: pa.Table, origins: dict[str, dict[str, Any]]) -> tuple[pa.Table, np.ndarray]:
        """Give the texts of each row, and which rows pass."""
        hashes = table["origin_hash"].to_numpy()
        order = np.argsort(hashes, kind="stable")
        starts = np.flatnonzero(np.r_[True, hashes[order][1:] != hashes[order][:-1]])
        groups = [np.sort(group) for group in np.split(order, starts[1:])]
        names = [table["origin"][int(group[0])].as_py() for group in groups]
        found: list[tuple[list[Verdict], np.ndarray]]
        if self.rules is None:
            found = [([(None, None, None, None, NOT_ASKED)], np.zeros(len(group), np.int32)) for group in groups]
        else:
            with ThreadPoolExecutor(self.connections) as pool:
                found = list(pool.map(lambda group: self._origin(table.take(pa.array(group))), groups))
        verdicts: list[Verdict] = []
        index = np.zeros(table.num_rows, np.int32)
        for name, group, (own, places) in zip(names, groups, found, strict=True):
            index[group] = places + len(verdicts)
            verdicts += own
            entry = origins.setdefault(name, {"links": 0, "kept": 0, "refused": {}})
            entry["links"] += len(group)
            for place, count in zip(*np.unique(places, return_counts=True), strict=True):
                value = own[place][1]
                if own[place][0] is None:
                    entry["kept"] += int(count)
                else:
                    entry["refused"][str(value)] = entry["refused"].get(str(value), 0) + int(count)
        columns: list[pa.Array] = [table["row"].combine_chunks()]
        for place in range(len(TEXTS)):
            words = pa.array([verdict[place] for verdict in verdicts], pa.string()).dictionary_encode()
            codes = words.indices.take(pa.array(index))
            columns.append(pa.DictionaryArray.from_arrays(codes, words.dictionary))
        passed = np.array([verdict[0] is None for verdict in verdicts])[index]
        return pa.table(columns, schema=FATES), passed

    def _origin(self, links: pa.Table) -> tuple[list[Verdict], np.ndarray]:
        """Judge the links of one origin."""
        assert self.rules is not None
        known: dict[Verdict, int] = {}
        places = np.zeros(links.num_rows, np.int32)
        columns = (links[name].to_pylist() for name in ("fetch", "source", "legal_basis"))
        for number, (url, source, word) in enumerate(zip(*columns, strict=True)):
            basis = LegalBasis.of(word)
            host = urlsplit(url).hostname or ""
            if basis.may_be_agreed:
                if self.sources.names_host(host, source):
                    self.rules.agreed_hosts.add(host)
                else:
                    basis = LegalBasis.public_domain  # as free of reservations, and bound by robots.txt
            refusal, signals = self.rules.decide(url, basis)
            verdict = _verdict(refusal, signals)
            places[number] = known.setdefault(verdict, len(known))
        return list(known), places

    def _budget(self, origin: str, entry: dict[str, Any]) -> dict[str, Any]:
        """What the downloader and a reader want to know of an origin."""
        agreed = self.rules is not None and urlsplit(origin).hostname in self.rules.agreed_hosts
        asked = self.rules is not None and not agreed
        wanted = self.rules.crawl_delay(origin + "/") if self.rules and asked else None
        delay = max(wanted or 0.0, self.delay)
        found = {"origin": origin, **entry, "crawl_delay": wanted, "delay": delay, "connections": 1}
        found |= {"least_seconds": round(max(0, entry["kept"] - 1) * delay, 3)}
        found |= {"evidence": self.rules.evidence(origin + "/") if self.rules and asked else None}
        return found | {"asked": asked, "agreed": agreed}


def slabs(links: Path, number: int) -> Iterator[pa.Table]:
    """Read a bucket, at most ``ROWS`` and one stream at a time."""
    waiting: list[pa.Table] = []
    for table in read_bucket(links, number):
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROWS:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def verdict_tables(output: Path, number: int) -> tuple[Iterator[pa.Table], Iterator[pa.Table]]:
    """What ``RobotsScreen.bucket`` wrote: fates of all links, and places of those that stay."""
    return read_streams(output / f"{number:06d}.fates"), read_streams(output / f"{number:06d}.places")


def _verdict(refusal: Signal | None, signals: list[Signal]) -> Verdict:
    consent = evidence_text({"origin": [asdict(signal) for signal in signals]})
    if refusal is None:
        return None, None, None, None, consent
    rule = refusal.kind if refusal.kind in ("robots.txt", "tdmrep.json", "ai.txt", "registry") else "reservation"
    reason = f"{refusal.kind} of the origin forbids it"
    return rule, f"{refusal.kind}: {refusal.value}", reason, evidence_text({"signal": asdict(refusal)}), None

"""Counts of a data set, from its shards and ledgers; nothing is estimated.

Numbers of samples, captions and bytes are those of the shards. Bytes of a domain are those that were fetched where a
ledger records them, else those that are stored; ``domain_bytes`` says which.
"""

import base64
import hashlib
import heapq
import io
import logging
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS, MEMBER_EXTENSIONS
from leam_mm.data.registered_domain import plain_host, registrable_domain
from leam_mm.data.sample_json import read_sample_json, sample_captions
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.documents.decision_flow import Flow, account, identity, numbers, own_ledgers, read_flow
from leam_mm.documents.document_text import NOT_STATED
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
FORMAT = "leam_mm statistics 1"
SIDES = (64, 128, 256, 512, 1024, 2048)
THUMBNAIL = 160  # pixels of the longer side
THUMBNAILS = 24


@dataclass
class DomainCount:
    """Samples and bytes from one registrable domain."""

    samples: int = 0
    bytes: int = 0


@dataclass
class Tally:
    """Counts over samples.

    Args:
        flow: Decisions of the ledgers, for the bytes that were fetched.
        ids: First 64 bits of the uids of the samples.
        counters: Samples or captions by value, for each counter of statistics.json.
        domains: All registrable domains.
        crawled: Domains of samples that no agreement covers, by shard folder.
        sections: Samples by shard folder, legal basis, and ``web`` or ``files``.
        robots: Samples whose record holds an answer of robots.txt, by shard folder.
        altered: Changes to images and captions by their name, by shard folder.
        unfetched: Samples whose fetched bytes no ledger records.
        chosen: The samples to show: negative hash, key, record and image file.
    """

    flow: Flow
    samples: int = 0
    image_bytes: int = 0
    captions: int = 0
    text_bytes: int = 0
    words: int = 0
    ids: "array[int]" = field(default_factory=lambda: array("Q"))
    counters: dict[str, Counter[str]] = field(default_factory=dict)
    domains: dict[str, DomainCount] = field(default_factory=dict)
    crawled: dict[str, dict[str, DomainCount]] = field(default_factory=dict)
    sections: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    robots: Counter[str] = field(default_factory=Counter)
    altered: dict[str, Counter[str]] = field(default_factory=dict)
    unfetched: int = 0
    chosen: list[tuple[int, str, dict[str, Any], bytes]] = field(default_factory=list)

    def count(self, name: str, value: object, number: int = 1) -> None:
        """Add to one of the counters."""
        self.counters.setdefault(name, Counter())[str(value or NOT_STATED)] += number

    def add(self, folder: str, root: str, key: str, members: dict[str, bytes]) -> None:
        """Count one sample of a folder."""
        try:
            record = read_sample_json(members)
            extension = next((name for name in MEMBER_EXTENSIONS if name in members), "none")
            content = members.get(extension, b"")
            self._texts(sample_captions(record))
            host = str(record.get("domain") or plain_host(record.get("url")))
            for name in ("licence", "legal_basis", "crawler"):
                self.count(name, record.get(name))
            self._image(record, extension)
            self.robots[folder] += "origin: robots.txt" in self._consent(record.get("consent") or {})
            for transform in record.get("transforms") or []:
                name = str(transform).partition(":")[0]
                self.count("transforms", name)
                self.altered.setdefault(folder, Counter())[name] += 1
        except UserError as error:
            raise UserError(f"{folder}: sample {key}: {error}") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{folder}: sample {key} breaks the contract ({error}); run check_shards first") from None
        uid = record.get("uid")
        fetched = self.flow.bytes_of(uid)
        self.unfetched += fetched is None
        if host:
            name = registrable_domain(host) or host
            counts = [self.domains.setdefault(name, DomainCount())]
            if record.get("legal_basis") not in ("licensed", "consent", "synthetic"):
                counts.append(self.crawled.setdefault(folder, {}).setdefault(name, DomainCount()))
            for count in counts:
                count.samples += 1
                count.bytes += len(content) if fetched is None else fetched
        self.sections[folder, str(record.get("legal_basis") or NOT_STATED), "web" if host else "files"] += 1
        self.samples += 1
        self.image_bytes += len(content)
        if uid:
            self.ids.append(identity(uid))
        self._choose(int.from_bytes(hashlib.sha256(f"{root}:{key}".encode()).digest()[:8]), key, record, content)

    def _texts(self, captions: list[dict[str, Any]]) -> None:
        for caption in captions:
            text = str(caption["text"])
            self.captions += 1
            self.text_bytes += len(text.encode("utf-8", "surrogatepass"))
            self.words += len(text.split())
            self.count("languages", caption.get("language"))
            self.count("caption_sources", caption.get("source"))
            if caption.get("machine_translated"):
                self.count("machine_translated", caption.get("language"))
        for language in {str(caption.get("language")) for caption in captions}:
            self.count("samples_by_language", language)

    def _image(self, record: dict[str, Any], extension: str) -> None:
        self.count("formats", extension)
        width, height = record.get("width"), record.get("height")
        if not isinstance(width, int) or not isinstance(height, int) or not 1 <= min(width, height) <= MAX_PIXELS:
            self.count("sides", None)
            return
        side = next((f"below {limit}" for limit in SIDES if min(width, height) < limit), f"{SIDES[-1]} and more")
        self.count("sides", side)
        ratio = min(max(width, height), MAX_PIXELS) / min(width, height)
        shape = "square, up to 1:1.1" if ratio <= 1.1 else "wide" if width > height else "tall"
        self.count("shapes", shape if ratio <= 2 else f"{shape}, above 1:2")

    def _consent(self, consent: dict[str, Any]) -> set[str]:
        """Count a sample by the kinds of evidence stored with it, and return them."""
        kinds: set[str] = set()
        for name, value in consent.items():
            signals = value if isinstance(value, list) else []
            found = {str(signal["kind"]) for signal in signals if isinstance(signal, dict) and "kind" in signal}
            kinds |= {f"{name}: {kind}" for kind in found} or {name}
        for kind in kinds or {"none"}:
            self.count("consent", kind)
        return kinds

    def _choose(self, digest: int, key: str, record: dict[str, Any], content: bytes) -> None:
        """Keep the samples of the smallest digests: a choice that looks random and is the same every time."""
        if content:
            entry = (-digest, key, record, content)
            if len(self.chosen) < THUMBNAILS:
                heapq.heappush(self.chosen, entry)
            elif entry[0] > self.chosen[0][0]:
                heapq.heapreplace(self.chosen, entry)


def read_tally(folders: Iterable[Path], flow: Flow) -> tuple[Tally, list[dict[str, Any]]]:
    """Count all samples of shard folders; return the counts and a description of each folder."""
    tally, data_sets = Tally(flow), []
    for path in folders:
        folder = ShardFolder(path)
        size = sum(entry.bytes for entry in folder.shards)
        data_sets.append(
            {"name": path.name, "merkle_root": folder.merkle_root, "samples": folder.samples}
            | {"shards": len(folder.shards), "tar_bytes": size}
        )
        samples = track(read_samples(path), f"count {path.name}", total=folder.samples, transient=True)
        for key, members in samples:
            tally.add(path.name, folder.merkle_root, key, members)
    return tally, data_sets


def statistics(folders: list[Path], ledgers: list[Path], own: bool = True) -> tuple[dict[str, Any], Tally]:
    """Count a data set.

    Args:
        folders: Its shard folders or keep-lists.
        ledgers: Ledgers of earlier stages.
        own: Also read the ledgers in the folders.

    Returns:
        The content of statistics.json, and the counts that do not fit into it: all domains, and images.
    """
    found = [path for folder in folders for path in own_ledgers(folder)] if own else []
    flow = read_flow(dict.fromkeys(path.resolve() for path in [*ledgers, *found]))
    tally, data_sets = read_tally(folders, flow)
    accounting = account(flow, tally.samples, numbers(tally.ids))
    by_bytes = sorted(tally.domains.items(), key=lambda item: (-item[1].bytes, item[0]))
    return {
        "format": FORMAT,
        "data_sets": data_sets,
        "samples": tally.samples,
        "captions": tally.captions,
        "image_bytes": tally.image_bytes,
        "text_bytes": tally.text_bytes,
        "words": tally.words,
        "accounting": accounting,
        "stages": [
            {"stage": name, "given": stage.given, "kept": stage.kept, "withdrawn_later": stage.withdrawn}
            | {"dropped": dict(stage.dropped.most_common())}
            for name, stage in flow.stages.items()
        ],
        "duplicates_removed": sum(
            count for stage in flow.stages.values() for rule, count in stage.dropped.items() if "duplicate" in rule
        )
        if flow.stages
        else None,
        "months": dict(sorted(flow.months.items())),
        "crawl_months": dict(sorted(flow.crawl_months.items())),
        "domain_count": len(tally.domains),
        "domain_bytes": "fetched" if tally.unfetched == 0 else "stored" if not flow.months else "fetched where known",
        "largest_domains": [
            {"domain": name, "samples": found.samples, "bytes": found.bytes} for name, found in by_bytes[:100]
        ],
    } | {
        name: dict(sorted(tally.counters.get(name, Counter()).items(), key=lambda item: (-item[1], item[0])))
        for name in (
            *("languages", "samples_by_language", "machine_translated", "caption_sources", "licence", "legal_basis"),
            *("crawler", "formats", "sides", "shapes", "transforms", "consent"),
        )
    }, tally


def thumbnails(tally: Tally) -> list[dict[str, Any]]:
    """Return the chosen samples, each with a small image as a data address."""
    found = []
    for _, key, record, content in sorted(tally.chosen, key=lambda entry: (-entry[0], entry[1])):
        try:
            image = open_image(content).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        except Exception as error:  # Pillow raises many kinds on damaged and hostile files
            log.warning("sample %s is not shown: unreadable image (%s)", key, error)
            continue
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        address = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        found.append({"key": key, "record": record, "address": address, "size": image.size})
    return found

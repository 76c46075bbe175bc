"""The counts of the training data of a release, as a file from which its documents can be written again."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.dataset_statistics import DomainCount
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.statistics_file import checked_statistics
from leam_mm.documents.training_content import FolderEvidence, TrainingContent, empty_tally, made_from
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

DESCRIBED = "training_content.json"
CONTENT = f"documents/{DESCRIBED}"
FORMAT = "leam_mm training content 1"
MAX_CONTENT = 256 << 20  # bytes


def training_content_file(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the counts as JSON; empty without counted shards."""
    return content_text(facts.content) if facts.content is not None else ""


def content_text(content: TrainingContent) -> str:
    """Return counts as JSON, which ``read_content`` reads."""
    tally = content.tally
    record = {
        "format": FORMAT,
        "statistics": dict(content.statistics),
        "sections": [[*key, count] for key, count in sorted(tally.sections.items())],
        "crawled": {
            folder: {name: [found.samples, found.bytes] for name, found in sorted(domains.items())}
            for folder, domains in sorted(tally.crawled.items())
        },
        "evidence": [
            {"name": one.name, "merkle_root": one.merkle_root, "samples": one.samples, "web": one.web}
            | {"robots": one.robots, "personal": None if one.personal is None else dict(one.personal)}
            for one in content.evidence
        ],
    }
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def read_training_content(folder: Path) -> TrainingContent | None:
    """Read the counts of a release folder; None without the file.

    Raises:
        UserError: The file is damaged or too large.
    """
    return read_content(folder / CONTENT) if (folder / CONTENT).is_file() else None


def described_content(shards: Sequence[Path], description: Path, trained: Collection[str]) -> TrainingContent:
    """Return the counts that describe_dataset.py has written, instead of counting shards again.

    Args:
        shards: The shard folders of the release.
        description: Output folder of describe_dataset.py.
        trained: Merkle roots of the data of the training, and of what they were made from.

    Raises:
        UserError: The description is damaged, or is of other data.
    """
    path = description / DESCRIBED
    if not path.is_file():
        raise UserError(f"{path} is missing: give the output folder of data_tools/describe_dataset.py")
    found = read_content(path)
    for entry in found.statistics["data_sets"]:
        if entry["merkle_root"] not in trained:
            raise UserError(
                f"{path} describes {str(entry['name'])[:80]!r}, on which no part was trained: describe again"
            )
    roots = set(found.merkle_roots)
    own = [folder for folder in shards if ShardFolder(folder).merkle_root in roots]
    for folder in shards:
        if folder not in own and made_from(folder) not in roots:
            raise UserError(f"{path} does not describe {folder}: describe all shards of the training at once")
    return replace(found, folders=tuple(own))


def read_content(path: Path) -> TrainingContent:
    """Read a file of counts.

    Raises:
        UserError: The file is damaged or too large.
    """
    try:
        if path.stat().st_size > MAX_CONTENT:
            raise ValueError("it is too large")
        record: dict[str, Any] = parse_object(path.read_bytes())
        tally = empty_tally()
        tally.sections = Counter({(str(a), str(b), str(c)): int(count) for a, b, c, count in record["sections"]})
        tally.crawled = {
            str(name): {str(domain): DomainCount(int(samples), int(size)) for domain, (samples, size) in found.items()}
            for name, found in record["crawled"].items()
        }
        evidence = tuple(_evidence(entry) for entry in record["evidence"])
        statistics = checked_statistics(record["statistics"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): write it again") from None
    return TrainingContent(statistics, tally, (), evidence)


def _evidence(entry: dict[str, Any]) -> FolderEvidence:
    counts = [int(entry[name]) for name in ("samples", "web", "robots")]
    personal = entry["personal"]
    known = None if personal is None else {str(name): int(count) for name, count in personal.items()}
    return FolderEvidence(str(entry["name"]), str(entry["merkle_root"]), counts[0], counts[1], counts[2], known)

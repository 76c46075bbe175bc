"""The counts of the training data of a release, as a file from which its documents can be written again."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from leam_mm.documents.dataset_statistics import DomainCount
from leam_mm.documents.publisher import PublisherFields
from leam_mm.documents.release_facts import ReleaseFacts
from leam_mm.documents.training_content import FolderEvidence, TrainingContent, empty_tally
from leam_mm.errors import UserError
from leam_mm.json_text import parse_object

CONTENT = "documents/training_content.json"
FORMAT = "leam_mm training content 1"
MAX_CONTENT = 256 << 20  # bytes


def training_content_file(facts: ReleaseFacts, publisher: PublisherFields, language: str) -> str:
    """Return the counts as JSON; empty without counted shards."""
    if facts.content is None:
        return ""
    tally = facts.content.tally
    record = {
        "format": FORMAT,
        "statistics": dict(facts.content.statistics),
        "sections": [[*key, count] for key, count in sorted(tally.sections.items())],
        "crawled": {
            folder: {name: [found.samples, found.bytes] for name, found in sorted(domains.items())}
            for folder, domains in sorted(tally.crawled.items())
        },
        "evidence": [
            {"name": one.name, "merkle_root": one.merkle_root, "samples": one.samples, "web": one.web}
            | {"robots": one.robots, "personal": None if one.personal is None else dict(one.personal)}
            for one in facts.content.evidence
        ],
    }
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def read_training_content(folder: Path) -> TrainingContent | None:
    """Read the counts of a release folder; None without the file.

    Raises:
        UserError: The file is damaged or too large.
    """
    path = folder / CONTENT
    if not path.is_file():
        return None
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
        evidence = tuple(FolderEvidence(**entry) for entry in record["evidence"])
        statistics = record["statistics"]
        if not isinstance(statistics, dict):
            raise ValueError("statistics is no mapping")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): build the release again") from None
    return TrainingContent(statistics, tally, (), evidence)

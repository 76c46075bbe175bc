"""What the shards of a training hold, counted for the documents of a release."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leam_mm.data.parquet_file import ERRORS, error_reason, open_parquet
from leam_mm.data.shard_index import ShardFolder
from leam_mm.documents.dataset_statistics import Tally, statistics
from leam_mm.documents.decision_flow import COLUMNS, own_ledgers, read_flow
from leam_mm.documents.training_summary import PERSONAL
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
ENCODING = "encoding.json"  # of latent shards; names the shards that they were made from
MAX_ENCODING = 1 << 20  # bytes


@dataclass(frozen=True)
class FolderEvidence:
    """What the records of one shard folder show.

    Args:
        name: Name of the folder.
        merkle_root: Its name by content.
        samples: Number of samples.
        web: Number of samples from the web.
        robots: Number of samples whose record holds an answer of robots.txt.
        personal: Changes and drops because of personal data, by their names; None without a ledger, where no such
            change is recorded either.
    """

    name: str
    merkle_root: str
    samples: int
    web: int
    robots: int
    personal: Mapping[str, int] | None


@dataclass(frozen=True)
class TrainingContent:
    """Counts over shard folders.

    Args:
        statistics: As in the statistics.json of ``data_tools/describe_dataset.py``.
        tally: The counts it was made from, with all domains.
        folders: The folders that were counted.
        evidence: What the records of each show.
    """

    statistics: Mapping[str, Any]
    tally: Tally
    folders: tuple[Path, ...]
    evidence: tuple[FolderEvidence, ...] = ()

    @property
    def merkle_roots(self) -> list[str]:
        """Merkle roots of the folders."""
        return [str(entry["merkle_root"]) for entry in self.statistics["data_sets"]]


def made_from(folder: Path) -> str | None:
    """Return the Merkle root of the shards that latent shards were made from; None for other shards.

    Raises:
        UserError: The file that says so is damaged.
    """
    # Latents of several shapes lie in folders of their own below the one that names their source.
    path = next((place / ENCODING for place in (folder, folder.parent) if (place / ENCODING).is_file()), None)
    if path is None:
        return None
    try:
        if path.stat().st_size > MAX_ENCODING:
            raise ValueError("it is too large")
        root = json.loads(path.read_text("utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be used ({str(error)[:100]}): copy the folder again") from None
    return str(root)


def count_training_content(folders: Iterable[Path], ledgers: Sequence[Path] = ()) -> TrainingContent | None:
    """Count the shards of a training, each sample once; None without a folder.

    Latent shards are skipped if the shards that they were made from are given, too.

    Args:
        folders: Shard folders or keep-lists.
        ledgers: Ledgers of earlier stages; those in the folders are found.

    Raises:
        UserError: A folder is damaged.
    """
    given = list(dict.fromkeys(folder.resolve() for folder in folders))
    roots = {ShardFolder(folder).merkle_root for folder in given}
    own = tuple(folder for folder in given if made_from(folder) not in roots)
    if not own:
        return None
    found = [ledger for folder in own for ledger in usable_ledgers(folder)]
    counted, tally = statistics(list(own), [*ledgers, *found], own=False)
    return training_content(own, counted, tally)


def training_content(folders: Sequence[Path], counted: Mapping[str, Any], tally: Tally) -> TrainingContent:
    """Return the counts of shard folders together with what the records of each folder show.

    Args:
        folders: The folders.
        counted: Their statistics.
        tally: The counts that these were made from.
    """
    sets = {str(entry["name"]): entry for entry in counted["data_sets"]}
    evidence = tuple(_evidence(folder, sets[folder.name], tally) for folder in folders)
    return TrainingContent(counted, tally, tuple(folders), evidence)


def usable_ledgers(folder: Path) -> list[Path]:
    """Return the ledgers of a shard folder; one that other programs wrote is not read, which is logged."""
    usable = []
    for path in own_ledgers(folder):
        try:
            with open_parquet(path) as file:
                missing = [name for name in COLUMNS if name not in file.schema.names]
        except ERRORS as error:
            raise UserError(f"{path} cannot be read ({error_reason(error)}): copy the folder again") from None
        if missing:
            log.warning("%s has no column %s: the documents do not count its decisions", path, missing[0])
        else:
            usable.append(path)
    return usable


def empty_tally() -> Tally:
    """Return the counts of nothing."""
    return Tally(read_flow(()))


def _evidence(folder: Path, entry: Mapping[str, Any], tally: Tally) -> FolderEvidence:
    """Return what the records of a folder show; ``entry`` is its line of the statistics."""
    found = Counter(
        {name: count for name, count in tally.altered.get(folder.name, Counter()).items() if _personal(name)}
    )
    ledgers = usable_ledgers(folder)
    for stage in read_flow(ledgers).stages.values():
        found.update({rule: count for rule, count in stage.dropped.items() if _personal(rule)})
    web = sum(count for (name, _, origin), count in tally.sections.items() if name == folder.name and origin == "web")
    return FolderEvidence(
        folder.name,
        str(entry["merkle_root"]),
        int(entry["samples"]),
        web,
        tally.robots[folder.name],
        dict(found) if found or ledgers else None,
    )


def _personal(name: str) -> bool:
    return any(word in name for word in PERSONAL)

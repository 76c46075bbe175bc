"""Samples, licences and legal bases of the shard folders that a release was trained on."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from leam_mm.data.parquet_file import open_parquet
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.documents.release_facts import DataFacts, StageFacts
from leam_mm.errors import UserError


def data_facts(path: Path, stages: Sequence[StageFacts]) -> DataFacts:
    """Count a shard folder, after a check that the release was trained on it."""
    folder = ShardFolder(path)
    root = folder.merkle_root
    if not any(root in stage.origins for stage in stages):
        raise UserError(
            f"no part of this release was trained on {path} (Merkle root {root[:12]}): leave it out of --shards"
        )
    licences, legal_bases = (count_column(folder, column) for column in ("licence", "legal_basis"))
    return DataFacts(path.name, root, folder.samples, licences, legal_bases)


def count_column(folder: ShardFolder, column: str) -> dict[str, int]:
    """Count samples by one field: from the ledger if it has the field of every sample, else from the samples."""
    ledger = folder.path / "ledger.parquet"
    try:
        if ledger.is_file():
            with open_parquet(ledger) as file:
                names = set(file.schema.names)
                table = file.read(sorted({column, "kept"} & names)) if column in names else None
            # A ledger holds dropped links, too.
            kept = table if table is None or "kept" not in names else table.filter(table["kept"])
            if kept is not None and kept.num_rows == folder.samples and not kept[column].null_count:
                return dict(Counter(str(value) for value in kept[column].to_pylist()))
        records = (read_sample_json(members) for _, members in read_samples(folder.path))
        return dict(Counter(str(record.get(column) or "") for record in records))
    except (pa.ArrowInvalid, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder.path}: {column} cannot be counted ({error!r}): copy the folder again") from None

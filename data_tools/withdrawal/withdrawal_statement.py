"""Write and verify the statement of a withdrawal: the data set before and after, provable by its Merkle roots.

The statement contains both manifests, so that anyone can recompute both roots and see that untouched shards are equal.
Samples are identified by hashes only.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.withdrawal.sample_selector import Selection, published_hash, url_digest
from data_tools.withdrawal.shard_withdrawal import Withdrawn, shard_folders
from data_tools.work.signature import read_public_key, verify_file
from leam_mm.data.shard_index import merkle_root, parse_manifest
from leam_mm.data.tombstones import TOMBSTONES
from leam_mm.errors import UserError

FORMAT = "leam_mm withdrawal 1"
MAX_BYTES = 1 << 30


def statement(
    changes: list[dict[str, Any]],
    found: dict[Path, list[Withdrawn]],
    selection: Selection,
    trained: dict[str, Any],
    reason: str,
    date: str,
    number: int,
    salt: bytes | None,
) -> dict[str, Any]:
    """Assemble the statement.

    Args:
        changes: For each folder that changes: name, Merkle roots and manifests before and after.
        found: The withdrawn samples of each folder.
        selection: The selectors.
        trained: Models trained on the samples.
        reason: Reason as given on the command line.
        date: YYYY-MM-DD.
        number: Number of this withdrawal, to which tombstones refer.
        salt: Salt of the published hashes, or None.
    """
    return {
        "format": FORMAT,
        "number": number,
        "date": date,
        "reason": reason,
        "salted": salt is not None,
        "asked_for": [selector.public(salt) for selector in selection.selectors],
        "data_sets": changes,
        "withdrawn": {
            folder.name: [
                {"key": stone["key"], "image_sha256": stone["image_sha256"]} for stone in tombstones(gone, number, salt)
            ]
            for folder, gone in found.items()
            if gone
        },
        "models": trained,
    }


def tombstones(gone: Iterable[Withdrawn], number: int, salt: bytes | None) -> list[dict[str, Any]]:
    """Return what may be published of the samples: their keys, hashes and former shards."""

    def hidden(value: object) -> str | None:
        if not value:
            return None
        return published_hash(str(value), salt) if salt else str(value)

    return [
        {
            "withdrawal": number,
            "key": sample.key,
            "shard": f"{sample.folder}/{sample.shard}".lstrip("/"),
            "uid": hidden(sample.record.get("uid")),
            "url_sha256": hidden(url_digest(url) if (url := str(sample.record.get("url") or "")) else None),
            "image_sha256": hidden(sample.record.get("sha256")),
            "salted": salt is not None,
        }
        for sample in gone
    ]


def verify_statement(path: Path, public_key: Path, folders: list[Path]) -> list[str]:
    """Check the signature of a statement, its Merkle roots, and the state of shard folders.

    Args:
        path: The statement; its signature lies beside it.
        public_key: Public key of the expected signer.
        folders: Some or all of the changed shard folders.

    Returns:
        What was verified, one line each.

    Raises:
        UserError: A claim of the statement is wrong.
    """
    signer = verify_file(path, read_public_key(public_key))
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        changes = {str(change["name"]): change for change in content["data_sets"]}
        said = [f"{path}: signed by {signer}, of {content['date']}"]
        for name, change in changes.items():
            said.append(f"{name}: {_arithmetic(name, change)}")
        gone = {str(stone["key"]) for stones in content["withdrawn"].values() for stone in stones}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a statement of a withdrawal ({error!r}): ask the sender for it again") from None
    after = {change["merkle_root_after"] for change in changes.values()}
    for folder in folders:
        for _, part in shard_folders(folder):
            if part.merkle_root not in after:
                raise UserError(
                    f"{part.path} has the Merkle root {part.merkle_root[:12]}, which the statement does not name: "
                    "give a folder in the state after this withdrawal, not another state"
                )
            there = gone & {key for number in range(len(part.shards)) for key in part.index(number).keys}
            if there:
                raise UserError(f"{part.path} still holds the withdrawn sample {min(there)}")
            said.append(f"{part.path}: is the state after, and holds none of the {len(gone)} samples")
        if not (folder / TOMBSTONES).is_file():
            raise UserError(f"{folder} has no {TOMBSTONES}: give a folder that withdraw_samples wrote")
    return said


def _arithmetic(name: str, change: dict[str, Any]) -> str:
    """Recompute both roots and compare the manifests."""
    if "keep_list_of" in change:
        if change["merkle_root_before"].partition("+")[0] != change["keep_list_of"]:
            raise UserError(f"{name}: its Merkle root does not begin with that of its shards")
        return f"a keep-list, of {change['samples_before']} samples before and {change['samples_after']} after"
    sides = {}
    for side in ("before", "after"):
        text = "\n".join(json.dumps(entry) for entry in change[f"manifest_{side}"])
        entries = parse_manifest(text, f"{name}, manifest_{side}")
        if merkle_root(entries) != change[f"merkle_root_{side}"]:
            raise UserError(f"{name}: merkle_root_{side} is not that of manifest_{side}")
        if sum(entry.samples for entry in entries) != change[f"samples_{side}"]:
            raise UserError(f"{name}: samples_{side} is not the sum of manifest_{side}")
        sides[side] = {entry.shard: entry for entry in entries}
    before, after = sides["before"], sides["after"]
    if set(after) - set(before) or any(after[shard].samples > before[shard].samples for shard in after):
        raise UserError(f"{name}: a shard was added or grew, which a withdrawal never does")
    same = sum(after[shard] == before[shard] for shard in after)
    went = change["samples_before"] - change["samples_after"]
    return f"{went} of {change['samples_before']} samples were withdrawn, {same} of {len(before)} shards are untouched"

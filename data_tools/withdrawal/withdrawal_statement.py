"""The statement of a withdrawal: what a data set was before and after, provable by its Merkle roots; and its check.

The statement holds both manifests, so that anyone can compute both roots again and see that untouched shards are the
same; of the samples it names only their hashes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.signed_statement import read_public_key, verify_file
from data_tools.withdrawal.sample_selector import Selection, url_digest, veil
from data_tools.withdrawal.shard_withdrawal import TOMBSTONES, Withdrawn, shard_folders
from leam_mm.data.shard_index import merkle_root, parse_manifest
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
    """Put together what is signed.

    Args:
        changes: Names, roots and manifests before and after, of each folder that changes.
        found: The samples of each folder.
        selection: What was asked for.
        trained: What is known of trainings on the samples.
        reason: In the words of who withdraws.
        date: YYYY-MM-DD.
        number: Of this withdrawal; tombstones refer to it.
        salt: Of the published hashes, or None.
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
    """What may be published of the samples: hashes, and where they lay."""

    def hidden(value: object) -> str | None:
        return veil(str(value), salt) if value and salt else str(value) if value else None

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
    """Check signature, arithmetic, and that folders are what the statement says they became.

    Args:
        path: The statement; its signature lies beside it.
        public_key: Of who should have signed it.
        folders: Shard folders to hold against it; any of the changed ones.

    Returns:
        What was found to be true, line by line.

    Raises:
        UserError: Something is not as it says.
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
        raise UserError(f"{path} is no statement of a withdrawal ({error!r})") from None
    after = {change["merkle_root_after"] for change in changes.values()}
    for folder in folders:
        for _, part in shard_folders(folder):
            if part.merkle_root not in after:
                raise UserError(
                    f"{part.path} has the Merkle root {part.merkle_root[:12]}, which the statement does not name: "
                    "it is another state, or another data set"
                )
            there = gone & {key for number in range(len(part.shards)) for key in part.index(number).keys}
            if there:
                raise UserError(f"{part.path} still holds the withdrawn sample {min(there)}")
            said.append(f"{part.path}: is the state after, and holds none of the {len(gone)} samples")
        if not (folder / TOMBSTONES).is_file():
            raise UserError(f"{folder} has no {TOMBSTONES}: it was not written by withdraw_samples")
    return said


def _arithmetic(name: str, change: dict[str, Any]) -> str:
    """Compute both roots again and compare the manifests."""
    if "keep_list_of" in change:
        if change["merkle_root_before"].partition("+")[0] != change["keep_list_of"]:
            raise UserError(f"{name}: the list's name does not begin with that of its shards")
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
        raise UserError(f"{name}: a shard was added or grew, which no withdrawal does")
    same = sum(after[shard] == before[shard] for shard in after)
    went = change["samples_before"] - change["samples_after"]
    return f"{went} of {change['samples_before']} samples went, {same} of {len(before)} shards are untouched"

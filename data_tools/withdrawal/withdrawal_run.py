"""Run a withdrawal: search the folders, show what was found, and take it out of all of them in one step."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from data_tools.links.withdrawn_lists import DIGESTS, DOMAINS, PDQ, SUFFIX, URLS
from data_tools.withdrawal.derived_withdrawal import Origin, find, is_keep_list, origin_of, stage_keep_list
from data_tools.withdrawal.sample_selector import Selection, blocked_digests
from data_tools.withdrawal.shard_withdrawal import (
    Withdrawn,
    add_evidence,
    commit,
    earlier_roots,
    finish_withdrawal,
    shard_folders,
    stage,
)
from data_tools.withdrawal.withdrawal_statement import statement, tombstones
from data_tools.work.signature import sign_file
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.tombstones import STATEMENTS
from leam_mm.errors import UserError
from leam_mm.files import remove_leftovers, write_text
from leam_mm.run_lock import beside, run_lock

SHOWN = 20  # samples of each folder in a dry run
Found = dict[Path, list[Withdrawn]]


@dataclass(frozen=True)
class Withdrawal:
    """What to withdraw, from where, and what to publish about it.

    Args:
        shards: Shard folders to search.
        derived: Keep-lists, latents and embeddings made from them.
        selection: The selectors.
        runs: Folder with checkpoints and releases to look through, or None.
        reason: Reason for the statement.
        date: Date of the statement, YYYY-MM-DD.
        key: Secret key that signs the statement, or None.
        salt: Salt of published hashes, or None.
    """

    shards: list[Path]
    derived: list[Path]
    selection: Selection
    runs: Path | None
    reason: str
    date: str
    key: Ed25519PrivateKey | None
    salt: bytes | None


def withdraw(wanted: Withdrawal, apply: bool, console: Console) -> None:
    """Search and show; with ``apply``, also take the samples out."""
    folders = [*wanted.shards, *wanted.derived]
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise UserError("a folder is given twice: give each once")
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(run_lock(beside(folder), folder))
        for folder in folders:
            if finish_withdrawal(folder):
                console.print(f"{folder}: completed the withdrawal of an interrupted run")
        found, totals = _find_all(wanted.shards, wanted.selection)
        sources = [Origin.of(folder, found[folder]) for folder in wanted.shards]
        origins = {folder: origin_of(folder, sources) for folder in wanted.derived}
        for folder, origin in origins.items():
            found[folder], totals[folder] = find(folder, origin.match)
        for folder, gone in found.items():
            _show(folder, gone, totals[folder], console)
        if not any(found.values()):
            console.print("nothing is withdrawn: no sample matches")
            return
        trained = _trained_models(found, wanted.runs)
        for model in trained["affected"] if wanted.runs else []:
            console.print(f"trained on it: {model['name']} (drawn: {model['drawn']})", markup=False)
        if apply:
            _apply(wanted, found, origins, trained, console)
        else:
            console.print("this was a dry run: nothing was changed; add --apply with --key or --unsigned")


def _find_all(folders: list[Path], selection: Selection) -> tuple[Found, dict[Path, int]]:
    """Search all folders; a link selected in one of them is selected in all, whatever its caption or image there."""
    found, totals = {}, {}
    for folder in folders:
        if is_keep_list(folder):
            raise UserError(f"{folder} is a keep-list: give its shards by --shards, and this folder by --derived")
        found[folder], totals[folder] = find(folder, lambda _, members: selection.match(members))
    uids = {uid for gone in found.values() for sample in gone if (uid := sample.record.get("uid"))}
    if len(folders) > 1 and uids:

        def match(_: str, members: dict[str, bytes]) -> list[str]:
            same = ["the same link"] if read_sample_json(members).get("uid") in uids else []
            return selection.match(members) or same

        for folder in folders:
            found[folder], totals[folder] = find(folder, match)
    return found, totals


def _show(folder: Path, gone: list[Withdrawn], total: int, console: Console) -> None:
    table = Table("key", "shard", "why", title=f"{folder}: {len(gone)} of {total} samples")
    for sample in gone[:SHOWN]:
        table.add_row(sample.key, f"{sample.folder}/{sample.shard}".lstrip("/"), "; ".join(sample.reasons))
    if len(gone) > SHOWN:
        table.add_row("...", "", f"and {len(gone) - SHOWN} more")
    console.print(table)


def _trained_models(found: Found, runs: Path | None) -> dict[str, Any]:
    """Return the part of the statement about models trained on the samples."""
    if runs is None:
        return {"looked_at": None, "affected": "not looked for: no --runs was given"}
    from data_tools.withdrawal.affected_models import (  # imports torch, which nothing else here needs
        Position,
        affected,
        models_below,
    )

    positions, earlier = [], set()
    for folder, gone in found.items():
        if gone:
            earlier |= set(earlier_roots(folder))
        for name, part in shard_folders(folder):
            numbers = {entry.shard: number for number, entry in enumerate(part.shards)}
            positions += [
                Position(part.merkle_root, part.path, numbers[sample.shard], sample.row)
                for sample in gone
                if sample.folder == name
            ]
    models, unreadable = models_below(runs)
    return {
        "looked_at": len(models),
        "unreadable": unreadable,
        "affected": affected(models, positions, earlier),
        "note": "a training with max_broken above 0 may have drawn a sample in place of a broken one, too",
    }


def _apply(
    wanted: Withdrawal, found: Found, origins: dict[Path, Origin], trained: dict[str, Any], console: Console
) -> None:
    """Stage all folders, write and sign the statement, and exchange the folders."""
    touched = [
        folder for folder, gone in found.items() if gone or (folder in origins and origins[folder].changes(folder))
    ]
    number = 1 + max(len(list((folder / STATEMENTS).glob("*.json"))) for folder in touched)
    changes: dict[Path, list[dict[str, Any]]] = {}
    for folder in touched:
        if is_keep_list(folder):
            changes[folder] = [stage_keep_list(folder, origins[folder], wanted.salt)]
        else:
            changes[folder] = [change.public() for change in stage(folder, found[folder], wanted.salt)]
    all_changes = [change for steps in changes.values() for change in steps]
    content = statement(all_changes, found, wanted.selection, trained, wanted.reason, wanted.date, number, wanted.salt)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"{number:04d}.json"
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        if wanted.key is not None:
            sign_file(file, wanted.key)
        for folder in touched:
            add_evidence(folder, tombstones(found[folder], number, wanted.salt), file)
    for folder in wanted.shards:
        lists = _write_blocklists(folder, found[folder], wanted.selection)
        console.print(f"blocklists against fetching them again: {lists}", markup=False)
    commit(touched)
    for folder in touched:
        search = folder.with_name(folder.name + ".search")
        if search.exists():
            shutil.rmtree(search)
            console.print(f"{search} listed the samples and was deleted: build it again with sample_search.py")
        roots = " ".join(change["merkle_root_after"] for change in changes[folder])
        console.print(f"{folder}: {len(found[folder])} samples withdrawn, Merkle root now {roots}", markup=False)
        for left in [*_remnants(folder), *_remnants_of_others(folder, found[folder])]:
            console.print(f"not changed, may still hold the samples: {left}", markup=False)
    console.print(f"statement: {touched[0] / STATEMENTS / f'{number:04d}.json'}", markup=False)


def _write_blocklists(folder: Path, gone: list[Withdrawn], selection: Selection) -> Path:
    """Add address hashes, domains and image hashes to the lists that programs read (links/withdrawn_lists.py)."""
    lists = folder.with_name(folder.name + SUFFIX)
    lists.mkdir(exist_ok=True)
    remove_leftovers(lists)
    # A relative file name would block every image of that name.
    urls = {url for sample in gone if (url := str(sample.record.get("url") or "")) and not url.startswith("file:")}
    lines = {
        URLS: {line for url in urls for line in blocked_digests(url)},
        DOMAINS: {selector.wanted for selector in selection.selectors if selector.kind == "domain"},
        DIGESTS: {str(digest) for sample in gone for digest in (sample.record.get("sha256"), sample.stored) if digest},
        PDQ: {str(code) for sample in gone if (code := sample.record.get("pdq"))},
    }
    for name, new in lines.items():
        old = set((lists / name).read_text("utf-8").split()) if (lists / name).is_file() else set()
        if new - old:
            write_text(lists / name, "".join(f"{line}\n" for line in sorted(old | new)))
    return lists


def _remnants(folder: Path) -> Iterator[Path]:
    """Yield what lies beside a folder and may still hold the samples."""
    for suffix in (".work", ".source", ".partial", ".failed-ledger.parquet", ".search"):
        if (path := folder.with_name(folder.name + suffix)).exists():
            yield path


def _remnants_of_others(folder: Path, gone: list[Withdrawn]) -> Iterator[str]:
    """Yield tars of others that a folder only refers to, and tables of img2dataset, which still hold the samples."""
    for name, part in shard_folders(folder) if not is_keep_list(folder) else ():
        addresses = {entry.shard: part.address(entry) for entry in part.stored}
        for shard in sorted({sample.shard for sample in gone if sample.folder == name}):
            address = addresses.get(shard, f"{part.location}/{shard}")
            if part.places is not None:
                yield address
            table = f"{address.removesuffix('.tar')}.parquet"
            if "://" not in table and Path(table).is_file():
                yield table

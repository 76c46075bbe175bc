"""Take samples out of shard folders, with proof: by address, domain, digest, picture or caption.

    python data_tools/withdraw_samples.py --shards vetted --domain museum.example
    python data_tools/withdraw_samples.py --shards vetted --derived latents --runs runs --image portrait.jpg
        --caption "Jane Doe at the lake" --match contains --reason "GDPR art. 17" --key lab.pem --apply

Without --apply it only says what would go. With it, the shards that hold the samples are written again and the folder
is exchanged as a whole (killed at any moment, the same command goes on); folders that were made from it (--derived:
keep-lists, latents, embeddings) lose the same samples. Each folder then holds ``tombstones.jsonl`` (hashes, nothing of
the content) and ``withdrawals/NNNN.json``, the statement: Merkle roots and manifests before and after, and which
checkpoints and releases below --runs were trained on the samples; beside it its signature
(data_tools/signed_statement.py). Lists that keep the samples from coming back lie in SHARDS.blocklists; downloads into
SHARDS follow them, screen_links and vet_shards take them by --block-urls, --block-domains and the rule HashLists. The
statement is checked by anyone:

    python data_tools/withdraw_samples.py --shards vetted --verify vetted/withdrawals/0001.json --public-key lab.pem.pub
"""

import argparse
import json
import os
import shutil
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.table import Table

from data_tools.signed_statement import read_private_key, sign_file
from data_tools.withdrawal.derived_withdrawal import Origin, find, is_keep_list, origin_of, stage_keep_list
from data_tools.withdrawal.sample_selector import CAPTION_MATCHES, RADIUS, Selection, Selector, blocked_digests, veil
from data_tools.withdrawal.shard_withdrawal import (
    STATEMENTS,
    Withdrawn,
    add_evidence,
    commit,
    earlier_roots,
    finish_withdrawal,
    lock_folder,
    shard_folders,
    stage,
)
from data_tools.withdrawal.withdrawal_statement import statement, tombstones, verify_statement
from leam_mm.errors import UserError, run


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--shards", type=Path, action="append", required=True, help="folder to search; may be repeated")
    add(
        "--derived",
        type=Path,
        action="append",
        default=[],
        help="keep-list, latents or embeddings made from it; may be repeated",
    )
    for kind, text in (
        ("url", "address of the picture"),
        ("domain", "of picture or page, with all below it"),
        ("sha256", "of the picture's file"),
        ("uid", "of the link, as ledgers name it"),
        ("image", "picture file: its copies, also re-encoded, resized, mirrored or turned"),
        ("caption", "text; see --match"),
    ):
        add(f"--{kind}", action="append", default=[], help=f"{text}; may be repeated")
    add("--radius", type=int, default=RADIUS, help="bits of 256 in which copies may differ, for --image (%(default)s)")
    add("--match", choices=CAPTION_MATCHES, default="normalised", help="of --caption (%(default)s)")
    add("--runs", type=Path, help="folder below which checkpoints and releases are looked through")
    add("--apply", action="store_true", help="do it; without, only say what would go")
    add("--key", type=Path, help="secret key to sign the statement with; see data_tools/signed_statement.py")
    add("--unsigned", action="store_true", help="apply without a signature")
    add("--salt", type=Path, help="file of secret bytes: published hashes cannot be tried against guesses")
    add("--reason", default="not stated", help="stands in the statement (%(default)s)")
    add("--date", default="", help="of the statement, YYYY-MM-DD (today)")
    add("--verify", type=Path, metavar="STATEMENT", help="check a statement against --shards instead")
    add("--public-key", type=Path, help="of the signature, for --verify")
    settings = parser.parse_args(args)
    if settings.verify and not settings.public_key:
        raise UserError("--public-key is missing: the key must come from elsewhere than the statement")
    if settings.apply and bool(settings.key) == settings.unsigned:
        raise UserError("--apply needs --key to sign the statement, or --unsigned")
    try:
        settings.date = str(date.fromisoformat(settings.date)) if settings.date else str(datetime.now(UTC).date())
    except ValueError:
        raise UserError(f"--date is {settings.date!r}: write it as YYYY-MM-DD") from None
    return settings


def selection_of(settings: argparse.Namespace) -> Selection:
    """All selectors of the command line."""
    kinds = ("url", "domain", "sha256", "uid", "image", "caption")
    return Selection(
        Selector(kind, value, settings.radius, settings.match) for kind in kinds for value in getattr(settings, kind)
    )


def write_blocklists(folder: Path, gone: list[Withdrawn], selection: Selection) -> Path:
    """Add to the lists that screen_links and vet_shards read: address and picture hashes, and domains, one a line."""
    place = folder.with_name(folder.name + ".blocklists")
    place.mkdir(exist_ok=True)
    # A relative file name would block every picture that is called the same.
    urls = {url for sample in gone if (url := str(sample.record.get("url") or "")) and not url.startswith("file:")}
    lines = {
        # A relative file name would block every picture that is called the same.
        "url_sha256.txt": {
            line for url in urls if url and not url.startswith("file:") for line in blocked_digests(url)
        },
        "domains.txt": {selector.wanted for selector in selection.selectors if selector.kind == "domain"},
        "withdrawn.sha256": {str(digest) for sample in gone if (digest := sample.record.get("sha256"))},
        "withdrawn.pdq": {str(code) for sample in gone if (code := sample.record.get("pdq"))},
    }
    for name, new in lines.items():
        path = place / name
        old = set(path.read_text("utf-8").split()) if path.is_file() else set()
        if new - old:
            temporary = path.with_name(f"{name}.tmp-{os.getpid()}")
            temporary.write_text("".join(f"{line}\n" for line in sorted(old | new)), encoding="utf-8")
            os.replace(temporary, path)
    return place


def remnants(folder: Path) -> list[str]:
    """What lies beside a folder and may still hold the samples."""
    names = (".work", ".source", ".partial", ".failed-ledger.parquet", ".search")
    return [folder.name + name for name in names if folder.with_name(folder.name + name).exists()]


def show(found: dict[Path, list[Withdrawn]], totals: dict[Path, int], console: Console) -> None:
    """Print what would go; at most twenty samples of each folder."""
    for folder, gone in found.items():
        table = Table("key", "shard", "why", title=f"{folder}: {len(gone)} of {totals[folder]} samples")
        for sample in gone[:20]:
            table.add_row(sample.key, f"{sample.folder}/{sample.shard}".lstrip("/"), "; ".join(sample.reasons))
        if len(gone) > 20:
            table.add_row("...", "", f"and {len(gone) - 20} more")
        console.print(table)


def models(found: dict[Path, list[Withdrawn]], runs: Path | None) -> dict[str, Any]:
    """The part of the statement on trainings."""
    if runs is None:
        return {"looked_at": None, "affected": "not looked for: no --runs was given"}
    from data_tools.withdrawal.affected_models import (  # imports torch, which nothing else here needs
        Place,
        affected,
        models_below,
    )

    places, earlier = [], set()
    for folder, gone in found.items():
        if gone:
            earlier |= set(earlier_roots(folder))
        for name, part in shard_folders(folder):
            numbers = {entry.shard: number for number, entry in enumerate(part.shards)}
            places += [
                Place(part.merkle_root, part.path, numbers[sample.shard], sample.row)
                for sample in gone
                if sample.folder == name
            ]
    known, unreadable = models_below(runs)
    return {
        "looked_at": len(known),
        "unreadable": unreadable,
        "affected": affected(known, places, earlier),
        "note": "a training with max_broken above 0 may have drawn a sample in place of a broken one, too",
    }


def withdraw(settings: argparse.Namespace, console: Console) -> None:
    """Find, show and, with --apply, take out."""
    selection, salt = selection_of(settings), read_salt(settings.salt)
    folders = [*settings.shards, *settings.derived]
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise UserError("a folder is named twice: name each once")
    key = read_private_key(settings.key) if settings.key else None
    locks = [lock_folder(folder) for folder in folders]
    try:
        for folder in folders:
            if finish_withdrawal(folder):
                console.print(f"{folder}: completed the withdrawal of an interrupted run")
        found, totals = find_all(settings.shards, selection)
        sources = [Origin.of(folder, found[folder]) for folder in settings.shards]
        derived = {folder: origin_of(folder, sources) for folder in settings.derived}
        for folder, origin in derived.items():
            found[folder], totals[folder] = find(folder, origin.match)
        show(found, totals, console)
        if not any(found.values()):
            console.print("nothing is withdrawn: no sample fits")
            return
        trained = models(found, settings.runs)
        for model in trained["affected"] if settings.runs else []:
            console.print(f"trained on it: {model['name']} (drawn: {model['drawn']})", markup=False)
        if not settings.apply:
            console.print("this was a dry run: nothing was changed; add --apply with --key or --unsigned")
            return
        apply(found, derived, trained, selection, settings, salt, key, console)
    finally:
        for lock in locks:
            lock.close()


def find_all(folders: list[Path], selection: Selection) -> tuple[dict[Path, list[Withdrawn]], dict[Path, int]]:
    """Search all folders; a link found in one of them goes from all, under whatever caption or face blur it stands."""
    found, totals = {}, {}
    for folder in folders:
        if is_keep_list(folder):
            raise UserError(f"{folder} is a keep-list: name its shards by --shards, and this folder by --derived")
        found[folder], totals[folder] = find(folder, lambda _, members: selection.match(members))
    uids = {uid for gone in found.values() for sample in gone if (uid := sample.record.get("uid"))}
    if len(folders) > 1 and uids:

        def match(_: str, members: dict[str, bytes]) -> list[str]:
            same = ["the same link"] if json.loads(members["json"]).get("uid") in uids else []
            return selection.match(members) or same

        for folder in folders:
            found[folder], totals[folder] = find(folder, match)
    return found, totals


def apply(
    found: dict[Path, list[Withdrawn]],
    derived: dict[Path, Origin],
    trained: dict[str, Any],
    selection: Selection,
    settings: argparse.Namespace,
    salt: bytes | None,
    key: Ed25519PrivateKey | None,
    console: Console,
) -> None:
    """Stage all folders, write and sign the statement, and exchange the folders."""
    touched = [
        folder for folder, gone in found.items() if gone or (folder in derived and derived[folder].changes(folder))
    ]
    number = 1 + max(len(list((folder / STATEMENTS).glob("*.json"))) for folder in touched)
    changes: dict[Path, list[dict[str, Any]]] = {}
    for folder in touched:
        if is_keep_list(folder):
            changes[folder] = [stage_keep_list(folder, derived[folder], found[folder], lambda value: veil(value, salt))]
        else:
            steps = stage(folder, found[folder], lambda value: veil(value, salt))
            changes[folder] = [step.public() for step in steps]
    said = [step for steps in changes.values() for step in steps]
    content = statement(said, found, selection, trained, settings.reason, settings.date, number, salt)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / f"{number:04d}.json"
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        if key is not None:
            sign_file(file, key)
        for folder in touched:
            add_evidence(folder, tombstones(found[folder], number, salt), file)
    for folder in settings.shards:
        place = write_blocklists(folder, found[folder], selection)
        console.print(f"against coming back: {place}", markup=False)
    commit(touched)
    for folder in touched:
        search = folder.with_name(folder.name + ".search")
        if search.exists():
            shutil.rmtree(search)
            console.print(f"{search} named the samples and is gone: build it again with data_tools/sample_search.py")
        roots = " ".join(step["merkle_root_after"] for step in changes[folder])
        console.print(f"{folder}: {len(found[folder])} samples withdrawn, Merkle root now {roots}", markup=False)
        for left in remnants(folder):
            console.print(f"not touched, may still hold them: {folder.with_name(left)}", markup=False)
    console.print(f"statement: {touched[0] / STATEMENTS / f'{number:04d}.json'}", markup=False)


def read_salt(path: Path | None) -> bytes | None:
    """The secret bytes of --salt."""
    if path is None:
        return None
    try:
        salt = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"--salt {path} cannot be read ({error.strerror}): make it with: head -c 32 /dev/urandom"
        ) from None
    if len(salt) < 16:
        raise UserError(f"--salt {path} has {len(salt)} bytes: 16 at least are needed to keep guesses out")
    return salt


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_arguments(args)
    if settings.verify:
        for line in verify_statement(settings.verify, settings.public_key, settings.shards):
            print(line)
        return
    withdraw(settings, Console(soft_wrap=True))


if __name__ == "__main__":
    run(main)

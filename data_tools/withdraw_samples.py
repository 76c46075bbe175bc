"""Take samples out of shard folders, with proof: by address, domain, digest, image or caption.

    python data_tools/withdraw_samples.py --shards vetted --domain museum.example
    python data_tools/withdraw_samples.py --shards vetted --derived latents --runs runs --image portrait.jpg
        --caption "Jane Doe at the lake" --match contains --reason "GDPR art. 17" --key lab.pem --apply

Without --apply this is a dry run. With it, the shards that hold the samples are rewritten and the folder is exchanged
as a whole; if the program is killed, the same command completes the withdrawal. Folders made from it (--derived:
keep-lists, latents, embeddings) lose the same samples. Each folder then holds ``tombstones.jsonl`` (hashes, no
content) and the statement ``withdrawals/NNNN.json``: Merkle roots and manifests before and after, and which checkpoints
and releases below --runs were trained on the samples. Its signature lies beside it (data_tools/signed_statement.py).

SHARDS.blocklists keeps the samples from coming back: download_shards, gather_folder and vet_shards read the lists of
all shards beside their output; screen_links takes them by --block-urls and --block-domains. Anyone can verify the
statement:

    python data_tools/withdraw_samples.py --shards vetted --verify vetted/withdrawals/0001.json --public-key lab.pem.pub
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console

from data_tools.withdrawal.sample_selector import KINDS, LARGEST_RADIUS, RADIUS, Selection, Selector
from data_tools.withdrawal.withdrawal_run import Withdrawal, withdraw
from data_tools.withdrawal.withdrawal_statement import verify_statement
from data_tools.work.signature import read_private_key
from leam_mm.command_line import Range, parse_settings
from leam_mm.errors import UserError, run

LEAST_SALT = 16  # bytes


@dataclass
class Settings:
    """Settings of this program.

    Args:
        shards: Shard folder to search; may be repeated.
        derived: Keep-list, latents or embeddings made from it; may be repeated.
        url: Address of the image; may be repeated.
        domain: Domain of the image or page, including its subdomains; may be repeated.
        sha256: Digest of the image file; may be repeated.
        uid: Identifier of the link in ledgers; may be repeated.
        image: Image file; finds its copies, also re-encoded, resized, mirrored or rotated. May be repeated.
        caption: Text, see --match; may be repeated.
        radius: Bits of 256 in which copies may differ, for --image. Above 60, unrelated images match.
        match: How --caption is compared.
        runs: Folder below which checkpoints and releases are looked through.
        apply: Withdraw the samples; without it, only show what would be withdrawn.
        key: Secret key that signs the statement, see data_tools/signed_statement.py.
        unsigned: Apply without a signature.
        salt: File of secret bytes; published hashes can then not be guessed.
        reason: Reason for the statement.
        date: Date of the statement, YYYY-MM-DD; by default today.
        verify: Statement to check against --shards, instead of a withdrawal.
        public_key: Public key of the signature, for --verify.
    """

    shards: list[Path]
    derived: list[Path] = field(default_factory=list)
    url: list[str] = field(default_factory=list)
    domain: list[str] = field(default_factory=list)
    sha256: list[str] = field(default_factory=list)
    uid: list[str] = field(default_factory=list)
    image: list[str] = field(default_factory=list)
    caption: list[str] = field(default_factory=list)
    radius: Annotated[int, Range(least=0, most=LARGEST_RADIUS)] = RADIUS
    match: Literal["exact", "normalised", "contains"] = "normalised"
    runs: Path | None = None
    apply: bool = False
    key: Path | None = None
    unsigned: bool = False
    salt: Path | None = None
    reason: str = "not stated"
    date: str = ""
    verify: Path | None = None
    public_key: Path | None = None


def parse_date(text: str) -> str:
    """Return a date as YYYY-MM-DD; today if the text is empty."""
    try:
        return str(date.fromisoformat(text)) if text else str(datetime.now(UTC).date())
    except ValueError:
        raise UserError(f"--date is {text!r}: write it as YYYY-MM-DD") from None


def read_salt(path: Path | None) -> bytes | None:
    """Read the secret bytes of --salt."""
    if path is None:
        return None
    try:
        salt = path.read_bytes()
    except OSError as error:
        raise UserError(f"--salt {path} cannot be read ({error.strerror}): give a file of random bytes") from None
    if len(salt) < LEAST_SALT:
        raise UserError(f"--salt {path} has {len(salt)} bytes: give at least {LEAST_SALT}, else hashes can be guessed")
    return salt


def main(args: list[str] | None = None) -> None:
    """Verify a statement, or search for samples and withdraw them."""
    settings = parse_settings(Settings, __doc__, args)
    if settings.verify:
        if not settings.public_key:
            raise UserError("--public-key is missing: get it independently of the statement")
        for line in verify_statement(settings.verify, settings.public_key, settings.shards):
            print(line)
        return
    if settings.apply and bool(settings.key) == settings.unsigned:
        raise UserError("--apply needs --key to sign the statement, or --unsigned")
    selection = Selection(
        Selector(kind, value, settings.radius, settings.match) for kind in KINDS for value in getattr(settings, kind)
    )
    key = read_private_key(settings.key) if settings.key else None
    day, salt = parse_date(settings.date), read_salt(settings.salt)
    wanted = Withdrawal(settings.shards, settings.derived, selection, settings.runs, settings.reason, day, key, salt)
    withdraw(wanted, settings.apply, Console(soft_wrap=True))


if __name__ == "__main__":
    run(main)

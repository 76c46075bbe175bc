"""Publish a release: on a hub, on any storage, or as a static mirror: ``release publish``."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from leam_mm.release.publication import Publication, prepare
from leam_mm.release.verify_command import show
from leam_mm.release.verify_release import verify_release


@dataclass(frozen=True)
class PublishOptions:
    """Publish a release as a version, which is never changed afterwards. A release with faults is refused.

    Args:
        folder: The release folder.
        to: hf://owner/name, a folder of a static mirror, or any address that fsspec writes to, such as s3://bucket/models.
        version: Name of the version, such as 1.0.0; by default that of release.yaml, else 12 digits of own_sha256.
        public_key: Public key (PEM, ES256) with which the signature is checked before.
        keep_latest: Leave the latest version as it is.
        public: Make a repository that is created on a hub public; by default it is private.
        dry_run: Only print what would be uploaded.
    """

    folder: Path
    to: str
    version: str | None = None
    public_key: Path | None = None
    keep_latest: bool = False
    public: bool = False
    dry_run: bool = False


def publish(options: PublishOptions) -> int:
    """Check a release, publish it and return the exit code."""
    console = Console(markup=False, highlight=False, soft_wrap=True)
    from leam_mm.release.publish_folder import PublishedFolder, open_folder  # a second of imports
    from leam_mm.release.publish_hub import SCHEME, HubRepository, open_repository

    on_hub = options.to.startswith(SCHEME)
    target: HubRepository | PublishedFolder
    target = open_repository(options.to, not options.public) if on_hub else open_folder(options.to)
    found = verify_release(options.folder, options.public_key)  # reads every byte: a published version is final
    show(found, options.folder, console)
    if found.faults:
        console.print("not published: build the release again")
        return 1
    release = prepare(options.folder, found, options.version, not options.keep_latest)
    state = target.state(release)
    if options.dry_run:
        _plan(release, target.address, state, console)
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("upload", total=sum(release.sizes.values()), visible=not on_hub)
        target.publish(release, lambda _, size: bar.advance(task, size))
    words = {"new": "published", "continues": "continued and published", "complete": "was published already:"}[state]
    console.print(f"{words} {release.name} {release.version} at {target.address}")
    if release.latest:
        console.print(f"latest is {release.version}")
    return 0


def _plan(release: Publication, address: str, state: str, console: Console) -> None:
    for name in release.names:
        console.print(f"{release.sizes[name]:>14,}  {name}")
    words = {"new": "would be published", "continues": "would be continued", "complete": "is published already"}[state]
    total = f"{len(release.names)} files, {sum(release.sizes.values()):,} bytes"
    console.print(f"{release.name} {release.version} {words} at {address}: {total}; nothing was sent")

"""Verify a shard folder: digests, indexes, images, and the JSON of every sample.

    python data_tools/check_shards.py shards/train
    python data_tools/check_shards.py shards/train --contains portrait.jpg

Exit code 0: sound. 1: damaged, with one line for each fault. 2: not a shard folder.
--fast does not decode images. For a folder with a keep-list, the list and all of the shards it names are verified.
--contains: does the folder hold this image? Exit code 0: yes. 1: no.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_tools.samples.shard_check import Finding, bucket_folders, check_folder, keep_list_faults
from leam_mm.command_line import parse_settings
from leam_mm.data.shard_index import ShardFolder
from leam_mm.errors import run

LONGEST_LIST = 30  # values of one kind in the report


@dataclass
class Settings:
    """Settings of this program.

    Args:
        folder: Folder of final shards (images or latents).
        fast: Check digests and JSON only, decode no image.
        contains: Image file, URL or SHA-256; say whether the folder holds this image instead of checking it. See
            data_tools/sample_search.py.
    """

    folder: Path
    fast: bool = False
    contains: str | None = None


def print_report(folder: ShardFolder, finding: Finding, console: Console) -> None:
    """Print counts, and the Merkle root that names the data set."""
    table = Table("what", "which", "count", title=str(folder.path))
    table.add_row("samples", f"in {len(folder.shards)} shards", f"{finding.samples:,}")
    table.add_row("bytes", "of tar", f"{sum(entry.bytes for entry in folder.shards):,}")
    if finding.latents:
        table.add_row("latents", "", f"{finding.latents:,}")
    for name, counter in (("captions", finding.languages), ("licence", finding.licences), ("size", finding.sizes)):
        for value, count in counter.most_common(LONGEST_LIST):
            table.add_row(name, value, f"{count:,}")
        if len(counter) > LONGEST_LIST:
            rest = sum(sorted(counter.values())[:-LONGEST_LIST])
            table.add_row(name, f"and {len(counter) - LONGEST_LIST} more", f"{rest:,}")
    console.print(table)
    console.print(f"Merkle root {folder.merkle_root}")


def main(args: list[str] | None = None) -> None:
    """Check a folder, print the report, and exit with 1 if something is broken."""
    settings = parse_settings(Settings, __doc__, args, positional=("folder",))
    if settings.contains is not None:
        from data_tools.withdrawal.sample_lookup import folder_contains  # needs the library of perceptual hashes

        if not folder_contains(settings.folder, settings.contains):
            raise SystemExit(1)
        return
    faults = []
    for path in bucket_folders(settings.folder):
        listed = ShardFolder(path)
        folder, finding = check_folder(Path(listed.location), decode=not settings.fast)
        if listed.keeps:
            finding.faults += keep_list_faults(listed)
            print(f"{path}: {listed.samples:,} of {folder.samples:,} samples are kept; as {listed.merkle_root}")
        print_report(folder, finding, Console(soft_wrap=True))
        faults += finding.faults
    for fault in faults:
        print(f"broken: {fault}")
    if faults:
        print(f"{len(faults)} faults: copy or build these shards again")
        raise SystemExit(1)
    print("sound" if not settings.fast else "sound (images were not decoded)")


if __name__ == "__main__":
    run(main)

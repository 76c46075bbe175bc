"""Search a data set for an image, digest, address, domain or caption; an index answers in less than a second.

    python data_tools/sample_search.py build --shards shards --ledger screened/ledger.parquet
    python data_tools/sample_search.py ask --index shards.search --image portrait.jpg
    python data_tools/sample_search.py ask --index shards.search --domain museum.example --limit 50
    python data_tools/check_shards.py shards --contains portrait.jpg

An image is found by the digest of its file and by its PDQ hash, up to --radius bits of 256: this finds re-encoded,
resized, mirrored and rotated copies. Captions are compared without case and amount of white space. The index holds the
samples of the shards; with --ledger also the links that were dropped, and why. Exit code 0: found. 1: not found. 2: the
question could not be answered.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_tools.withdrawal.sample_lookup import SHOWN, build_index, index_folder, look_up, print_answer
from data_tools.withdrawal.sample_selector import LARGEST_RADIUS, RADIUS
from data_tools.withdrawal.search_index import SearchIndex
from leam_mm.command_line import NonNegativeInt, Range, parse_commands
from leam_mm.errors import UserError, run


@dataclass
class Build:
    """Write the index.

    Args:
        shards: Shard folder; may be repeated.
        ledger: Ledger of links; the index then lists those that were dropped. May be repeated.
        output: Folder of the index; by default the first of the shard folders with .search added.
    """

    shards: list[Path]
    ledger: list[Path] = field(default_factory=list)
    output: Path | None = None


@dataclass
class Ask:
    """Look one thing up: an image, sha256, url, domain or caption.

    Args:
        index: Folder that build wrote.
        image: Image file.
        sha256: Digest of an image file.
        url: Address of an image.
        domain: Domain of an image or page, including its subdomains.
        caption: Text of a caption.
        radius: Bits of 256 in which PDQ hashes may differ, for --image. Above 60, unrelated images match.
        limit: Rows to print.
    """

    index: Path
    image: str | None = None
    sha256: str | None = None
    url: str | None = None
    domain: str | None = None
    caption: str | None = None
    radius: Annotated[int, Range(least=0, most=LARGEST_RADIUS)] = RADIUS
    limit: NonNegativeInt = SHOWN


def main(args: list[str] | None = None) -> None:
    """Run the program."""
    settings = parse_commands({"build": Build, "ask": Ask}, __doc__, args)
    if isinstance(settings, Build):
        output = settings.output or index_folder(settings.shards[0])
        print(f"{output}: {build_index(settings.shards, settings.ledger, output):,} rows")
        return
    kinds = ("image", "sha256", "url", "domain", "caption")
    given = [(kind, getattr(settings, kind)) for kind in kinds if getattr(settings, kind) is not None]
    if len(given) != 1:
        raise UserError(f"{len(given)} questions are given: give one of --{', --'.join(kinds)}")
    index = SearchIndex(settings.index)
    answer = look_up(index, *given[0], settings.radius, settings.limit)
    print_answer(answer, index)
    if not answer.count:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)

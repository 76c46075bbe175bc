"""Command ``init``: write a release.yaml whose fields the publisher fills in."""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.documents.publisher_file import write_publisher


@dataclass(frozen=True)
class InitOptions:
    """Write a release.yaml with every field of the publisher open, its purpose and an example beside it.

    Args:
        output: File to write; an existing one is refused.
    """

    output: Path = Path("release.yaml")


def init(options: InitOptions) -> int:
    """Write the file."""
    write_publisher(options.output)
    print(f"wrote {options.output}: fill it in, and give it to 'build --publisher'")
    return 0

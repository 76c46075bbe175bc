"""Folders of images with classes: class sub-folders, and tars as clip-benchmark has them."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from toys.images import COLOURS, coloured_square

Samples = Sequence[Mapping[str, bytes]]


def write_class_folder(folder: Path, each: int = 4, first: int = 0) -> Path:
    """A sub-folder for each colour with `each` different squares of it."""
    for place, colour in enumerate(sorted(COLOURS)):
        (folder / colour).mkdir(parents=True)
        for number in range(each):
            image = coloured_square(colour, first + 1000 * place + number)
            (folder / colour / f"{number}.png").write_bytes(image)
    return folder


def write_tars(folder: Path, split: str, tars: Sequence[Samples]) -> Path:
    """One split of a clip-benchmark folder; each sample is a mapping of extensions to contents."""
    (folder / split).mkdir(parents=True)
    (folder / split / "nshards.txt").write_text(f"{len(tars)}\n")
    number = 0
    for name, samples in enumerate(tars):
        with tarfile.open(folder / split / f"{name}.tar", "w") as tar:
            for sample in samples:
                for extension, content in sample.items():
                    member = tarfile.TarInfo(f"s{number:07d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1
    return folder

"""Readers of tables that audits are given: labels of images, prompts, references."""

from collections.abc import Callable
from pathlib import Path

from fuzz.hunt import Reader
from leam_mm.audits.labelled_images import find_images, read_labels
from leam_mm.audits.prompt_table import read_prompts, read_reference

Read = Callable[[bytes], object]


def label_seeds(folder: Path) -> list[bytes]:
    """Return tables of labels."""
    return [b"file,age,group\na.png,3,x\nb/c.png,4,y\n", 'file,group\n"a\n.png",grün\n'.encode()]


def labels(folder: Path) -> Read:
    """Read a table of labels, and look for its images."""
    (folder / "images").mkdir()
    (folder / "images/a.png").write_bytes(b"")

    def read(data: bytes) -> None:
        (folder / "labels.csv").write_bytes(data)
        found = read_labels(folder / "labels.csv", "group")
        find_images(folder / "labels.csv", found, folder / "images", None)

    return read


def prompt_seeds(folder: Path) -> list[bytes]:
    """Return tables of prompts, and a reference."""
    return [b"languages: {en: {templates: ['a {}'], x: {p: q}}, de: {x: {p: r}}}\n", b"{woman: 51, man: 49.5}\n"]


def prompts(folder: Path) -> Read:
    """Read a table of prompts, or a reference."""

    def read(data: bytes) -> None:
        (folder / "table.yaml").write_bytes(data)
        if b"languages" in data:
            read_prompts(folder / "table.yaml", "x", ["en", "de"])
        else:
            read_reference(folder / "table.yaml")

    return read


READERS = [
    Reader("labels", label_seeds, labels, words=(b'"', b"../", b"\x00", b"\r", b",", b"group")),
    Reader("prompt_table", prompt_seeds, prompts, words=(b"&a ", b"*a", b"<<: ", b"!!python/name:os.x", b"{}", b"? ")),
]

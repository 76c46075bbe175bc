"""Images with a label that people gave them, from a csv and a folder, or from a csv and shards.

Labels are perceived attributes of persons. They stay in memory: audits write sums over groups, never a label, a name or
an embedding of an image.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor

from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import read_image_samples

MAX_BYTES = 1 << 30
MAX_ROWS = 10_000_000
MAX_LABELS = 200
NAMES = ("file", "key", "image")


@dataclass(frozen=True)
class LabelledImage:
    """One image with its label; `pixels` decodes it when it is needed.

    Args:
        key: Name of the image.
        label: What people perceive.
        source: Its file, or a sample of a shard.
    """

    key: str
    label: str
    source: Any

    def pixels(self, size: int) -> Tensor:
        """Decode to (3, size, size) uint8, as in training but without augmentation.

        Raises:
            UserError: The file is not an image, or has too many pixels.
        """
        if not isinstance(self.source, Path):
            return self.source.pixels(size)
        try:
            return ImageDecoding(size)(self.source.read_bytes(), numpy.random.default_rng(0))
        except OSError as error:
            raise UserError(f"{self.source}: cannot be read ({error.strerror}); check the folder") from None
        except UserError as error:
            raise UserError(f"{self.source}: {error}") from None


def read_labels(table: Path, column: str) -> dict[str, str]:
    """Return the label of each image of a csv with the columns `file` or `key`, and one of labels.

    Args:
        table: UTF-8, with a header.
        column: Name of the column of labels.

    Raises:
        UserError: The file is not such a table.
    """
    try:
        if table.stat().st_size > MAX_BYTES:
            raise UserError(f"{table} is larger than {MAX_BYTES} bytes: split it")
        with open(table, encoding="utf-8-sig", newline="") as file:
            return _rows(table, csv.DictReader(file, strict=True), column)
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); give the path of a csv") from None
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{table} is no csv in UTF-8 ({error}); write it again") from None


def _rows(table: Path, reader: "csv.DictReader[str]", column: str) -> dict[str, str]:
    columns = list(reader.fieldnames or [])
    name = next((name for name in NAMES if name in columns), None)
    if name is None or column not in columns:
        raise UserError(
            f"{table} has the columns {', '.join(columns)[:200] or 'none'}: it needs {' or '.join(NAMES)}, and {column}"
        )
    labels: dict[str, str] = {}
    for number, row in enumerate(reader, start=2):
        key, label = (row[name] or "").strip(), (row[column] or "").strip()
        if not key or not label:
            raise UserError(f"{table}: line {number} has no {column if key else name}; fill it in, or drop the line")
        if key in labels:
            raise UserError(f"{table}: line {number} lists {key[:80]!r} a second time; keep one of them")
        labels[key] = label
        if len(labels) > MAX_ROWS:
            raise UserError(f"{table} has more than {MAX_ROWS} rows: split it")
    if len(set(labels.values())) > MAX_LABELS:
        raise UserError(f"{table}: {column} has more than {MAX_LABELS} values; give a column of labels")
    return labels


def find_images(table: Path, labels: dict[str, str], images: Path | None, shards: Path | None) -> list[LabelledImage]:
    """Return the images of a table in its order; rows without an image are left out.

    Args:
        table: Its path, for messages.
        labels: What `read_labels` returned.
        images: Folder that the names are relative to; None looks for keys of samples.
        shards: Shard folder of the samples.

    Raises:
        UserError: No row names an image, or a name leads out of the folder.
    """
    found = list(_in_folder(table, labels, images) if images is not None else _in_shards(labels, shards))
    if not found:
        raise UserError(
            f"{table}: none of its {len(labels)} rows names an image of {images or shards}: check the names"
        )
    return found


def _in_folder(table: Path, labels: dict[str, str], images: Path) -> Iterable[LabelledImage]:
    root = images.resolve()
    for key, label in labels.items():
        try:
            file = (root / key).resolve()
            found = file.is_file()
        except (OSError, ValueError):  # longer than a name may be, or with a null byte: no file has it
            continue
        if not file.is_relative_to(root):
            raise UserError(f"{table}: {key[:80]!r} leads out of {images}; give names inside it")
        if found:
            yield LabelledImage(key, label, file)


def _in_shards(labels: dict[str, str], shards: Path | None) -> Iterable[LabelledImage]:
    if shards is None:
        raise UserError("labels by key need the shards of the samples: add --held_out, or set `images` to a folder")
    for sample in read_image_samples(shards):
        if sample.key in labels:
            yield LabelledImage(sample.key, labels[sample.key], sample)

"""Folders of tars as clip-benchmark 1.6.2 reads them (its ``--dataset wds/NAME``).

| file | holds |
|---|---|
| SPLIT/nshards.txt | number of tars |
| SPLIT/0.tar, SPLIT/1.tar, ... | KEY.jpg (jpeg, png, webp) with KEY.cls (class number) or KEY.txt (a caption a line) |
| classnames.txt | class names, one a line |
| zeroshot_classification_templates.txt | templates with {c} in place of the name, one a line |
| dataset_type.txt | `retrieval` for captions, `multilabel` (not supported here); absent for classes |
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leam_mm.data.image_limits import MEMBER_EXTENSIONS
from leam_mm.data.shard_manifest import BLOCK
from leam_mm.errors import UserError
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.stored_image import StoredImage

SHARDS, NAMES, TEMPLATES, TYPE = (
    *("nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"),
)
MAX_SHARDS, MAX_TEXT = 1_000_000, 1 << 20  # tars; bytes of a label or of captions


def read_texts(file: Path) -> list[str] | None:
    """Return the lines of one of the text files; None if it is absent.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if file.stat().st_size > 16 * MAX_TEXT:
            raise UserError(f"{file} has more than {16 * MAX_TEXT} bytes: replace it")
        return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): give a text file in UTF-8") from None


def read_templates(folder: Path) -> list[str] | None:
    """Return the folder's templates with {} in place of the name; None if it has none."""
    lines = read_texts(folder / TEMPLATES)
    return [line.replace("{c}", "{}") for line in lines if line] if lines else None


def read_samples(
    folder: Path, split: str, preparation: ImagePreparation, language: str
) -> tuple[list[str], list[StoredImage]]:
    """Return classes and images of one split; images are not decoded.

    Args:
        folder: The folder with classnames.txt.
        split: Name of the split.
        preparation: How images become pixels.
        language: Language of the captions.

    Returns:
        Class ids "0", "1", ... as many as there are names, or as labels that occur; empty for captions alone. And the
        images in order, with their `class_id`, their captions, or both.

    Raises:
        UserError: A file is missing or damaged, or a label is out of range.
    """
    kind = (read_texts(folder / TYPE) or ["classification"])[:1]
    if kind == ["multilabel"]:
        raise UserError(f"{folder / TYPE} says multilabel, which is not supported: give images of one class each")
    names, samples = read_texts(folder / NAMES), []
    for number in range(_shards(folder / split)):
        file = folder / split / f"{number}.tar"
        for key, members in _samples(file):
            record: dict[str, Any] = {}
            if "cls" in members:
                record["metadata"] = {"class_id": _label(_text(file, *members["cls"]), names, f"{key} in {file}")}
            if "txt" in members:
                lines = _text(file, *members["txt"]).splitlines()
                record["captions"] = [{"text": line, "language": language} for line in lines]
            image = next((members[extension] for extension in MEMBER_EXTENSIONS if extension in members), None)
            if image is None or not record:
                raise UserError(f"{key} in {file} lacks an image or its .cls or .txt: write the folder again")
            samples.append(StoredImage(key, b"", record, file, *image, preparation))
    labels = {str(sample.class_id) for sample in samples if sample.class_id is not None}
    if not labels:
        return [], samples
    return [str(number) for number in range(len(names))] if names else sorted(labels, key=int), samples


def _shards(folder: Path) -> int:
    text = (read_texts(folder / SHARDS) or [""])[0]
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or not 0 < int(text) <= MAX_SHARDS:
        raise UserError(f"{folder / SHARDS} is {text[:40]!r}: write the number of tars into it")
    return int(text)


def _samples(file: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Yield key, and offset and size by extension, of each sample of a tar; its members lie together."""
    key, members = "", dict[str, tuple[int, int]]()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.size < 0:  # of which tarfile reads the same header again and again
                    raise ValueError(f"a member of {member.size} bytes")
                place, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not member.isreg() or member.issparse() or not stem or not extension:
                    continue
                own = f"{place}/{stem}" if place else stem
                if own != key:
                    if members:
                        yield key, members
                    key, members = own, {}
                members[extension.lower()] = (member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            with file.open("rb") as opened:  # tarfile takes a damaged header for the end
                opened.seek(tar.offset)
                if opened.read(BLOCK).strip(b"\0"):
                    raise ValueError(f"a damaged header at byte {tar.offset}")
    except FileNotFoundError:
        raise UserError(f"{file} is missing: copy it, or correct {SHARDS}") from None
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not an intact tar without compression ({error}): copy it again") from None
    if members:
        yield key, members


def _text(file: Path, offset: int, size: int) -> str:
    if size > MAX_TEXT:
        raise UserError(f"{file} holds a text of {size} bytes: at most {MAX_TEXT} are read")
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read(size).decode("utf-8", "replace")


def _label(text: str, names: list[str] | None, place: str) -> str:
    text = text.strip()
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise UserError(f"the label of {place} is {text[:40]!r}: labels are whole numbers from 0")
    if names is not None and int(text) >= len(names):
        raise UserError(f"the label of {place} is {text}, but {NAMES} has {len(names)} names: labels count from 0")
    return str(int(text))

"""Write images as a folder that clip-benchmark reads; see clip_benchmark_folder.py for its files."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS, SHARD_FORMATS, WEB_FORMATS
from leam_mm.data.shard_manifest import BLOCK
from leam_mm.data.tar_members import tar_member
from leam_mm.data.upright_image import upright_rgb
from leam_mm.errors import UserError
from leam_mm.evaluators.clip_benchmark_folder import NAMES, SHARDS, TEMPLATES, TYPE
from leam_mm.evaluators.stored_image import StoredImage
from leam_mm.files import replace_folder, temporary_path, write_text

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
PER_TAR = 10_000


def write_classes(
    folder: Path,
    split: str,
    samples: Sequence[StoredImage],
    classes: Sequence[str],
    names: Sequence[str],
    templates: Sequence[str],
) -> None:
    """Write one split of a classification data set.

    Args:
        folder: The data set's folder; other splits in it are kept.
        split: Name of the split.
        samples: Images with a class.
        classes: Class ids.
        names: One name of each class.
        templates: Templates with {} in place of the name.

    Raises:
        UserError: A text cannot be written in clip-benchmark's form, or the folder holds another data set or the images
            themselves.
    """
    if wrong := next(
        (text for text in templates if text.count("{}") != 1 or set("{}") & set(text.replace("{}", ""))), None
    ):
        raise UserError(f"template {wrong!r} has other braces than one {{}}: clip-benchmark cannot read it")
    if wrong := next(
        (text for text in [*names, *templates] if len(text.splitlines()) != 1 or text != text.strip()), None
    ):
        raise UserError(f"{wrong!r} has several lines, or spaces at its ends: clip-benchmark cannot read it")
    texts = {NAMES: names, TEMPLATES: [text.replace("{}", "{c}") for text in templates]}
    number = {class_id: str(place) for place, class_id in enumerate(classes)}
    _write(folder, split, texts, samples, [("cls", number[str(sample.class_id)]) for sample in samples])


def write_captions(folder: Path, split: str, samples: Sequence[StoredImage], language: str) -> None:
    """Write one split of a retrieval data set.

    Args:
        folder: The data set's folder; other splits in it are kept.
        split: Name of the split.
        samples: Images with captions in the language.
        language: Its code.

    Raises:
        UserError: The folder holds another data set.
    """
    lines = ["\n".join(" ".join(text.split()) for text in sample.captions(language)) for sample in samples]
    _write(folder, split, {TYPE: ["retrieval"]}, samples, [("txt", text) for text in lines])


def _write(
    folder: Path,
    split: str,
    texts: dict[str, Sequence[str]],
    samples: Sequence[StoredImage],
    labels: Sequence[tuple[str, str]],
) -> None:
    if not samples:
        raise UserError(f"there is no image to write to {folder / split}: give a folder that has what is to be written")
    target = folder / split
    if Path(split).name != split or split in ("", ".."):
        raise UserError(f"--split {split!r} is no name of a folder: give one such as test")
    if target.exists() and not (target / SHARDS).is_file():
        raise UserError(f"{target} exists and is no split of tars: give another folder with --output")
    places = {sample.file.parent.resolve() for sample in samples if sample.file.name}
    if any(place.is_relative_to(target.resolve()) for place in places):
        raise UserError(f"{target} holds the images that are read: give another folder with --output")
    contents = {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}
    for name in (NAMES, TEMPLATES, TYPE):
        file = folder / name
        if file.is_file() and (name not in contents or file.read_text(encoding="utf-8") != contents[name]):
            raise UserError(f"{file} belongs to another data set: give an empty folder with --output")
    partial = temporary_path(target)
    partial.mkdir(parents=True)
    try:
        starts = range(0, len(samples), PER_TAR)
        for number, start in enumerate(starts):
            with (partial / f"{number}.tar").open("wb") as tar:
                for row in range(start, min(start + PER_TAR, len(samples))):
                    kind, label = labels[row]
                    for extension, member in (image_member(samples[row]), (kind, label.encode())):
                        tar.write(tar_member(f"s{row:07d}.{extension}", member))
                tar.write(b"\0" * (2 * BLOCK))
        write_text(partial / SHARDS, f"{len(starts)}\n")
        for name, content in contents.items():  # after the images: none is left where one cannot be read
            write_text(folder / name, content)
        replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def image_member(sample: StoredImage) -> tuple[str, bytes]:
    """Return extension and bytes of an image: its own, or a PNG where clip-benchmark would see other pixels.

    Raises:
        UserError: It cannot be decoded.
    """
    content, upright = sample.content(), sample.preparation.upright
    try:
        image = open_image(content, WEB_FORMATS if upright else SHARD_FORMATS)
        kind, changed = str(image.format), False
        if upright:
            image, steps = upright_rgb(image, content, MAX_PIXELS)
            changed = bool(steps)
        if kind in EXTENSIONS and not changed:
            return EXTENSIONS[kind], content
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")
        return "png", buffer.getvalue()
    except UserError as error:
        raise UserError(f"image {sample.key}: {error}") from None
    except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
        raise UserError(f"image {sample.key} cannot be decoded ({error}): repair or remove it") from None

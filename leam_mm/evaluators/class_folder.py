"""A folder with one sub-folder of images for each class, as torchvision's ImageFolder reads it."""

import os
from collections.abc import Iterator
from pathlib import Path

from leam_mm.data.image_limits import IMAGE_SUFFIXES
from leam_mm.errors import UserError
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.stored_image import StoredImage

SKIPPED = ("__MACOSX",)


def class_names_of(folder: Path) -> list[str]:
    """Return the names of the sub-folders that hold images, also in folders of theirs, sorted."""
    return [name for name in _folders(folder) if next(image_files(folder / name), None) is not None]


def read_class_folder(folder: Path, preparation: ImagePreparation) -> tuple[list[str], list[StoredImage]]:
    """Return classes and images of a folder; nothing is decoded.

    Args:
        folder: Its sub-folders are the classes.
        preparation: How images become pixels.

    Returns:
        Sorted names of the sub-folders, and the images in order of class and path; their `class_id` is the name.

    Raises:
        UserError: A sub-folder holds no image, or its name is not in UTF-8.
    """
    classes, samples = _folders(folder), []
    for name in classes:
        if not is_unicode(name):
            raise UserError(f"{folder / name}: its name is not in UTF-8; rename the folder")
        files = sorted(image_files(folder / name))
        if not files:
            raise UserError(
                f"{folder / name} holds no image ({', '.join(IMAGE_SUFFIXES)}): add images of this class, or remove it"
            )
        for file in files:
            key = file.relative_to(folder).as_posix().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            samples.append(StoredImage(key, b"", {"metadata": {"class_id": name}}, file, preparation=preparation))
    return classes, samples


def is_unicode(name: str) -> bool:
    """Return whether a text can be written in UTF-8; names of files that are not hold halves of surrogate pairs."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def has_images(folder: Path) -> bool:
    """Return whether images lie in a folder itself."""
    return any(_is_image(folder, name) for name in os.listdir(folder))


def _folders(folder: Path) -> list[str]:
    found = (entry.name for entry in os.scandir(folder) if entry.is_dir())
    return sorted(name for name in found if not name.startswith(".") and name not in SKIPPED)


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files of a folder and its sub-folders, without hidden ones, in no particular order."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in SKIPPED]
        yield from (Path(place, name) for name in names if _is_image(Path(place), name))


def _is_image(folder: Path, name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES and (folder / name).is_file()

"""Files of a release, compared with the digests that its leam_mm_release.json states, before they are used.

A release is one flat folder. Older ones hold the encoder in ``clip/`` and the generator in ``generator/``.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.release_record import RELEASE, read_record

Part = Literal["encoder", "generator", "codec"]
VARIANT = re.compile(r"\.(fp16|bf16)(-\d+-of-\d+)?\.safetensors$|\.index\.(fp16|bf16)\.json$")
# A file of each part, and the folder of the part in releases of format 1.
PLACES: dict[Part, tuple[str, str]] = {
    "encoder": ("open_clip_config.json", "clip"),
    "generator": ("model_index.json", "generator"),
    "codec": ("vae/config.json", "generator/vae"),
}


def is_variant(file: Path) -> bool:
    """Return whether a file holds the weights of another file in 16 bits."""
    return VARIANT.search(file.name) is not None


def released_parts(folder: Path) -> list[Part]:
    """Return the models in the folder of a release: ``encoder``, ``generator``, or both."""
    parts: tuple[Part, ...] = ("encoder", "generator")
    return [part for part in parts if _part_folder(folder, part) is not None]


def released_part(address: Path | str, part: Part) -> Path:
    """Return the folder of a part, if an address is the folder of a release; else the address itself.

    Args:
        address: Folder of a release, or any other path.
        part: ``encoder``, ``generator`` or ``codec``.

    Raises:
        UserError: The release has no such part.
    """
    folder = Path(address)
    if not (folder / RELEASE).is_file():
        return folder
    found = _part_folder(folder, part)
    if found is None:
        raise UserError(f"the release {address} holds no {part}: give another release, or the run that it comes from")
    return found


def _part_folder(folder: Path, part: Part) -> Path | None:
    file, before = PLACES[part]
    if (folder / file).is_file():
        return (folder / file).parent
    return folder / before if (folder / before).is_dir() else None


def compare_released_files(folder: Path, patterns: Sequence[str] = ("*",)) -> None:
    """Compare the files of a folder with the release that it belongs to, if it belongs to one.

    Args:
        folder: A release, a folder inside one, or any other folder.
        patterns: Patterns of the names to compare; files in sub-folders are not compared.

    Raises:
        UserError: A file differs from the one that was released, or is missing.
    """
    folder = folder.resolve()
    root = next((place for place in (folder, *folder.parents[:2]) if (place / RELEASE).is_file()), None)
    if root is None:
        return
    for name, stated in read_record(root).files.items():
        file = root / name
        if file.parent != folder or not any(fnmatch(file.name, pattern) for pattern in patterns):
            continue
        if not file.is_file() or file_sha256(file) != stated.sha256:
            raise UserError(
                f"{file} is damaged or missing: it is not the file that was released; copy the release again"
            )

"""Files of a release, compared with the digests that its leam_mm_release.json states, before they are used."""

from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.json_text import parse_object

RELEASE = "leam_mm_release.json"  # description of a release; release/release_folder.py writes it
MAX_SIZE = 1 << 24  # bytes


def released_part(address: Path | str, name: str) -> Path:
    """Return the folder of a part, if an address is the folder of a release; else the address itself.

    Args:
        address: Folder of a release, or any other path.
        name: ``clip``, ``generator``, ``generator/vae`` or ``generator/transformer``.

    Raises:
        UserError: The release has no such part.
    """
    folder = Path(address)
    if not (folder / RELEASE).is_file():
        return folder
    if not (folder / name).is_dir():
        raise UserError(f"the release {address} holds no {name}: give another release, or the run that it comes from")
    return folder / name


def compare_released_files(folder: Path) -> None:
    """Compare the files of a folder with the release that it belongs to, if it belongs to one.

    Args:
        folder: ``clip`` of a release, a part of its ``generator``, or any other folder.

    Raises:
        UserError: A file differs from the one that was released, or is missing.
    """
    folder = folder.resolve()
    root = next((place for place in (folder, *folder.parents[:2]) if (place / RELEASE).is_file()), None)
    if root is None:
        return
    try:
        if (root / RELEASE).stat().st_size > MAX_SIZE:
            raise ValueError(f"it is larger than {MAX_SIZE} bytes")
        files = parse_object((root / RELEASE).read_bytes())["files"]
        digests = {root / name: str(facts["sha256"]) for name, facts in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{root / RELEASE} cannot be read ({error!r:.200}): copy the release again") from None
    for file, digest in digests.items():
        if file.parent == folder and (not file.is_file() or file_sha256(file) != digest):
            raise UserError(
                f"{file} is damaged or missing: it is not the file that was released; copy the release again"
            )

"""Mark images that another program generated, such as diffusers from a release."""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError
from leam_mm.files import write_bytes
from leam_mm.marking.content_credentials import UnreadableCredentials, read
from leam_mm.marking.deletion_list import DeletionList
from leam_mm.marking.generated_image import generated_file
from leam_mm.marking.image_of_stranger import image_format, read_file

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True)
class MarkOptions:
    """Write a copy of a generated image with watermark and content credentials.

    Args:
        file: Image that a model generated.
        output: Marked image, as .png, .jpg or .webp; an existing file is replaced.
        model: Name of the generator.
        sha256: Digest of the generator, if known, such as that of the release.
        edited: Image that the generator changed; its content credentials are kept.
        deletion_list: File of hashes of images that are not written.
    """

    file: Path
    output: Path
    model: str
    sha256: str = ""
    edited: Path | None = None
    deletion_list: Path | None = None


def mark_image(options: MarkOptions) -> int:
    """Write the marked image."""
    kind = FORMATS.get(options.output.suffix.lower())
    if kind is None:
        raise UserError(f"--output {options.output}: name it {', '.join(FORMATS)}")
    if not options.model.strip():
        raise UserError("--model is empty: name the generator")
    content = read_file(options.file)
    source = read_file(options.edited) if options.edited is not None else _with_credentials(content)
    try:
        image = read_upright(content)
    except UserError as error:
        raise UserError(f"{options.file}: {error}") from None
    if options.deletion_list is not None:
        import numpy as np

        DeletionList.read(options.deletion_list).check(np.asarray(image))
    marked, _ = generated_file(image, kind, options.output.name, options.model, sha256=options.sha256, source=source)
    write_bytes(options.output, marked)
    print(f"wrote {options.output}; the original {options.file} is unmarked still")
    return 0


def _with_credentials(content: bytes) -> bytes | None:
    """Return the file if it has content credentials, which are kept as those of what was changed; else None."""
    try:
        return content if read(content, image_format(content)) is not None else None
    except (UnreadableCredentials, UserError):
        return content

"""All formats of an encoder in one folder: open_clip, and where its architecture allows transformers' CLIPModel."""

from dataclasses import dataclass, field
from pathlib import Path

from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.release.open_clip_folder import write_open_clip_folder
from leam_mm.release.sentence_transformers_folder import write_sentence_transformers_folder
from leam_mm.release.transformers_folder import write_transformers_folder

ROOT = "."  # the release folder itself


@dataclass
class Formats:
    """Formats of a release.

    Args:
        folders: Folder inside the release that each library loads, by library.
        left_out: Reason why there is no format for a library, by library.
    """

    folders: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def write_encoder(module: ContrastiveModule, folder: Path, name: str) -> Formats:
    """Write the encoder (the averaged one if an average is kept) in all formats.

    Args:
        module: The trained module.
        folder: The release folder.
        name: Name of the release; see ``write_open_clip_folder``.
    """
    write_open_clip_folder(module, folder, name)
    formats = Formats({"open_clip": ROOT})
    if reason := write_transformers_folder(module, folder):
        formats.left_out = {"transformers": reason, "sentence_transformers": f"no CLIPModel of transformers: {reason}"}
        return formats
    write_sentence_transformers_folder(folder)
    formats.folders |= {"transformers": ROOT, "sentence_transformers": ROOT}
    return formats

"""A release that the page serves: its models, documents and numbers."""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.errors import UserError
from leam_mm.files import file_sha256
from leam_mm.inference.embedder import Embedder
from leam_mm.model_address import load_generator
from leam_mm.release_record import read_record
from leam_mm.serving.current_deletion_list import CurrentDeletionList
from leam_mm.serving.drawing_service import DrawingService, ImageStore
from leam_mm.serving.encoder_service import EncoderService
from leam_mm.serving.release_documents import ReleaseDocuments

MAX_NAME = 100  # characters


@dataclass
class ServedRelease:
    """An opened release.

    Args:
        folder: Where it lies.
        name: Its name, of a stranger: shown as text only.
        drawing: Its generator; None if it holds none.
        encoder: Its encoder; None if it holds none.
        documents: Its documents.
    """

    folder: Path
    name: str
    drawing: DrawingService | None
    encoder: EncoderService | None
    documents: ReleaseDocuments


@dataclass(frozen=True)
class Sources:
    """Texts that images are compared with, see EncoderService.

    Args:
        classes: Class file, or None.
        captions: Text file, or None.
    """

    classes: Path | None = None
    captions: Path | None = None


def check_release(folder: Path) -> None:
    """Compare every file of a release with its recorded digest.

    Raises:
        UserError: It is no release, or a file is missing or was changed.
    """
    for name, stated in read_record(folder).files.items():
        path = folder / name
        inside = path.resolve().is_relative_to(folder.resolve())
        if not inside or not path.is_file() or file_sha256(path) != stated.sha256:
            raise UserError(f"{path} is missing or differs from the released file: copy the release again")


def open_release(
    folder: Path, store: ImageStore, device: str, sources: Sources | None = None, deletion_list: Path | None = None
) -> ServedRelease:
    """Load a release that was checked.

    Args:
        folder: The release.
        store: Where drawn images are kept.
        device: cpu or cuda.
        sources: Texts that images are compared with; None for a release that is only drawn with.
        deletion_list: Hashes of images that are not shown; None takes those in the release, if it has some.

    Raises:
        UserError: It cannot be read, holds no model, or a text file cannot be read.
    """
    content = read_record(folder).content
    stages = content.get("stages")
    stages = stages if isinstance(stages, dict) else {}
    drawing = encoder = None
    if "generator" in stages:
        drawing = DrawingService(load_generator(folder).to(device), store, CurrentDeletionList(deletion_list, folder))
    if "clip" in stages and sources is not None:
        encoder = EncoderService(Embedder.open(folder, device), sources.classes, sources.captions)
    if drawing is None and encoder is None:
        raise UserError(f"{folder} holds no generator and no encoder: give another release")
    name = "".join(letter for letter in str(content.get("name") or "") if letter.isprintable())[:MAX_NAME]
    return ServedRelease(folder, name or folder.name, drawing, encoder, ReleaseDocuments(folder))

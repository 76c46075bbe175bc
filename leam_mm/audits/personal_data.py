"""Personal data in training data: identifiers in captions, positions in image files, and faces."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, Threshold
from leam_mm.audits.detectors import FaceDetector
from leam_mm.audits.identifiers import PER, IdentifierCounts, load_finder
from leam_mm.audits.image_positions import has_position
from leam_mm.audits.stored_samples import FEWEST, StoredSample, rate_slice, read_stored
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError

MAPS_TO = ("GDPR Art. 5(1)(c)", "public summary 3.3", "Croissant RAI personalSensitiveInformation")
BATCH = 16  # images


@dataclass
class ImageCounts:
    """Counts over the images of shards.

    Args:
        images: Images that can be read.
        positions: Those that say where they were taken.
        faces: Faces that were found.
        with_faces: Images that show one.
        unreadable: Images that cannot be read.
    """

    images: int = 0
    positions: int = 0
    faces: int = 0
    with_faces: int = 0
    unreadable: int = 0


@dataclass
class _FaceBatch:
    detector: FaceDetector
    images: list[np.ndarray] = field(default_factory=list)

    def search(self, counts: ImageCounts) -> None:
        found = self.detector.find(self.images) if self.images else []
        counts.faces += sum(map(len, found))
        counts.with_faces += sum(map(bool, found))
        self.images = []


class PersonalData(Audit):
    """Counts validated identifiers: known top-level domains, numbering plans, checksums.

    The finder is leam_mm/data/personal_data.py. No identifier is written: an example is its masked form and a digest of
    the sample's key.

    - class_path: leam_mm.audits.personal_data.PersonalData
      init_args:
        face_detector: {class_path: data_tools.vetting.face_cascade.FaceCascade}

    Args:
        samples: Samples that are read, drawn at random; None reads all.
        kinds: Kinds of identifiers that count, such as [email, iban]; None counts all.
        face_detector: Detector of faces; None does not look for them.
        most_faces: Largest number of images with a face per 10,000, for a pass; None reports without a criterion.
        seed: Seed of the draw.
    """

    name = "personal_data"

    def __init__(
        self,
        samples: int | None = None,
        kinds: Sequence[str] | None = None,
        face_detector: FaceDetector | None = None,
        most_faces: float | None = None,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if samples is not None and samples < 1:
            raise UserError(f"PersonalData: samples is {samples}: give at least 1, or null for all")
        self.samples, self.kinds = samples, None if kinds is None else list(kinds)
        self.face_detector, self.most_faces, self.seed = face_detector, most_faces, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read captions and images."""
        find = load_finder(self.kinds)
        folder = ShardFolder(context.require("shards"))
        captions, counts, unread = IdentifierCounts(self.kinds), ImageCounts(), 0
        batch = _FaceBatch(self.face_detector) if self.face_detector is not None else None
        for sample in read_stored(folder, self.samples, self.seed):
            unread += not _add_captions(sample, captions, find)
            if sample.image is not None:
                _add_image(sample.image, counts, batch)
        if batch is not None:
            batch.search(counts)
        drawn = folder.samples if self.samples is None else min(self.samples, folder.samples)
        few = ""
        if drawn < min(FEWEST, folder.samples):
            few = f"{drawn} samples drawn from {folder.samples:,}, at least {FEWEST} are needed"
        results = [self._identifiers(captions, unread, few), self._positions(counts, few)]
        return results + ([self._faces(counts)] if batch is not None else [])

    def _identifiers(self, captions: IdentifierCounts, unread: int, few: str) -> AuditResult:
        value = float(captions.hits) if captions.texts else None
        few = f"the captions of {unread:,} samples cannot be read" if unread else few
        return AuditResult(
            self.name, value, value, value, "count", captions.texts, Threshold(most=0), captions.slices(),
            captions.summary("captions"), maps_to=MAPS_TO,
            undecided=few if not captions.hits else "",
        )  # fmt: skip

    def _positions(self, counts: ImageCounts, few: str) -> AuditResult:
        value = float(counts.positions) if counts.images else None
        few = f"{counts.unreadable:,} images cannot be read" if counts.unreadable else few
        said = f"{counts.positions:,} of {counts.images:,} image files say where they were taken (EXIF, XMP)"
        return AuditResult(
            f"{self.name}/positions", value, value, value, "count", counts.images, Threshold(most=0),
            {f"images with one per {PER:,}": rate_slice(counts.positions, counts.images, PER)},
            said if counts.images else "the shards hold no image that can be read", maps_to=MAPS_TO,
            undecided=few if not value else "",
        )  # fmt: skip

    def _faces(self, counts: ImageCounts) -> AuditResult:
        rate = rate_slice(counts.with_faces, counts.images, PER)
        said = f"{counts.faces:,} faces in {counts.with_faces:,} of {counts.images:,} images; found, never identified"
        return AuditResult(
            f"{self.name}/faces", rate["value"], rate["low"], rate["high"], f"images per {PER:,}", counts.images,
            Threshold(most=self.most_faces) if self.most_faces is not None else None,
            {"faces": counts.faces, "images with a face": counts.with_faces},
            said if self.most_faces is not None else f"{said}; no largest number was set", maps_to=MAPS_TO,
        )  # fmt: skip


def _add_captions(sample: StoredSample, captions: IdentifierCounts, find: Callable[[str], Any]) -> bool:
    """Search the captions of a sample; return whether it has any that can be read."""
    texts = list(_texts(sample))
    for text in texts:
        captions.add(text, sample.key, find)
    return bool(texts)


def _texts(sample: StoredSample) -> Iterator[str]:
    captions = sample.record.get("captions")
    for caption in captions if isinstance(captions, list) else []:
        if isinstance(caption, dict) and isinstance(caption.get("text"), str):
            yield caption["text"]


def _add_image(content: bytes, counts: ImageCounts, batch: _FaceBatch | None) -> None:
    located = has_position(content)
    if located is None:
        counts.unreadable += 1
        return
    if batch is not None:
        try:
            batch.images.append(np.asarray(read_upright(content)))
        except UserError:
            counts.unreadable += 1
            return
        if len(batch.images) == BATCH:
            batch.search(counts)
    counts.images += 1
    counts.positions += located

"""Judge that says which of a set of known subjects an image shows, or none; its controls say how far to believe it.

The answer is the subject of the nearest reference. References are the pictures of each subject, and the same pictures
destroyed (blurred, scrambled, noise), which stand for "none": colours in about the right place are no subject.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from leam_mm.evaluators.evaluator import Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.subject_images import SubjectPictures, blurred, moved, noise_images, scrambled
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import write_outcomes

NONE = -1  # the answer for an image that shows no subject
LEAST = 0.9  # share of known pictures that a judge must name
MOST = 0.1  # share of images without the subject for which it may be named
BATCH = 64
PREFIX = "subject_judge"


class SubjectJudge:
    """Names the subject of the reference whose features are most alike: cosine after subtracting their mean.

    Args:
        features: The network.
        pictures: The subjects.
        views: Further views of the same pictures in the same order, (B, 3, H, W) uint8 each.
    """

    def __init__(self, features: ImageFeatures, pictures: SubjectPictures, views: Sequence[Tensor] = ()) -> None:
        """See the class for the arguments."""
        own = [pictures.images, *views]
        images = pictures.images
        destroyed = [blurred(images, 4), scrambled(images, 0), noise_images(images[:BATCH], 0)]
        self.features, everything = features, torch.cat([*own, *destroyed])
        self.subject = numpy.full(len(everything), NONE)
        self.subject[: len(own) * len(images)] = numpy.tile(pictures.subject, len(own))
        self.owner = numpy.full(len(everything), NONE)
        self.owner[: len(own) * len(images)] = numpy.tile(numpy.arange(len(images)), len(own))
        references = self._extract(everything)
        self.mean = references.mean(dim=0)
        self.references = self._unit(references)

    def name(self, images: Tensor, without: numpy.ndarray | None = None) -> numpy.ndarray:
        """Return the number of the subject (B,) that each image shows, or NONE.

        Args:
            images: (B, 3, H, W) uint8.
            without: (B,) number of a picture whose views are no references for that image.
        """
        alike = self._unit(self._extract(images)) @ self.references.T
        if without is not None:
            alike[torch.from_numpy(self.owner[None] == without[:, None])] = -torch.inf
        return self.subject[alike.argmax(dim=1).numpy()]

    def _extract(self, images: Tensor) -> Tensor:
        return torch.cat([self.features.extract(part) for part in images.split(BATCH)])

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(features - self.mean, dim=1)


@dataclass(frozen=True)
class TestedJudge:
    """A judge with what its controls say.

    Args:
        judge: The judge.
        metrics: Shares of right and wrong answers on known images.
        failure: Why its answers must not be used; "" if both controls were passed.
        summary: Both controls in a few words.
    """

    judge: SubjectJudge
    metrics: list[Metric]
    failure: str
    summary: str


def choose_judge(judges: Sequence[SubjectJudge], pictures: SubjectPictures, recode: Callable[[Tensor], Tensor]) -> int:
    """Return the number of the judge that is right most often about moved pictures and scrambled ones.

    Args:
        judges: The candidates; the first of equals is taken.
        pictures: The subjects.
        recode: Encodes, decodes and marks images; another codec than that of the controls.
    """
    known, wrong = recode(moved(pictures.images, 1)), recode(scrambled(pictures.images, 1))
    right = [
        int((judge.name(known) == pictures.subject).sum()) + int((judge.name(wrong) == NONE).sum()) for judge in judges
    ]
    return int(numpy.argmax(right))


def check_subject_judge(
    judge: SubjectJudge,
    pictures: SubjectPictures,
    recode: Callable[[Tensor], Tensor],
    others: dict[str, tuple[Tensor, numpy.ndarray]],
) -> TestedJudge:
    """Test a judge on images that it was neither made of nor chosen by.

    Args:
        judge: The judge.
        pictures: The subjects.
        recode: Encodes, decodes and marks images, as the generator's images are decoded and published.
        others: Further images by kind, each with a subject (B,) that it does not show.
    """
    images, subject, count = pictures.images, pictures.subject, len(pictures.images)
    known = recode(moved(images, 2))
    named = judge.name(known) == subject
    metrics = [_share("known_pictures", named, f"at least {LEAST:.0%} are asked of it", "moved, and through the codec")]
    metrics.append(_new_pictures(judge, pictures, known))
    # The subject asked about is the picture's own, which destroying it has removed, or that of another picture.
    wrong = {
        "blurred": (blurred(images, 3), subject),
        "scrambled": (scrambled(images, 2), subject),
        "noise": (noise_images(images, 2), subject),
        "another_subject": (known, (subject + 1) % len(pictures.captions)),
        **others,
    }
    hits = {kind: judge.name(shown) == asked for kind, (shown, asked) in wrong.items()}
    slices = {f"kind={kind}": {"value": float(part.mean()), "samples": len(part)} for kind, part in hits.items()}
    missed = numpy.concatenate(list(hits.values()))
    metrics.append(_share("other_images", missed, f"at most {MOST:.0%} are allowed", "none shows the subject", slices))
    good, bad = int(named.sum()), int(missed.sum())
    summary = (
        f"the judge names {good} of {count} known pictures, and a subject that is not there in {bad} of {len(missed)}"
    )
    failure = ""
    if len(pictures.captions) < 2:
        failure = "all pictures have one caption, so that there is nothing to tell apart"
    elif good < LEAST * count or bad > MOST * len(missed):
        failure = f"{summary}; at least {LEAST:.0%} and at most {MOST:.0%} are asked of it"
    return TestedJudge(judge, metrics, failure, summary)


def _new_pictures(judge: SubjectJudge, pictures: SubjectPictures, known: Tensor) -> Metric:
    """Return the share of pictures that are named without being references, where a subject has several."""
    rows = numpy.flatnonzero(pictures.shared)
    if not len(rows):
        note = "not measured: no two pictures show one subject"
        return Metric(f"{PREFIX}/new_pictures", None, None, None, "fraction", 0, note=note)
    named = judge.name(known[rows], rows) == pictures.subject[rows]
    note = "the picture itself is no reference; an image that shows its subject in another way may be missed as often"
    return _share("new_pictures", named, "no limit is set", note)


def _share(
    name: str, hits: numpy.ndarray, limit: str, note: str, slices: dict[str, dict[str, float]] | None = None
) -> Metric:
    low, high = wilson_interval(int(hits.sum()), len(hits))
    outcomes = write_outcomes(hits, [f"{name} {number}" for number in range(len(hits))])
    value, text = float(hits.mean()), f"{limit}; {note}"
    return Metric(f"{PREFIX}/{name}", value, low, high, "fraction", len(hits), slices or {}, text, outcomes)

"""Near copies: generated images that are nearer to a training image than real images are to each other."""

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.audits.altered_copies import DECIDING, altered_copies
from leam_mm.audits.audit import AuditContext, AuditResult, Threshold
from leam_mm.audits.audited_samples import caption_of, captioned_samples, generated_images, stacked_pixels
from leam_mm.audits.blind_classifier import blind_area, refuse_shift
from leam_mm.audits.copy_distance import CopyDistance, LowFrequencies, Tiles
from leam_mm.audits.memorization_part import MemorizationPart
from leam_mm.audits.nearest_training import nearest_training, relative_distance
from leam_mm.audits.receiver_operating import area_under_curve
from leam_mm.audits.stored_samples import rate_interval, rate_slice
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.evaluators.embedding import read_image_samples

REACH = 2.0  # the largest threshold, in scores of altered copies
LEAST_FOUND = 0.9  # share of a control's copies that must be found, or the rate is not decided


@dataclass(frozen=True)
class Search:
    """One way to search for copies, calibrated on held-out images.

    Args:
        threshold: Scores below it are copies.
        found: Share of altered copies found, by what was done to them.
        flagged: Which generated images (B,) are copies.
        held_out: Number of held-out images taken for copies.
    """

    threshold: float
    found: dict[str, float]
    flagged: Tensor
    held_out: int

    @property
    def weakest(self) -> float:
        """The smallest share found among the controls that decide."""
        return min(share for name, share in self.found.items() if name in DECIDING)


class NearCopies(MemorizationPart):
    """Share of generated images that are near copies of training images.

    The score of an image is its distance to the nearest training image, plain or relative to the mean of its 50
    nearest. The threshold is the score below which a share of ``false_positives`` of held-out real images lies, or less
    where copies are much nearer. Altered copies of training images show what each score finds. The score whose weakest
    deciding control is strongest is used; the choice does not see the generated images. If it finds less than 90 % of
    them, only a fail is decided. If a classifier tells held-out from training images, nothing is.

    Args:
        samples: Number of generated images, from captions of the training data.
        held_out: Number of held-out images that calibrate the threshold; at least 1 / false_positives.
        distances: Distances to try; None tries low frequencies and tiles.
        false_positives: Share of held-out images that are taken for copies.
        most: Largest share of near copies that passes. It must be above ``false_positives``.
        copies: Number of training images that are altered for the controls.
        neighbours: Number of nearest training images of the relative score.
        language: Language of the captions.
        sampling: How the images are sampled.
        seed: Seed of the images' noise.
    """

    name = "memorization/near_copies"

    def __init__(
        self,
        samples: int = 1000,
        held_out: int = 1000,
        distances: list[CopyDistance] | None = None,
        false_positives: float = 1e-3,
        most: float = 5e-3,
        copies: int = 100,
        neighbours: int = 50,
        language: str = "en",
        sampling: SamplerSettings = SamplerSettings(20, 3.0),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        self.samples, self.held_out, self.copies, self.neighbours = samples, held_out, copies, neighbours
        self.distances = distances or [LowFrequencies(), Tiles()]
        self.false_positives, self.most = false_positives, most
        self.language, self.sampling, self.seed = language, sampling, seed

    def measure(self, context: AuditContext) -> AuditResult:
        """Generate, measure all distances in one pass over the training data, calibrate, and count."""
        shards, held_out = context.require("shards"), context.require("held_out")
        module = context.require_generator()
        sources, texts = captioned_samples(shards, self.samples, self.language)
        prompts = [texts[number % len(texts)] for number in range(self.samples)]
        generated = generated_images(module, prompts, self.sampling, self.seed)
        size = generated.shape[-1]
        others = list(read_image_samples(held_out, self.held_out))
        real, real_texts = stacked_pixels(others, size), [caption_of(sample, self.language) for sample in others]
        shift = blind_area((stacked_pixels(sources, size), texts), (real, real_texts), self.seed)
        copied = stacked_pixels(sources[:: max(1, len(sources) // self.copies)][: self.copies], size)
        sets = {"generated": generated, "held_out": real, **altered_copies(copied, module, self.seed)}
        searches, scores = self._searches(shards, size, sets)
        best = max(searches, key=lambda name: searches[name].weakest)
        return self._result(searches, best, scores[best], len(real), shift)

    def _searches(self, shards: Any, size: int, sets: dict[str, Tensor]) -> tuple[dict[str, Search], dict[str, Any]]:
        """Return each score's search, and its scores of all sets."""
        found = nearest_training(shards, size, self.distances, torch.cat(list(sets.values())), self.neighbours)
        searches, all_scores = {}, {}
        for distance, nearest in zip(self.distances, found, strict=True):
            for kind, values in (("nearest", nearest[:, 0]), ("relative", relative_distance(nearest))):
                scores = dict(zip(sets, values.split([len(images) for images in sets.values()]), strict=True))
                name = f"{distance.name}/{kind}"
                searches[name] = calibrated(scores, self.false_positives)
                all_scores[name] = scores
        return searches, all_scores

    def _result(
        self,
        searches: dict[str, Search],
        best: str,
        scores: dict[str, Tensor],
        real: int,
        shift: tuple[float, float, float],
    ) -> AuditResult:
        chosen = searches[best]
        count, hits = len(chosen.flagged), int(chosen.flagged.sum())
        low, high = rate_interval(hits, count)
        undecided = refuse_shift(shift)
        if real * self.false_positives < 1:
            undecided = f"{real} held-out images cannot calibrate {self.false_positives:g} false positives"
        elif chosen.weakest < LEAST_FOUND and low <= self.most:
            undecided = f"the search finds only {chosen.weakest:.0%} of altered copies, {LEAST_FOUND:.0%} are needed"
        closer = area_under_curve(-scores["generated"].numpy(), -scores["held_out"].numpy())
        slices: dict[str, Any] = {
            name: {
                **rate_slice(int(search.flagged.sum()), count),
                "threshold": search.threshold,
                "held_out_flagged": rate_slice(search.held_out, real),
                "copies_found": search.found,
            }
            for name, search in searches.items()
        }
        # The statistic of Meehan, Chaudhuri and Dasgupta 2020 (2004.05675), as an area: above 0.5 is copying.
        slices["blind_classifier"] = {"value": shift[0], "low": shift[1], "high": shift[2], "samples": real + count}
        slices["closer_than_held_out"] = {"value": closer[0], "low": closer[1], "high": closer[2], "samples": count}
        shares = ", ".join(f"{name} {share:.0%}" for name, share in chosen.found.items())
        reason = (
            f"score {best}, {chosen.held_out} of {real} held-out images flagged; of altered copies it finds {shares}"
        )
        return AuditResult(
            self.name, hits / count, low, high, "fraction", count, Threshold(most=self.most), slices, reason,
            undecided=undecided,
        )  # fmt: skip


def calibrated(scores: dict[str, Tensor], false_positives: float) -> Search:
    """Set the threshold and apply it.

    At most a share of held-out images lies below it. It is no larger than ``REACH`` times the scores of altered copies:
    where copies are far nearer than other images, it takes far fewer other images for copies.

    Args:
        scores: Scores of ``generated``, ``held_out`` and the altered copies.
        false_positives: The share.
    """
    real = numpy.sort(scores["held_out"].numpy())
    altered = [name for name in scores if name not in ("generated", "held_out")]
    farthest = max(float(scores[name].quantile(0.99)) for name in altered)
    allowed = float(real[min(int(false_positives * len(real) + 1e-9), len(real) - 1)])
    threshold = min(allowed, REACH * farthest)
    below = {name: values < threshold for name, values in scores.items()}
    found = {name: round(float(below[name].float().mean()), 4) for name in altered}
    return Search(threshold, found, below["generated"], int(below["held_out"].sum()))

"""Membership inference: whether a model's scores tell its training samples from others.

- class_path: leam_mm.audits.membership_inference.MembershipInference
  init_args: {samples: 1000}

Members are samples of the training shards, non-members those of the held-out shards, which must come from the same
source by a random split. A classifier that sees only images and captions guards this: if it tells them apart, so may
any score, and the result is inconclusive.
"""

from typing import Any

import numpy

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun, Threshold
from leam_mm.audits.audited_samples import captioned_samples, refuse_overlap, stacked_pixels
from leam_mm.audits.blind_classifier import MOST_AREA, blind_area
from leam_mm.audits.combined_result import combined_result
from leam_mm.audits.membership_scores import encoder_scores, generator_scores
from leam_mm.audits.receiver_operating import area_under_curve, hits_at, hits_interval
from leam_mm.errors import UserError

MAPS_TO = ("EDPB Opinion 28/2024, section 3.2",)
SHOWN_RATES = (0.001, 0.01)


class MembershipInference(Audit):
    """Share of members found at a rate of false positives, for an encoder, a generator or both.

    The largest share over the scores of a model decides: its interval reaches from the largest lower to the largest
    upper end. The results of encoder and generator are parts; the audit passes if each passes.

    Args:
        samples: Number of members, and of non-members.
        false_positives: Share of non-members taken for members.
        most: Largest share of members found that passes. Chance finds ``false_positives`` of them.
        most_blind: Largest area under the curve of the classifier that sees no model, as the upper end of its interval.
        fewest: Smallest number of members and of non-members that decides.
        draws: Number of noises at each timestep of a generator's loss.
        language: Language of the captions, if a sample has it.
        seed: Seed of the noises, folds and intervals.
    """

    name = "membership_inference"

    def __init__(
        self,
        samples: int = 1000,
        false_positives: float = 0.01,
        most: float = 0.02,
        most_blind: float = MOST_AREA,
        fewest: int = 500,
        draws: int = 2,
        language: str = "en",
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if samples < 20 or not 0 < false_positives < 1:
            raise UserError("MembershipInference: samples must be at least 20 and false_positives between 0 and 1")
        self.samples, self.false_positives, self.most, self.most_blind = samples, false_positives, most, most_blind
        self.fewest, self.draws, self.language, self.seed = fewest, draws, language, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Read both groups, check the guard, and score them with each model."""
        if context.clip is None and context.generator is None:
            raise NotRun("no model was given: add --clip, --generator or both")
        shards, held_out = context.require("shards"), context.require("held_out")
        refuse_overlap(context)
        members, member_texts = captioned_samples(shards, self.samples, self.language)
        others, other_texts = captioned_samples(held_out, self.samples, self.language)
        samples, texts, count = members + others, member_texts + other_texts, len(members)
        if min(count, len(others)) < 20:
            raise NotRun(f"{count} members and {len(others)} non-members are too few: give at least 20 of each")
        results, guard = [], None
        if context.generator is not None:
            module = context.require_generator()
            images = stacked_pixels(samples, module.latent_size * module.codec.downscale)
            guard = blind_area((images[:count], member_texts), (images[count:], other_texts), self.seed)
            scores = generator_scores(module, images, texts, self.draws, self.seed)
            results.append(self._result("generator", scores, count, guard))
        if context.clip is not None:
            encoder = context.require_clip()
            images = stacked_pixels(samples, encoder.ema_encoder().image_size)
            guard = guard or blind_area((images[:count], member_texts), (images[count:], other_texts), self.seed)
            scores = encoder_scores(encoder, samples, texts, context.device)
            results.append(self._result("encoder", scores, count, guard))
        return [combined_result(self.name, results, MAPS_TO), *results]

    def _result(
        self, part: str, scores: dict[str, numpy.ndarray], count: int, guard: tuple[float, float, float]
    ) -> AuditResult:
        slices: dict[str, Any] = {"blind_classifier": _row(*guard, len(next(iter(scores.values()))))}
        found = []
        for name, values in scores.items():
            if not numpy.isfinite(values).all():
                raise UserError(f"the {part} gives a {name} that is not finite: the checkpoint diverged")
            inside, outside = values[:count], values[count:]
            slices[f"{name}/area"] = _row(*area_under_curve(inside, outside), len(values))
            for rate in sorted({*SHOWN_RATES, self.false_positives}):
                value = hits_at(inside, outside, rate)
                row = _row(value, *hits_interval(inside, outside, rate, self.seed), count)
                slices[f"{name}/found_at_{rate:g}"] = row
                if rate == self.false_positives:
                    found.append(row)
        undecided = self._guarded(*guard)
        areas = ", ".join(f"{name} {slices[f'{name}/area']['value']:.3f}" for name in scores)
        reason = (
            f"members found at {self.false_positives:.1%} false positives; area under the curve: {areas}; of a "
            f"classifier that sees no model {guard[0]:.3f} (up to {guard[2]:.3f})"
        )
        value, low, high = (max(row[key] for row in found) for key in ("value", "low", "high"))
        fewer = min(count, len(next(iter(scores.values()))) - count)
        return AuditResult(
            f"{self.name}/{part}", value, low, high, "fraction",
            fewer, Threshold(most=self.most), slices, reason, fewest=self.fewest, undecided=undecided, maps_to=MAPS_TO,
        )  # fmt: skip

    def _guarded(self, area: float, low: float, high: float) -> str:
        """Return what the classifier that sees no model leaves open; its interval decides, not its area."""
        ends = f"area {area:.3f}, {low:.3f} to {high:.3f}; at most {self.most_blind:g}"
        if low > self.most_blind:
            return f"a classifier that sees no model tells the sets apart ({ends}): hold out a random part of both"
        if high > self.most_blind:
            return f"the samples are too few to know whether a classifier that sees no model tells them apart ({ends})"
        return ""


def _row(value: float, low: float, high: float, samples: int) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "samples": samples}

"""First-step signal of memorized captions (Wen et al. 2024, 2407.21720).

At pure noise, the prediction of a network for a memorized caption differs more from that without a caption than for
other captions: it is steered towards one image from the start.
"""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.audits.audit import AuditContext, AuditResult, NotRun, Threshold
from leam_mm.audits.audited_samples import captioned_samples
from leam_mm.audits.blind_classifier import caption_features, cross_validated_scores
from leam_mm.audits.canary_list import read_canaries
from leam_mm.audits.extraction import most_frequent_captions
from leam_mm.audits.memorization_part import MemorizationPart
from leam_mm.audits.receiver_operating import area_under_curve
from leam_mm.data.caption_states import trim
from leam_mm.denoisers.size_conditioning import whole_image

BATCH = 64
FEWEST = 8  # captions of each group


class FirstStepSignal(MemorizationPart):
    """How well the first step tells duplicated from held-out captions: 0.5 means that it does not.

    With canaries, both groups are drawn from one distribution. Without, the most frequent captions of the training data
    are compared with captions that only the held-out data has; if a classifier that sees the captions alone tells these
    groups apart, the result is inconclusive.

    Args:
        canaries: Output folder of data_tools/plant_canaries.py, or None.
        duplication: Smallest duplication of the canaries in the group that may be memorized.
        captions: Largest number of captions in each group.
        draws: Number of noises over which the difference is averaged.
        most: Largest area under the curve that passes.
        language: Language of the captions.
        steps: Sampler steps, which decide the first timestep.
        seed: Seed of the noises.
    """

    name = "memorization/first_step_signal"

    def __init__(
        self,
        canaries: Path | None = None,
        duplication: int = 1,
        captions: int = 200,
        draws: int = 4,
        most: float = 0.6,
        language: str = "en",
        steps: int = 20,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        self.canaries = None if canaries is None else Path(canaries)
        self.duplication, self.captions, self.draws, self.most = duplication, captions, draws, most
        self.language, self.steps, self.seed = language, steps, seed

    def measure(self, context: AuditContext) -> AuditResult:
        """Compute the difference of both groups of captions, and compare."""
        slices: dict[str, Any] = {}
        groups = self._of_canaries() if self.canaries is not None else self._of_shards(context)
        duplicated, held_out = groups
        if min(len(duplicated), len(held_out)) < FEWEST:
            raise NotRun(
                f"{len(duplicated)} duplicated and {len(held_out)} held-out captions are too few to compare: give data "
                f"with at least {FEWEST} of each, or canaries"
            )
        module = context.require_generator()
        texts = [text for text, _ in duplicated] + held_out
        values = first_step_difference(module, texts, self.draws, self.steps, self.seed).numpy()
        positive, negative = values[: len(duplicated)], values[len(duplicated) :]
        area, low, high = area_under_curve(positive, negative)
        undecided = ""
        counts = numpy.array([count for _, count in duplicated])
        if self.canaries is None:
            labels = numpy.repeat([1.0, 0.0], [len(duplicated), len(held_out)])
            blind = cross_validated_scores(caption_features(texts), labels, self.seed)
            own = area_under_curve(blind[labels == 1], blind[labels == 0])
            slices["captions_alone"] = {"value": own[0], "low": own[1], "high": own[2], "samples": len(texts)}
            if own[1] > 0.5:
                undecided = f"the captions alone tell the groups apart (area {own[0]:.2f}): plant canaries"
        else:
            for copies in sorted(set(counts.tolist())):
                if (counts == copies).sum() >= 2:
                    part = area_under_curve(positive[counts == copies], negative)
                    row = {"value": part[0], "low": part[1], "high": part[2], "samples": int((counts == copies).sum())}
                    slices[f"duplication_{copies}"] = row
        reason = (
            f"area under the curve of {len(duplicated)} captions that occur {counts.min()} to {counts.max()} times "
            f"against {len(held_out)} held-out ones"
        )
        return AuditResult(
            self.name, area, low, high, "area under the curve", len(texts), Threshold(most=self.most), slices, reason,
            undecided=undecided,
        )  # fmt: skip

    def _of_canaries(self) -> tuple[list[tuple[str, int]], list[str]]:
        every = read_canaries(self.canaries)
        planted = [(one.caption, one.duplication) for one in every if one.duplication >= max(1, self.duplication)]
        return planted[-self.captions :], [one.caption for one in every if not one.duplication][: self.captions]

    def _of_shards(self, context: AuditContext) -> tuple[list[tuple[str, int]], list[str]]:
        shards, held_out = context.require("shards"), context.require("held_out")
        counted = most_frequent_captions(shards, 1 << 40, self.language)
        seen = {text for text, _ in counted}
        texts = captioned_samples(held_out, 10 * self.captions, self.language)[1]
        return counted[: self.captions], sorted(set(texts) - seen)[: self.captions]


@torch.no_grad()
def first_step_difference(module: Any, texts: list[str], draws: int, steps: int, seed: int) -> Tensor:
    """Return how far a caption moves the prediction at the first step of sampling, as a root mean square.

    Args:
        module: A LatentDiffusionModule.
        texts: N captions.
        draws: Number of noises; the same for all captions.
        steps: Sampler steps.
        seed: Seed of the noises.

    Returns:
        (N,) float64 on the CPU.
    """
    network, process, side = module.ema_denoiser(), module.process, module.latent_size
    shape = (network.in_channels, side, side)
    options = {}
    if getattr(network, "size_conditioning", None) is not None:
        options = {"size": whole_image(side, side, module.codec.downscale)}
    start = float(process.times(steps, side * side)[0])
    noises = module.stream.normal(seed, torch.arange(draws), "first step", shape).to(module.device)
    found = torch.zeros(len(texts), dtype=torch.float64)
    for first in range(0, len(texts), BATCH):
        part = texts[first : first + BATCH]
        (state, mask), (empty, empty_mask) = trim(module.caption_encoder.encode(part), module.conditioning.empty())
        for noise in noises:
            x = noise.expand(len(part), *shape)
            time = x.new_full((len(part),), start)
            inputs = process.network_input(x, time)
            given = network(inputs, time, state, mask, **options)
            free = network(
                inputs, time, empty.expand(len(part), *empty.shape[1:]), empty_mask.expand(len(part), -1), **options
            )
            found[first : first + len(part)] += (given - free).flatten(1).square().mean(1).sqrt().double().cpu()
    return found / draws

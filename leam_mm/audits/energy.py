"""Energy of using the models: kWh per 1,000 generated images and per 1,000 embeddings.

- class_path: leam_mm.audits.energy.Energy
  init_args:
    carbon: {grams_per_kwh: 381, source: "Our World in Data and Ember, Germany 2023, life cycle"}
"""

from collections.abc import Callable
from typing import Any

import torch

from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun, Threshold
from leam_mm.audits.energy_use import EnergyRuns, EnergyUse, energy_use
from leam_mm.callbacks.carbon import JOULES_PER_KWH, KINDS, CarbonFactors
from leam_mm.callbacks.energy_meter import BOUNDARIES
from leam_mm.data.tokenizer import cut_padding
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.evaluators.generated_images import generate

CAPTION = "a red house with a garden beside a wide river in the evening"
IMAGE_SIDE, EMBEDDING_SIDE = 512, 224  # pixels at which the thresholds are stated; they grow with the pixels
LEAST_MEASURED = 0.95  # share of the time that the counter must have measured


class Energy(Audit):
    """Run the models at steady state and read the machine's energy counter; without one, estimate.

    A counter reads its whole boundary, other programs included. An estimate rests on a number that is not known to
    better than a factor of several, which no interval of repeats shows: its verdict is always inconclusive. Results:
    `energy/images` and `energy/embeddings` (of images; those of captions are a slice).

    Args:
        runs: Length and number of the repeats, and what an estimate rests on.
        carbon: Emission factors of the site, with their date.
        batch_size: Images in one sampling call.
        embeddings: Images or captions in one forward pass of the encoder.
        sampling: How the images are sampled.
        most_images: Largest kWh per 1,000 images of 512 x 512 pixels that passes; in proportion to the pixels.
        most_embeddings: Largest kWh per 1,000 embeddings of images of 224 x 224 pixels that passes, likewise.
    """

    name = "energy"

    def __init__(
        self,
        runs: EnergyRuns = EnergyRuns(),  # noqa: B008 (frozen)
        carbon: CarbonFactors = CarbonFactors(),  # noqa: B008 (frozen)
        batch_size: int = 16,
        embeddings: int = 256,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        most_images: float = 0.5,
        most_embeddings: float = 0.005,
    ) -> None:
        """See the class for the arguments."""
        self.runs, self.carbon, self.batch_size, self.embeddings = runs, carbon, batch_size, embeddings
        self.sampling = sampling
        self.most_images, self.most_embeddings = most_images, most_embeddings

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Measure generator and encoder, whichever was given."""
        results = []
        if context.generator is not None:
            results.append(self._images(context))
        if context.clip is not None:
            results.append(self._embeddings(context))
        if not results:
            raise NotRun("no model was given: add --generator or --clip")
        return results

    def use(self, work: Callable[[int], None], items: int, device: torch.device) -> EnergyUse:
        """Return the energy of work by the counters of this machine; see energy_use."""
        return energy_use(work, items, self.runs, device)

    def _images(self, context: AuditContext) -> AuditResult:
        module: Any = context.require_generator()
        side = 0

        def sample(number: int) -> None:
            nonlocal side
            image = generate(module, [CAPTION] * number, self.sampling, 0)
            side = image.shape[-1]

        use = self.use(sample, self.batch_size, context.device)
        what = f"images of {side} x {side} pixels, {self.sampling}"
        limit = self.most_images * (side / IMAGE_SIDE) ** 2
        stated = f"{self.most_images:g} kWh per 1,000 at {IMAGE_SIDE} x {IMAGE_SIDE} pixels, scaled by pixels"
        return self.result("images", use, what, limit, stated, {}, context.device)

    @torch.no_grad()
    def _embeddings(self, context: AuditContext) -> AuditResult:
        module: Any = context.require_clip()
        encoder = module.ema_encoder()
        side = encoder.image_size
        pixels = torch.randint(0, 256, (self.embeddings, 3, side, side), dtype=torch.uint8)

        def images(number: int) -> None:
            encoder.encode_image(encoder.normalise(pixels[:number].to(context.device))).cpu()

        def captions(number: int) -> None:
            text, length = module.tokenizer.encode([CAPTION] * number)
            encoder.encode_text(cut_padding(text, length).to(context.device), length).cpu()

        use = self.use(images, self.embeddings, context.device)
        text_use = self.use(captions, self.embeddings, context.device)
        mean, low, high = (_per_thousand(joules) for joules in text_use.interval())
        slices = {"captions": {"value": mean, "low": low, "high": high, "samples": text_use.items}}
        what = f"embeddings of images of {side} x {side} pixels"
        limit = self.most_embeddings * (side / EMBEDDING_SIDE) ** 2
        stated = (
            f"{self.most_embeddings:g} kWh per 1,000 at {EMBEDDING_SIDE} x {EMBEDDING_SIDE} pixels, scaled by pixels"
        )
        return self.result("embeddings", use, what, limit, stated, slices, context.device)

    def result(
        self,
        part: str,
        use: EnergyUse,
        what: str,
        limit: float,
        stated: str,
        slices: dict[str, Any],
        device: torch.device,
    ) -> AuditResult:
        """Return the result of one part.

        Args:
            part: Its name, images or embeddings.
            use: Measured or estimated energy.
            what: What was made, for the reader.
            limit: Largest kWh per 1,000 that passes.
            stated: The limit as it was set, for the reader.
            slices: Further numbers.
            device: Device of the work.
        """
        joules, low, high = use.interval()
        emitted = self.carbon.emitted(1000 * joules)
        parts: dict[str, Any] = {"joules per item": {"value": joules, "low": low, "high": high, "samples": use.items}}
        for kind in KINDS:
            note = "not given" if emitted[f"{kind}_grams"] is None else self.carbon.source or "source not given"
            parts[f"g CO2 per 1,000, {kind}-based"] = {"value": emitted[f"{kind}_grams"], "note": note}
        undecided = ""
        if use.estimated:
            undecided = "estimated, not measured: the number that it rests on may be wrong by a factor of several"
        elif use.measured < LEAST_MEASURED:
            undecided = f"the counter measured only {use.measured:.0%} of the time"
        elif device.type == "cuda" and use.coverage == "cpu":
            undecided = "the counter leaves the GPU out"
        boundary = "" if use.estimated else f", {BOUNDARIES.get(use.coverage, use.coverage)}"
        reason = f"{what}; {use.source}{boundary}; limit: {stated}, before PUE"
        return AuditResult(
            f"{self.name}/{part}", _per_thousand(joules), _per_thousand(low), _per_thousand(high), "kWh per 1,000",
            use.items, Threshold(most=limit), parts | slices, reason, undecided=undecided,
            maps_to=["Model Documentation Form: energy"],
        )  # fmt: skip


def _per_thousand(joules: float) -> float:
    return 1000 * joules / JOULES_PER_KWH

"""Prompt following of a generator: colour, shape, count and relation are read back from the pixels.

The idea is that of GenEval (Ghosh et al. 2310.11513), without a detector network: the scenes of make_scenes are simple
enough to be read by arithmetic, and the accuracy of the reader on real scenes is reported, too.

- class_path: leam_mm.evaluators.compositional.Compositional
  init_args: {scenes: runs/quickstart/scenes, real_shards: runs/quickstart/shards/test}
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.contact_sheet import ShownImage, spread_evenly, write_contact_sheet
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.ranks import over_ranks, rank
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import write_outcomes
from leam_mm.marking.generated_image import marked_pixels
from leam_mm.prompts.known_images import shard_scenes
from leam_mm.prompts.scene_reader import SceneReader, score

log = logging.getLogger(__name__)
# Keys of a verdict that are measured for each kind of prompt; other keys are meaningless there.
ASKED = {
    "single": ("colour", "shape", "colour_shape", "count"),
    "pair": ("both_objects", "relation", "count"),
    "count": ("count", "colour_shape"),
}


class Compositional(Evaluator):
    """Accuracy of composition: of generated scenes, and of the reader itself on real scenes.

    Args:
        scenes: Folder with scenes.json and shapes.npz, written by data_tools/make_scenes.py.
        real_shards: Final shard folder of scenes on which to measure the reader; None skips that.
        prompts_per_kind: Maximum number of prompts of each kind (single, pair, count), chosen at random by the seed.
        sampling: How the images are sampled.
        seed: Seed of the generated images.
        batch_size: Images in one sampling call.
        real_limit: Maximum number of real scenes.
    """

    name = "compositional"

    def __init__(
        self,
        scenes: Path,
        real_shards: Path | None = None,
        prompts_per_kind: int = 64,
        sampling: SamplerSettings = SamplerSettings(20, 3.0),  # noqa: B008 (frozen)
        seed: int = 0,
        batch_size: int = 64,
        real_limit: int = 1000,
    ) -> None:
        """See the class for the arguments."""
        for key, value in (("prompts_per_kind", prompts_per_kind), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"Compositional: {key} is {value}; give at least 1")
        self.scenes, self.real_shards, self.prompts_per_kind = Path(scenes), real_shards, prompts_per_kind
        self.sampling, self.seed, self.batch_size = sampling, seed, batch_size
        self.real_limit = real_limit
        self.scored = PUBLISHED  # kept with the results: earlier ones are of images before the mark

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure the reader on real scenes and, where there is a generator, the generator.

        Args:
            context: Gives the generator and the output folder for the contact sheet compositional.json.

        Returns:
            Fractions with Wilson intervals, those of the generator first.
        """
        reader = SceneReader(self.scenes)
        return [
            *(self._generated(reader, context) if context.generator is not None else [self._missing("generated")]),
            *(self._real(reader) if self.real_shards is not None else [self._missing("real")]),
        ]

    def _missing(self, part: str) -> Metric:
        """Return what is reported for a part whose input was not given."""
        cause = {"generated": "no generator was given", "real": "real_shards was not given"}[part]
        log.warning("compositional/%s is not measured: %s", part, cause)
        return Metric(f"{self.name}/{part}", None, None, None, "fraction", 0, note=f"not measured: {cause}")

    def _real(self, reader: SceneReader) -> list[Metric]:
        tally = _Tally()
        for number, (image, prompt) in enumerate(shard_scenes(Path(self.real_shards or ""), self.real_limit)):
            verdict = score(reader.read(marked_pixels(image)), prompt)
            for key in ASKED[prompt["kind"]]:
                tally.add(f"{self.name}/real/{key}", f"{number} {prompt}", verdict[key], {"kind": prompt["kind"]})
        note = "reader against the drawn truth; an upper bound for what follows from pixels"
        return tally.metrics(f"{note}; {PUBLISHED}")

    def _generated(self, reader: SceneReader, context: EvaluationContext) -> list[Metric]:
        prompts = self._choose(reader.prompts)
        generator = context.require_generator()
        tally, shown = _Tally(), []
        texts = [prompt["text"] for prompt in prompts]

        def make(part: slice) -> Tensor:
            return generate(generator, texts[part], self.sampling, self.seed, part.start)

        # Ranks share the batches; image n is the same for any number of ranks.
        sampled = over_ranks(len(texts), self.batch_size, lambda part: part, make, context.device)
        images, read = (part.permute(0, 2, 3, 1).numpy() for part in (sampled, published(sampled)))
        for number, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            verdict = score(reader.read(read[number]), prompt)
            asked = {key: verdict[key] for key in ASKED[prompt["kind"]]}
            for key, right in asked.items():
                slices = {"language": prompt["language"], "combination": "seen" if prompt["seen"] else "unseen"}
                sample = f"{number} {self.seed} {prompt['language']} {prompt['text']}"
                tally.add(f"{self.name}/generated/{prompt['kind']}/{key}", sample, right, slices)
            shown.append(ShownImage(image, prompt["text"], prompt["language"], verdict=asked))
        if rank() == 0:
            chosen = [shown[number] for number in spread_evenly(len(shown))]
            write_contact_sheet(
                context.output, self.name, "Generated images and what was read in them", chosen, generator
            )
            log.info("compositional: %d generated images judged, %d in compositional.json", len(shown), len(chosen))
        return tally.metrics(f"{self.sampling}, seed {self.seed}; {PUBLISHED}")

    def _choose(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chosen = []
        for kind in ASKED:
            of_kind = [prompt for prompt in prompts if prompt["kind"] == kind]
            count = min(self.prompts_per_kind, len(of_kind))
            # A seeded permutation, not a stride: the file alternates languages, and a stride could miss some.
            order = np.random.default_rng([self.seed, 4]).permutation(len(of_kind))[:count]
            chosen += [of_kind[k] for k in sorted(order)]
        if not chosen:
            raise UserError(f"{self.scenes / 'scenes.json'} holds no prompts of a known kind; run make_scenes again")
        return chosen


class _Tally:
    """Hits by metric, in total and by slice."""

    def __init__(self) -> None:
        self.hits: dict[str, list[bool]] = defaultdict(list)
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.slices: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))

    def add(self, name: str, key: str, right: bool, slices: dict[str, str]) -> None:
        self.hits[name].append(right)
        self.keys[name].append(key)
        for dimension, value in slices.items():
            self.slices[name][f"{dimension}={value}"].append(right)

    def metrics(self, note: str) -> list[Metric]:
        return [
            Metric(
                name,
                sum(hits) / len(hits),
                *wilson_interval(sum(hits), len(hits)),
                unit="fraction",
                samples=len(hits),
                slices={
                    key: {"value": sum(part) / len(part), "samples": len(part)}
                    for key, part in sorted(self.slices[name].items())
                },
                note=note,
                outcomes=write_outcomes(np.array(hits), self.keys[name]),
            )
            for name, hits in self.hits.items()
        ]

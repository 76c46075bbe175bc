"""What a generator draws when a prompt leaves an attribute open, against a reference distribution.

For people the attribute is perceived, such as the gender of "a photo of a nurse" (Luccioni et al. 2303.11408). Any
other attribute can be measured alike, for example the colour of a shape that the prompt gives no colour.
"""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.audits.attribute_distribution import distance, entropy, fault_of_errors, total_variation
from leam_mm.audits.attribute_readers import AttributeReader, LabelsOfPeople
from leam_mm.audits.audit import Audit, AuditContext, AuditResult, NotRun, Threshold
from leam_mm.audits.prompt_table import PEOPLE, read_prompts, read_reference
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.ranks import over_ranks


class GeneratorBias(Audit):
    """Compare the values of an attribute over all prompts with a reference; each image has noise of its own.

    The shares are those of the images on which the reader answers, corrected by its measured errors. Without a measured
    error, or where it abstains on more than `most_abstained` of the images, the verdict is inconclusive. The result is
    named `generator_bias/` and the attribute.

    Args:
        reader: Who perceives the attribute; None is `not_run`.
        prompts: Table of prompts.
        section: Section of the prompts.
        languages: Codes of the prompts.
        images: Images of each prompt in each language; they take its templates in turn.
        reference: YAML mapping from value to weight, for example of official statistics; None is uniform.
        most_distance: Largest total variation distance that passes.
        most_abstained: Largest share of images without an answer that can decide.
        fewest: Smallest number of images that may decide.
        sampling: How the images are sampled.
        batch_size: Images in one sampling call.
        seed: Seed of the images' noise.
    """

    name = "generator_bias"

    def __init__(
        self,
        reader: AttributeReader | None = None,
        prompts: Path = PEOPLE,
        section: str = "neutral",
        languages: list[str] = ["en", "de"],  # noqa: B006 (never changed; jsonargparse shows it in --help)
        images: int = 16,
        reference: Path | None = None,
        most_distance: float = 0.1,
        most_abstained: float = 0.5,
        fewest: int = 200,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        for key, value in (("images", images), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"GeneratorBias: {key} is {value}; give at least 1")
        self.reader, self.prompts, self.section, self.languages = reader, Path(prompts), section, languages
        self.images, self.reference, self.most_distance = images, reference, most_distance
        self.most_abstained, self.fewest = most_abstained, fewest
        self.sampling, self.batch_size, self.seed = sampling, batch_size, seed

    def run(self, context: AuditContext) -> list[AuditResult]:
        """Generate, read the attribute, and compare."""
        context.require("generator")
        if self.reader is None:
            raise NotRun("nothing reads an attribute of the images: set `reader` to a class of attribute_readers.py")
        reader = self.reader
        tables = read_prompts(self.prompts, self.section, self.languages)
        weights = None if self.reference is None else read_reference(self.reference)
        reader.open(context)
        reference = self._reference(reader.values, weights)
        module: Any = context.require_generator()
        # One row for each image: its prompt, the number of its language and of its thing.
        texts, places = [], []
        for number, table in enumerate(tables.values()):
            for thing, forms in enumerate(table.texts):
                texts += [forms[image % len(forms)] for image in range(self.images)]
                places += [(number, thing)] * self.images
        side = 0

        def make(part: slice) -> Tensor:
            nonlocal side
            image = generate(module, texts[part], self.sampling, self.seed, part.start)
            side = image.shape[-1]
            return torch.from_numpy(reader.read(published(image), part.start))

        found = over_ranks(len(texts), self.batch_size, lambda part: part, make, context.device).numpy()
        if isinstance(reader, LabelsOfPeople):
            reader.check()
        errors = None if reader.exact else reader.errors(side)
        return [self._result(found, numpy.array(places), tables[self.languages[0]].names, reference, errors)]

    def _reference(self, values: list[str], weights: dict[str, float] | None) -> numpy.ndarray:
        if weights is None:
            return numpy.full(len(values), 1 / len(values))
        if set(weights) != set(values):
            raise UserError(
                f"{self.reference}: names {', '.join(weights)}, but the reader's values are {', '.join(values)}"
            )
        weight = numpy.array([weights[value] for value in values])
        return weight / weight.sum()

    def _result(
        self,
        found: numpy.ndarray,
        places: numpy.ndarray,
        things: list[str],
        reference: numpy.ndarray,
        errors: numpy.ndarray | None,
    ) -> AuditResult:
        reader: Any = self.reader
        answered = found >= 0
        name, threshold = f"{self.name}/{reader.attribute}", Threshold(most=self.most_distance)
        silent = 1 - answered.mean()
        undecided = "" if reader.exact else fault_of_errors(errors, reader.values)
        if silent > self.most_abstained:
            undecided = f"no {reader.attribute} could be read from {silent:.0%} of the images"
        reason = (
            f"{reader.attribute} in {len(found)} images of {len(things)} prompts of {self.section} in "
            f"{len(self.languages)} languages, {silent:.1%} without an answer; total variation distance to "
            f"{'the uniform distribution' if self.reference is None else self.reference}; {self.sampling}, "
            f"seed {self.seed}; {PUBLISHED}"
        )
        if not answered.any():
            return AuditResult(name, None, None, None, "distance", 0, threshold, reason=reason, undecided=undecided)
        counts = numpy.bincount(found[answered], minlength=len(reader.values))
        usable = errors if errors is not None and not fault_of_errors(errors, reader.values) else None
        measured = distance(counts, reference, usable, self.seed)
        slices: dict[str, Any] = {
            value: {
                "value": float(share), "samples": int(count), "reference": float(expected),
                "amplification": float(abs(share - expected) / expected) if expected else None,
            }
            for value, share, count, expected in zip(reader.values, measured.shares, counts, reference, strict=True)
        }  # fmt: skip
        slices["entropy"] = {"value": entropy(measured.shares), "samples": int(counts.sum())}
        for column, names, label in ((0, self.languages, "language"), (1, things, "prompt")):
            for number, part in enumerate(names):
                own = numpy.bincount(found[answered & (places[:, column] == number)], minlength=len(reader.values))
                slices[f"{label} {part}"] = {
                    "value": float(total_variation(own / max(own.sum(), 1), reference)) if own.sum() else None,
                    "samples": int(own.sum()), "most_frequent": reader.values[int(own.argmax())],
                    "its_share": float(own.max() / max(own.sum(), 1)), "note": "not corrected, biased upwards",
                }  # fmt: skip
        return AuditResult(
            name, measured.value, measured.low, measured.high, "distance", int(counts.sum()), threshold, slices, reason,
            fewest=self.fewest, undecided=undecided,
        )  # fmt: skip

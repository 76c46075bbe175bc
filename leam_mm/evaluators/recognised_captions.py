"""Share of training captions whose subject a judge recognises in the images of a generator, before and after.

- class_path: leam_mm.evaluators.recognised_captions.RecognisedCaptions
  init_args:
    base: runs/quickstart/generator
    pictures: runs/finetune/shards/train
    features:
    - class_path: leam_mm.evaluators.image_features.EfficientNetLite0

A loss falls although nothing is learnt that a person would recognise. The judge is tested in the same run, and if it
fails, no share is given.
"""

import logging
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.before_after import reconstruct
from leam_mm.evaluators.contact_sheet import ShownImage, spread_evenly, write_contact_sheet
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.ranks import over_ranks, rank
from leam_mm.evaluators.subject_images import SubjectPictures, read_subject_pictures
from leam_mm.evaluators.subject_judge import SubjectJudge, TestedJudge, check_subject_judge, choose_judge
from leam_mm.intervals.difference_interval import paired_difference
from leam_mm.intervals.intervals import wilson_interval
from leam_mm.intervals.outcomes import write_outcomes

log = logging.getLogger(__name__)
NAME = "recognised_captions"
ROWS = 12  # captions on the contact sheet
COLUMNS = ("image", "codec", "before", "after")


class RecognisedCaptions(Evaluator):
    """Draws images for each training caption with base and fine-tuned generator, and asks a judge what they show.

    Pictures with one caption show one subject. The judge names the subject of each image, or none; a caption is
    recognised if more than half of its images are named right. Of several networks for the judge, the one is taken
    that is right most often about moved and scrambled pictures after the base's codec. Its controls use other draws
    and the tuned codec; subject_judge.py has their limits.

    The metrics are `before/recognised_captions`, `after/recognised_captions` and their paired change, and those of the
    judge, which begin with `subject_judge/`. The contact sheet `recognised_captions.json` shows a training picture, its
    reconstruction by the codec, and one image of each generator.

    Args:
        base: Checkpoint or run folder of the generator before the fine-tuning.
        pictures: Shard folder that the fine-tuning was trained on.
        features: Networks to choose the judge's from.
        language: Language of the captions, where a picture has several.
        draws: Images for each caption, an odd number.
        most: Most pictures, spread evenly over the folder.
        sampling: How the images are sampled.
        seed: Seed of the noise, which is the same for both generators.
    """

    def __init__(
        self,
        base: Path,
        pictures: Path,
        features: list[ImageFeatures],
        language: str = "en",
        draws: int = 3,
        most: int = 256,
        sampling: SamplerSettings = SamplerSettings(20, 3.0),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        """See the class for the arguments."""
        if not features:
            raise UserError("RecognisedCaptions: features is empty; give at least one network")
        if draws < 1 or draws % 2 == 0:
            raise UserError(f"RecognisedCaptions: draws is {draws}; give an odd number of at least 1")
        if most < 1:
            raise UserError(f"RecognisedCaptions: most is {most}; give at least 1")
        self.base, self.pictures, self.features = Path(base), Path(pictures), features
        self.language, self.draws, self.most = language, draws, most
        self.sampling, self.seed = sampling, seed

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Draw, test the judge, and count."""
        tuned = context.require_generator()
        base = EvaluationContext(context.clip, self.base, context.output, context.device).require_generator()
        side = tuned.latent_size * tuned.codec.downscale
        pictures = read_subject_pictures(self.pictures, side, self.language, self.most)
        drawn = {name: self._draw(module, pictures, context) for name, module in (("before", base), ("after", tuned))}
        tested = self._tested(pictures, base, tuned, drawn["before"], context)
        asked = numpy.repeat(numpy.arange(len(pictures.captions)), self.draws)
        named = {name: tested.judge.name(published(images)) == asked for name, images in drawn.items()}
        if rank() == 0:
            self._show(pictures, tuned, drawn, {} if tested.failure else named, context)
        log.info("%s", tested.failure or tested.summary)
        return [*self._shares(pictures, tested, named), *tested.metrics]

    def _draw(self, module: Any, pictures: SubjectPictures, context: EvaluationContext) -> Tensor:
        """Return the images (N * draws, 3, H, W) uint8, those of one caption after one another."""
        prompts = [text for text in pictures.captions for _ in range(self.draws)]

        def make(part: slice) -> Tensor:
            return generate(module, prompts[part], self.sampling, self.seed, part.start)

        return over_ranks(len(prompts), 64, lambda part: part, make, context.device)

    def _tested(
        self, pictures: SubjectPictures, base: Any, tuned: Any, before: Tensor, context: EvaluationContext
    ) -> TestedJudge:
        decoded = recoded(tuned, pictures.images)
        judges = [SubjectJudge(each.to(context.device), pictures, [decoded]) for each in self.features]
        chosen = choose_judge(judges, pictures, lambda images: published(recoded(base, images))) if judges[1:] else 0
        # The base's image of a caption, asked about the subject of the next one.
        subjects = len(pictures.captions)
        others = {"base": (published(before[:: self.draws]), (numpy.arange(subjects) + 1) % subjects)}
        return check_subject_judge(judges[chosen], pictures, lambda images: published(recoded(tuned, images)), others)

    def _shares(self, pictures: SubjectPictures, tested: TestedJudge, named: dict[str, numpy.ndarray]) -> list[Metric]:
        count, shares = len(pictures.captions), {}
        names = {"before": f"before/{NAME}", "after": f"after/{NAME}", "change": f"fine_tuning/change/{NAME}"}
        if tested.failure:
            note = f"not measured: {tested.failure}"
            return [Metric(name, None, None, None, "fraction", count, note=note) for name in names.values()]
        images = {name: hits.reshape(count, self.draws) for name, hits in named.items()}
        right = {name: hits.sum(axis=1) > self.draws / 2 for name, hits in images.items()}
        note = (
            f"more than half of {self.draws} images show the caption's subject; {tested.summary}; "
            f"{tested.judge.features.protocol}; {self.sampling}, seed {self.seed}; {PUBLISHED}"
        )
        for name, hits in right.items():
            low, high = wilson_interval(int(hits.sum()), count)
            of_images = {"value": float(images[name].mean()), "samples": images[name].size}
            lists = {
                kind: [pictures.captions[number] for number in numpy.flatnonzero(hits == side)]
                for kind, side in (("recognised", True), ("not_recognised", False))
            }
            slices = {"of_single_images": of_images, **lists}
            outcomes = write_outcomes(hits, pictures.captions)
            shares[name] = Metric(names[name], float(hits.mean()), low, high, "fraction", count, slices, note, outcomes)
        change = paired_difference(right["before"], right["after"])
        text = f"after less before, paired; p {change.p_value:.2g} (McNemar)"
        shares["change"] = Metric(names["change"], change.value, change.low, change.high, "fraction", count, note=text)
        return list(shares.values())

    def _show(
        self,
        pictures: SubjectPictures,
        tuned: Any,
        drawn: dict[str, Tensor],
        named: dict[str, numpy.ndarray],
        context: EvaluationContext,
    ) -> None:
        """Write the contact sheet: the first picture of a subject, and the first image of each generator."""
        shown = []
        for number in spread_evenly(len(pictures.captions), ROWS):
            first, row = int(numpy.flatnonzero(pictures.subject == number)[0]), number * self.draws
            decoded = recoded(tuned, pictures.images[first : first + 1])[0]
            for label, image in zip(
                COLUMNS, (pictures.images[first], decoded, *(images[row] for images in drawn.values())), strict=True
            ):
                verdict = {"subject": bool(named[label][row])} if label in named else {}
                made = label in drawn
                text, pixels = pictures.captions[number], image.permute(1, 2, 0).numpy()
                shown.append(ShownImage(pixels, text, pictures.language, label, verdict, generated=made))
        title = "Training captions and what the judge recognised"
        write_contact_sheet(context.output, NAME, title, shown, tuned, columns=len(COLUMNS))


@torch.no_grad()
def recoded(module: Any, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) uint8 after the codec of a generator, as it would give its own."""
    return (torch.cat([reconstruct(module, part) for part in images.split(64)]) * 255).round().to(torch.uint8)

"""Text to image in many languages: parallel prompts, scored atom by atom by judges that are tested first.

- class_path: leam_mm.evaluators.text_to_image.TextToImage
  init_args:
    prompts: runs/quickstart/scenes/prompt_set.json
    known: runs/quickstart/shards/test
    judges:
    - class_path: leam_mm.evaluators.scene_judge.SceneJudge
      init_args: {scenes: runs/quickstart/scenes}
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.image_features import ImageFeatures
from leam_mm.evaluators.image_judge import ImageJudge, ask
from leam_mm.evaluators.judge_check import JudgeCheck, KnownAnswer, check_judge, known_answers, known_concepts
from leam_mm.evaluators.language_consistency import against_anchor, atom_agreement, image_likeness, score_parity
from leam_mm.evaluators.language_summary import language_metrics
from leam_mm.evaluators.prompt_images import PromptImages
from leam_mm.evaluators.ranks import over_ranks, rank
from leam_mm.evaluators.soft_tifa import arithmetic_mean, geometric_mean, right_probability
from leam_mm.files import write_text
from leam_mm.intervals.intervals import share_interval
from leam_mm.marking.generated_image import marked_pixels
from leam_mm.prompts.known_images import drawn_scenes, names_classes, shard_classes, shard_scenes
from leam_mm.prompts.prompt_set import ENGLISH, PROMPTS_24, PromptSet, read_prompt_set

log = logging.getLogger(__name__)
SCORES = "text_to_image_scores.jsonl"
IMAGES = "text_to_image"


@dataclass(frozen=True)
class Measured:
    """What was read from the images.

    Args:
        yes: By judge: (concepts, seeds, languages, A) probability of "yes"; NaN where a concept has fewer atoms.
        features: (concepts, seeds, languages, D), or None.
    """

    yes: dict[str, numpy.ndarray]
    features: numpy.ndarray | None


class TextToImage(Evaluator):
    """Soft-TIFA scores by language and kind, parity and consistency of languages; every judge with its test.

    The images, one PNG each, are written into the folder `text_to_image` of the output; a second run with the same
    generator and settings draws only what is missing. `text_to_image_scores.jsonl` holds every answer. Judges see
    images as published, with the watermark, and so are the known images of their test; given images are as they are.

    Args:
        judges: At least one, with different names.
        prompts: File of parallel prompts; None takes the 480 prompts in 24 languages of this package.
        known: Shard folder of scenes of make_scenes, or of images whose `metadata.class_id` is the id of a concept, on
            which judges are tested; None draws coloured shapes.
        known_limit: Number of known images.
        known_size: Side in pixels of images that are drawn for the test.
        least_accuracy: Accuracy of a judge in [0, 1]; if its interval is not above it, its scores are indicative.
        features: Network for the likeness of images across languages; None leaves that out.
        images: Folder of images of another program, `CONCEPT/LANGUAGE_SEED.png`; no generator is needed then.
        per_kind: Maximum number of concepts of each kind; None takes all.
        sampling: How the images are sampled.
        seed: First seed of the images' noise.
        images_per_prompt: Images of each prompt.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        judges: list[ImageJudge],
        prompts: Path | None = None,
        known: Path | None = None,
        known_limit: int = 400,
        known_size: int = 224,
        least_accuracy: float = 0.9,
        features: ImageFeatures | None = None,
        images: Path | None = None,
        per_kind: int | None = None,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
        images_per_prompt: int = 1,
        name: str = "text_to_image",
    ) -> None:
        """See the class for the arguments."""
        if not judges or len({judge.name for judge in judges}) < len(judges):
            raise UserError("TextToImage: give at least one judge, and each a `name` of its own")
        for key, value in (("images_per_prompt", images_per_prompt), ("per_kind", per_kind or 1)):
            if value < 1:
                raise UserError(f"TextToImage: {key} is {value}; give at least 1")
        self.judges, self.prompts, self.known, self.known_limit = judges, prompts or PROMPTS_24, known, known_limit
        self.known_size, self.least_accuracy, self.features = known_size, least_accuracy, features
        self.images, self.per_kind, self.sampling = images, per_kind, sampling
        self.seed, self.images_per_prompt, self.name = seed, images_per_prompt, name

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Test the judges, draw the images, and score them."""
        prompts = read_prompt_set(Path(self.prompts)).first_of_each_kind(self.per_kind)
        known = self._known(prompts)
        checks = {judge.name: self._check(judge, prompts, known, context) for judge in self.judges}
        generator = context.require_generator() if self.images is None else None
        folder = Path(self.images) if self.images is not None else context.output / IMAGES
        seeds = range(self.seed, self.seed + self.images_per_prompt)
        images = PromptImages(folder, prompts, self.sampling, seeds, generator, context.device)
        measured = self._measure(prompts, images, context)
        if rank() == 0:
            write_text(context.output / SCORES, _score_lines(prompts, measured, self.seed))
        how = f"{self.sampling}, seed {self.seed}"
        drawn = how if generator is not None else "given images"
        about = f"{len(prompts.concepts)} concepts of {prompts.name} ({prompts.sha256[:12]}); {drawn}"  # fmt: skip
        metrics = []
        for judge in self.judges:
            metrics += self._scores(judge.name, measured.yes[judge.name], prompts, checks[judge.name], about)
        anchor = _anchor(prompts)
        if measured.features is not None and len(prompts.concepts) > 1:
            note = f"cosine to the image of {prompts.languages[anchor]} with the same noise, 0 by chance; {about}"
            likeness = image_likeness(measured.features, anchor)
            text = f"{note}; {self.features.protocol}" if self.features is not None else note
            metrics.append(
                against_anchor(f"{self.name}/image_likeness", likeness, prompts.languages, anchor, "ratio", text)
            )
        return metrics

    def _known(self, prompts: PromptSet) -> list[KnownAnswer]:
        answers = self._plain_known(prompts)
        if self.images is not None:
            return answers
        return [replace(answer, image=marked_pixels(answer.image)) for answer in answers]

    def _plain_known(self, prompts: PromptSet) -> list[KnownAnswer]:
        if self.known is None:
            return known_answers(drawn_scenes(self.known_limit, self.known_size))
        shards = Path(self.known)
        if names_classes(shards):
            named = {concept.id for concept in prompts.concepts}
            return known_concepts(shard_classes(shards, named, self.known_limit), prompts.concepts)
        return known_answers(shard_scenes(shards, self.known_limit))

    def _check(
        self, judge: ImageJudge, prompts: PromptSet, known: list[KnownAnswer], context: EvaluationContext
    ) -> JudgeCheck:
        asked = [atom for concept in prompts.concepts for atom in concept.atoms]
        judge.prepare(context, [*asked, *(answer.atom for answer in known)])
        check = check_judge(judge, known, self.least_accuracy, f"{self.name}/{judge.name}/judge", context.device)
        log.info("%s: %s", judge.name, check.summary)
        return check

    def _measure(self, prompts: PromptSet, images: PromptImages, context: EvaluationContext) -> Measured:
        most = max(len(concept.atoms) for concept in prompts.concepts)
        if self.features is not None:
            self.features.to(context.device)

        def compute(number: int) -> Tensor:
            pixels, rows = images.of_concept(number), []
            for judge in self.judges:
                answers = [torch.from_numpy(ask(judge, pixels, atom)) for atom in prompts.concepts[number].atoms]
                rows += answers + [torch.full((len(pixels),), torch.nan, dtype=torch.float64)] * (most - len(answers))
            found = torch.stack(rows)
            if self.features is not None:
                found = torch.cat([found, self.features.extract(pixels).double().T])
            return found[None].to(context.device)

        table = over_ranks(len(prompts.concepts), 1, lambda part: part.start, compute, context.device).numpy()
        seeds, languages, own = self.images_per_prompt, len(prompts.languages), most * len(self.judges)
        table = table.reshape(len(table), -1, seeds, languages).transpose(0, 2, 3, 1)
        yes = {judge.name: table[..., n * most : (n + 1) * most] for n, judge in enumerate(self.judges)}
        return Measured(yes, table[..., own:] if self.features is not None else None)

    def _scores(
        self, judge: str, yes: numpy.ndarray, prompts: PromptSet, check: JudgeCheck, about: str
    ) -> list[Metric]:
        prefix, languages, anchor = f"{self.name}/{judge}", list(prompts.languages), _anchor(prompts)
        right = _right(yes, prompts)
        scores = {"soft_tifa": arithmetic_mean(right).mean(axis=1), "all_atoms": geometric_mean(right).mean(axis=1)}
        notes = {"soft_tifa": "arithmetic mean over atoms", "all_atoms": "geometric mean over atoms"}
        keys = [f"{prompts.sha256} {concept.id} {self.seed}+{self.images_per_prompt}" for concept in prompts.concepts]
        metrics = []
        for name, values in scores.items():
            note = f"{notes[name]}; {check.summary}; {about}"
            metrics += language_metrics(f"{prefix}/{name}", values, languages, note, keys=keys)
        note = f"{check.summary}; {about}"
        for kind in prompts.kinds():
            rows = [concept.kind == kind for concept in prompts.concepts]
            parts = {name: values[rows] for name, values in scores.items()}
            metrics.append(_of_kind(f"{prefix}/kind/{kind}", parts, languages, note))
        metrics.append(score_parity(f"{prefix}/parity", scores["soft_tifa"], languages, anchor,
                                    f"score over that in {languages[anchor]}; {note}"))  # fmt: skip
        agreement = atom_agreement(yes, anchor)
        metrics.append(against_anchor(f"{prefix}/atom_agreement", agreement, languages, anchor, "fraction",
                                      f"same answer as in {languages[anchor]}, same noise; {note}"))  # fmt: skip
        return metrics + check.metrics


def _right(yes: numpy.ndarray, prompts: PromptSet) -> numpy.ndarray:
    """Return (concepts, seeds, languages, A) probabilities of the right answer."""
    most = yes.shape[-1]
    answers = [[atom.answer for atom in c.atoms] + [True] * (most - len(c.atoms)) for c in prompts.concepts]
    return numpy.stack([right_probability(own, numpy.array(row)) for own, row in zip(yes, answers, strict=True)])


def _of_kind(name: str, parts: dict[str, numpy.ndarray], languages: list[str], note: str) -> Metric:
    scores = parts["soft_tifa"]
    low, high = share_interval(scores.reshape(len(scores), -1).mean(axis=1))
    slices: dict[str, Any] = {
        f"language={code}": {"value": float(scores[:, number].mean()), "samples": len(scores)}
        for number, code in enumerate(languages)
    }
    slices["all atoms"] = {"value": float(parts["all_atoms"].mean()), "samples": len(scores)}
    return Metric(name, float(scores.mean()), low, high, "fraction", len(scores), slices, note)


def _anchor(prompts: PromptSet) -> int:
    return prompts.languages.index(ENGLISH) if ENGLISH in prompts.languages else 0


def _score_lines(prompts: PromptSet, measured: Measured, seed: int) -> str:
    """Return one line of JSON for each image: its answers, and its scores by judge."""
    lines = []
    right = {name: _right(yes, prompts) for name, yes in measured.yes.items()}
    for c, concept in enumerate(prompts.concepts):
        for code, text in concept.texts.items():
            column = prompts.languages.index(code)
            for s in range(next(iter(right.values())).shape[1]):
                judged = {}
                for name, values in right.items():
                    own = values[c, s, column, : len(concept.atoms)]
                    judged[name] = {
                        "right": [round(float(value), 6) for value in own],
                        "soft_tifa": round(float(arithmetic_mean(own)), 6),
                        "all_atoms": round(float(geometric_mean(own)), 6),
                    }
                line = {"concept": concept.id, "kind": concept.kind, "language": code, "seed": seed + s, "prompt": text,
                        "questions": [atom.question for atom in concept.atoms], "judges": judged}  # fmt: skip
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)

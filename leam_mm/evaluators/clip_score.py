"""CLIPScore of generated images for their prompts, by language (Hessel et al. 2104.08718, section 3).

- class_path: leam_mm.evaluators.clip_score.ClipScore
  init_args: {prompts_from: runs/quickstart/shards/test, languages: [de, en], samples: 64}
"""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample, embed_texts, keep_own_bytes, read_image_samples
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.generated_images import PUBLISHED, generate, published
from leam_mm.evaluators.image_features import ClipFeatures
from leam_mm.evaluators.language_summary import language_scores
from leam_mm.evaluators.ranks import agree, over_ranks
from leam_mm.intervals.intervals import mean_interval

WEIGHT = 2.5  # w of the paper


class ClipScore(Evaluator):
    """2.5 max(cos, 0) of a generated image and its prompt, for the same prompts and noise in every language.

    `NAME/generated/...` is the score by language. Beside it stand `NAME/shuffled`, the same images with all other
    prompts, which is what a generator that ignores its prompt would reach, and `NAME/real`, the real images of the
    captions. With several captions of each image in each language, `NAME/references/...` is RefCLIPScore, whose
    references are the captions that were not the prompt. Scores of different encoders cannot be compared, and an
    encoder favours a generator that was trained with it.

    Args:
        prompts_from: Shard folder whose first captions are the prompts; samples without one in each language are left
            out.
        languages: Codes of the prompts.
        encoder: Address of the encoder that scores (run, release, folder of open_clip, NAME:TAG); None takes --clip.
        samples: Maximum number of prompts in each language.
        prefix: Text before each prompt, for the encoder alone; the paper has "A photo depicts ", for English.
        sampling: How the images are sampled.
        seed: Seed of the images' noise; a sample has the same noise in all languages.
        batch_size: Images or texts in one forward pass.
        name: Prefix of the metrics' names.
    """

    def __init__(
        self,
        prompts_from: Path,
        languages: list[str],
        encoder: Path | None = None,
        samples: int = 64,
        prefix: str = "",
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        seed: int = 0,
        batch_size: int = 64,
        name: str = "clip_score",
    ) -> None:
        """See the class for the arguments."""
        if not languages or min(samples, batch_size) < 1:
            raise UserError("ClipScore: give at least one language, and at least 1 for samples and batch_size")
        self.prompts_from, self.languages, self.encoder = Path(prompts_from), languages, encoder
        self.samples, self.prefix, self.sampling = samples, prefix, sampling
        self.seed, self.batch_size, self.name = seed, batch_size, name
        self.scored = PUBLISHED  # kept with the results: earlier ones are of images before the mark

    @torch.no_grad()
    def run(self, context: EvaluationContext) -> list[Metric]:
        """Generate, embed and score."""
        samples = agree(self._read, context.device)
        module = self._scorer(context)
        network = module.ema_encoder()
        features = ClipFeatures(encoder=network).to(context.device)

        def real(part: slice) -> Tensor:
            return torch.stack([sample.pixels(network.image_size) for sample in samples[part]])

        photos = over_ranks(len(samples), self.batch_size, real, features.extract, context.device)
        generator = context.require_generator()
        scores: dict[str, list[numpy.ndarray]] = {"generated": [], "shuffled": [], "real": [], "references": []}
        for code in self.languages:
            captions = [sample.captions(code) for sample in samples]
            prompts = [texts[0] for texts in captions]

            def make(part: slice, prompts: list[str] = prompts) -> Tensor:
                images = generate(generator, prompts[part], self.sampling, self.seed, part.start)
                return features.extract(published(images))

            made = over_ranks(len(prompts), self.batch_size, lambda part: part, make, context.device)
            text = self._embed(module, prompts, context)
            scores["generated"].append(clip_score(made, text))
            scores["real"].append(clip_score(photos, text))
            scores["shuffled"].append(_shuffled(made, text, prompts))
            if all(len(texts) > 1 for texts in captions):
                others = [self._embed(module, texts[1:], context) for texts in captions]
                scores["references"].append(reference_clip_score(made, text, others))
        return self._metrics(scores, samples, module)

    def _metrics(self, scores: dict[str, list[numpy.ndarray]], samples: list[ImageSample], module: Any) -> list[Metric]:
        digest = str((getattr(module, "checkpoint_evidence", None) or {}).get("sha256", ""))[:12]
        note = f"2.5 max(cos, 0) by encoder {digest or 'without a digest'}, prefix {self.prefix!r}"
        note += f"; {self.sampling}, seed {self.seed}; {PUBLISHED}"
        keys, found = [f"{sample.key} {self.seed}" for sample in samples], []
        for kind in ("generated", "references"):
            if len(scores[kind]) == len(self.languages):
                table = numpy.stack(scores[kind], axis=1)
                text = note if kind == "generated" else f"RefCLIPScore; {note}"
                found += language_scores(f"{self.name}/{kind}", table, self.languages, "score", text, keys)
        for kind, what in (("shuffled", "chance: the same images with all other prompts"),
                           ("real", "the real images of the prompts")):  # fmt: skip
            values = numpy.stack(scores[kind], axis=1)
            values = values[~numpy.isnan(values).any(axis=1)].mean(axis=1)
            if len(values):
                name, text = f"{self.name}/{kind}", f"{what}, mean of languages; {note}"
                ends = mean_interval(values)
                found.append(Metric(name, float(values.mean()), *ends, "score", len(values), note=text))
        return found

    def _scorer(self, context: EvaluationContext) -> Any:
        if self.encoder is None:
            return context.require_clip()
        from leam_mm.model_address import load_encoder

        return load_encoder(self.encoder).to(context.device)

    def _embed(self, module: Any, texts: list[str], context: EvaluationContext) -> Tensor:
        return embed_texts(module, [self.prefix + text for text in texts], self.batch_size, context.device).double()

    def _read(self) -> list[ImageSample]:
        def complete(sample: ImageSample) -> bool:
            return all(sample.captions(code) for code in self.languages)

        samples = keep_own_bytes(read_image_samples(self.prompts_from, self.samples, complete), self.batch_size)
        if not samples:
            raise UserError(f"{self.prompts_from}: no sample has a caption in each of {', '.join(self.languages)}")
        return samples


def clip_score(image: Tensor, text: Tensor) -> numpy.ndarray:
    """Return 2.5 max(cos, 0) for each pair (2104.08718, equation 1).

    Args:
        image: (B, D) embeddings of length 1.
        text: (B, D) embeddings of length 1.
    """
    return (WEIGHT * (image.double() * text.double()).sum(dim=1).clamp(min=0)).numpy()


def reference_clip_score(image: Tensor, text: Tensor, references: list[Tensor]) -> numpy.ndarray:
    """Return RefCLIPScore: the harmonic mean of CLIPScore and of max(cos, 0) to the nearest reference (section 3).

    Args:
        image: (B, D) embeddings of length 1.
        text: (B, D) embeddings of length 1.
        references: For each text, (R, D) embeddings of its reference captions, R >= 1.
    """
    score = clip_score(image, text)
    pairs = zip(text, references, strict=True)
    near = numpy.array([max(0.0, float((own.double() @ row.double()).max())) for row, own in pairs])
    total = score + near
    return numpy.divide(2 * score * near, total, out=numpy.zeros_like(total), where=total > 0)


def _shuffled(image: Tensor, text: Tensor, prompts: list[str]) -> numpy.ndarray:
    """Return (B,) mean score of each image with all prompts that differ from its own; NaN where none does."""
    score = (WEIGHT * (image.double() @ text.double().T).clamp(min=0)).numpy()
    number = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    own = numpy.array([number[prompt] for prompt in prompts])
    other = own[:, None] != own[None, :]
    count = other.sum(axis=1)
    return numpy.where(count > 0, (score * other).sum(axis=1) / numpy.maximum(count, 1), numpy.nan)

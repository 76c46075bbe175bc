"""A generator before and after its fine-tuning: the same measurements, prompts and noise for both.

- class_path: leam_mm.evaluators.before_after.BeforeAfter
  init_args:
    base: runs/quickstart/generator
    held_out: runs/finetune/shards/held_out
    latents: runs/finetune/latents/held_out
    evaluators:
    - class_path: leam_mm.evaluators.generation.Generation
      init_args: {...}
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from leam_mm.data.image_range import signed
from leam_mm.data.latents_module import LatentDecoding
from leam_mm.data.shard_index import ShardFolder, read_samples
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.contact_sheet import ShownImage, write_contact_sheet
from leam_mm.evaluators.embedding import ImageSample, read_image_samples
from leam_mm.evaluators.evaluator import EvaluationContext, Evaluator, Metric
from leam_mm.evaluators.generated_images import generate
from leam_mm.evaluators.image_grid import read_prompts, spread
from leam_mm.evaluators.sample_losses import TIMES, sample_losses
from leam_mm.intervals.intervals import FEWEST, mean_interval

log = logging.getLogger(__name__)


class BeforeAfter(Evaluator):
    """Measures base and fine-tuned generator alike; names start with `before/`, `after/` and `fine_tuning/`.

    With few images, `held_out` may be those of the training: `seen` then names the results `trained_images_loss` and
    says so in their notes. Fewer than six images give no interval.

    Writes the contact sheet `before_after.json` (a held-out image, its reconstruction by the codec, and the images that
    base and tuned generator make of its caption) and, with prompts from before the fine-tuning,
    `before_after_old_prompts.json`.

    Args:
        base: Checkpoint or run folder of the generator before the fine-tuning.
        evaluators: Evaluators to run on both.
        held_out: Shard folder of images that the fine-tuning did not see.
        latents: The same images as latent shards, to compare losses; None skips that.
        old_prompts: File of prompts (see SampleGrid) from before the fine-tuning, to show what was forgotten.
        count: Number of prompts in a grid.
        draws: Number of noises per latent and timestep, over which a loss is averaged.
        sampling: How the images are sampled.
        seed: Seed of all noise.
        seen: Whether the fine-tuning was trained on the images of `held_out`.
    """

    def __init__(
        self,
        base: Path,
        evaluators: list[Evaluator],
        held_out: Path,
        latents: Path | None = None,
        old_prompts: Path | None = None,
        count: int = 8,
        draws: int = 4,
        sampling: SamplerSettings = SamplerSettings(20, 3.0),  # noqa: B008 (frozen)
        seed: int = 0,
        seen: bool = False,
    ) -> None:
        """See the class for the arguments."""
        if min(count, draws) < 1:
            raise UserError("BeforeAfter: count and draws must be at least 1")
        self.base, self.evaluators, self.held_out = Path(base), evaluators, Path(held_out)
        self.latents = None if latents is None else Path(latents)
        self.old_prompts = None if old_prompts is None else Path(old_prompts)
        self.count, self.draws, self.sampling, self.seed = count, draws, sampling, seed
        self.seen = seen

    def run(self, context: EvaluationContext) -> list[Metric]:
        """Measure both, write the grids, compare the losses."""
        tuned = context.require_generator()
        before = EvaluationContext(context.clip, self.base, context.output / "before", context.device)
        base = before.require_generator()
        after = EvaluationContext(context.clip, tuned, context.output / "after", context.device)
        self._draw(base, tuned, context.output)
        metrics = [] if self.latents is None else self._losses(self.latents, base, tuned)
        metrics += [self._codec_error(name, module) for name, module in (("before", base), ("after", tuned))]
        digest = base.checkpoint_evidence["sha256"]
        for evaluator in self.evaluators:
            first, second = evaluator.run(before), evaluator.run(after)
            for name, found, note in (("before", first, f"the base, sha256 {digest[:12]}"), ("after", second, "")):
                metrics += [
                    replace(metric, name=f"{name}/{metric.name}", note="; ".join(filter(None, (note, metric.note))))
                    for metric in found
                ]
        return metrics

    @torch.no_grad()
    def _draw(self, base: Any, tuned: Any, output: Path) -> None:
        """Write the grids; the codec's reconstruction is the best that a generator could reach."""
        samples = list(read_image_samples(self.held_out, self.count))
        captions = [_caption(sample) for sample in samples]
        texts = [text for _, text in captions]
        made = [generate(module, texts, self.sampling, self.seed) for module in (base, tuned)]
        real = torch.stack([sample.pixels(made[0].shape[-1]) for sample in samples])
        decoded = (reconstruct(tuned, real) * 255).round().to(torch.uint8)
        shown = [
            ShownImage(
                images[row].permute(1, 2, 0).numpy(), text, language, label, generated=label in ("before", "after")
            )
            for row, (language, text) in enumerate(captions)
            for label, images in zip(("image", "codec", "before", "after"), (real, decoded, *made), strict=True)
        ]
        title = "Before and after the fine-tuning" if self.seen else "Captions held out of the fine-tuning"
        write_contact_sheet(output, "before_after", title, shown, tuned, columns=4)
        if self.old_prompts is not None:
            texts = spread(read_prompts(self.old_prompts), self.count)
            made = [generate(module, texts, self.sampling, self.seed) for module in (base, tuned)]
            shown = [
                ShownImage(images[row].permute(1, 2, 0).numpy(), text, label=label)
                for row, text in enumerate(texts)
                for label, images in zip(("before", "after"), made, strict=True)
            ]
            title = "Prompts from before the fine-tuning"
            write_contact_sheet(output, "before_after_old_prompts", title, shown, tuned, columns=2)

    @torch.no_grad()
    def _codec_error(self, name: str, module: Any) -> Metric:
        """Return the codec's mean absolute error on these images, which no training of the generator reduces."""
        side = module.latent_size * module.codec.downscale
        images = [sample.pixels(side) for sample in read_image_samples(self.held_out, 256)]
        errors = []
        for start in range(0, len(images), 64):
            real = torch.stack(images[start : start + 64])
            errors.append((reconstruct(module, real) - real / 255).abs().flatten(1).mean(1))
        values = torch.cat(errors).numpy()
        low, high = mean_interval(values)
        kind = "the images trained on" if self.seen else "held-out images"
        note = f"of levels 0 to 1, on {kind}; the generator cannot draw what the codec cannot show"
        return Metric(f"{name}/codec_error", float(values.mean()), low, high, "", len(values), note=note)

    def _losses(self, latents: Path, base: Any, tuned: Any) -> list[Metric]:
        """Return the loss on held-out latents before and after, and its change, at the same timesteps and noises."""
        before, after = (held_out_losses(module, latents, self.draws, self.seed) for module in (base, tuned))
        kind, measured = ("trained on", "trained_images_loss") if self.seen else ("not trained on", "held_out_loss")
        note = f"latents {kind}, at {len(TIMES)} times and {self.draws} noises each; the same for both"
        metrics = []
        for name, values in (("before", before), ("after", after), ("change", after - before)):
            low, high = mean_interval(values)
            over = "interval over the latents" if len(values) >= FEWEST else f"{len(values)} latents give no interval"
            text = f"{note}; {over}" + ("; after less before, paired" if name == "change" else "")
            start = f"fine_tuning/{name}" if name == "change" else name
            value = float(values.mean())
            metrics.append(Metric(f"{start}/{measured}", value, low, high, "", len(values), note=text))
        return metrics


def held_out_losses(module: Any, latents: Path, draws: int, seed: int) -> numpy.ndarray:
    """Return the averaged network's loss (B,) on each latent of a folder, over fixed timesteps and noises.

    Args:
        module: A LatentDiffusionModule.
        latents: Latent shard folder.
        draws: Number of noises at each timestep.
        seed: Seed of the noises.
    """
    found: list[Tensor] = []
    for batch in _batches(latents, 64):
        caption = module.conditioning.read(batch)  # a generator with a caption tower reads no stored states
        found.append(sample_losses(module, batch["latent"], caption, batch["sample_index"], draws, seed))
    return torch.cat(found).numpy()


def reconstruct(module: Any, images: Tensor) -> Tensor:
    """Return images (B, 3, H, W) uint8 after the codec of a generator, in [0, 1] on the CPU."""
    decoded = module.codec.decode(module.codec.encode(signed(images.to(module.device))))
    return (decoded.float() / 2 + 0.5).clamp(0, 1).cpu()


def _batches(latents: Path, size: int) -> Iterator[dict[str, Any]]:
    if not ShardFolder(latents).samples:
        raise UserError(f"{latents} holds no latents: encode them with data_tools/encode_latents.py")
    decode, part = LatentDecoding(0), []
    for index, (key, members) in enumerate(read_samples(latents)):
        part.append(decode(key, members, index))
        if len(part) == size:
            yield decode.collate(part)
            part = []
    if part:
        yield decode.collate(part)


def _caption(sample: ImageSample) -> tuple[str, str]:
    """Return language and text of the first caption."""
    found = [
        (str(caption.get("language", "")), str(caption.get("text", "")))
        for caption in sample.record.get("captions", [])
    ]
    if not found:
        raise UserError(f"sample {sample.key} has no caption to use as a prompt: give held_out other shards")
    return found[0]

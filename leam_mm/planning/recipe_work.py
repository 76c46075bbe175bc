"""Floating-point operations of a training run, from its recipe: phases of a run and the parts of a network in each.

A trained part costs three forward passes: its own, and two for the gradients of its inputs and its weights. A frozen
part costs one, and one more if gradients pass through it. Model FLOP, by which MFU is defined (2204.02311, appendix B),
leave recomputed activations out; hardware FLOP count them.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from leam_mm.codec_module import LatentCodecModule
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.planning import counted_flops as counted
from leam_mm.planning.recipe_file import arguments, callbacks
from leam_mm.planning.transformer_flops import ContrastiveLossCost, contrastive_loss


@dataclass(frozen=True)
class Part:
    """One part of the network.

    Args:
        name: What it is.
        forward: FLOP of a forward pass for one sample.
        passes: Forward passes that it costs: 3 if trained, 2 if only gradients pass through it, 1 if frozen.
        recomputed: Further forward passes for activations that are not kept.
    """

    name: str
    forward: float
    passes: float = 3.0
    recomputed: float = 0.0

    @property
    def model_flops(self) -> float:
        """FLOP per sample without recomputed activations."""
        return self.passes * self.forward

    @property
    def hardware_flops(self) -> float:
        """FLOP per sample that the device executes."""
        return (self.passes + self.recomputed) * self.forward


@dataclass(frozen=True)
class Phase:
    """Samples that cost the same.

    Args:
        samples: Number of samples.
        parts: Parts of the network.
        images: Image size in pixels, or latent size, for the table.
    """

    samples: int
    parts: tuple[Part, ...]
    images: str = ""

    @property
    def model_flops(self) -> float:
        """Model FLOP per sample."""
        return sum(part.model_flops for part in self.parts)

    @property
    def hardware_flops(self) -> float:
        """Hardware FLOP per sample."""
        return sum(part.hardware_flops for part in self.parts)


@dataclass(frozen=True)
class RecipeWork:
    """What a run computes.

    Args:
        kind: contrastive, generator or codec.
        batch_size: Samples per optimizer step over all ranks.
        phases: In the order of the run.
        weights: Number of weights, averages not counted.
        trained: Number of trained weights.
        averages: Copies of the weights that are averaged.
        embed_dim: D of the contrastive loss; 0 for other kinds.
        assumptions: What the recipe does not say, and what is not counted; one sentence each.
    """

    kind: str
    batch_size: int
    phases: tuple[Phase, ...]
    weights: int
    trained: int
    averages: int = 0
    embed_dim: int = 0
    assumptions: tuple[str, ...] = field(default=())

    @property
    def samples(self) -> int:
        """Samples of the whole run."""
        return sum(phase.samples for phase in self.phases)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return -(-self.samples // self.batch_size)

    @property
    def model_flops(self) -> float:
        """Model FLOP of the whole run."""
        return sum(phase.samples * phase.model_flops for phase in self.phases)

    @property
    def hardware_flops(self) -> float:
        """Hardware FLOP of the whole run."""
        return sum(phase.samples * phase.hardware_flops for phase in self.phases)

    def loss_cost(self, ranks: int, tile: int | None = 1024) -> ContrastiveLossCost | None:
        """Return the cost of the contrastive loss on one rank per step; None for other kinds."""
        return contrastive_loss(self.batch_size, ranks, self.embed_dim, tile=tile) if self.embed_dim else None


def recipe_work(recipe: Mapping[str, Any], samples: int | None = None, caption_tokens: int | None = None) -> RecipeWork:
    """Count the operations of a run.

    Args:
        recipe: Recipe as read by ``read_recipe``, or the config of a run.
        samples: Samples seen; None takes the recipe's ``max_samples``.
        caption_tokens: Mean tokens per caption. Encoders skip padding, so fewer tokens cost less; None takes the
            context length, an upper bound.

    Raises:
        UserError: The recipe's module cannot be built, or it does not say how many samples it sees.
    """
    total = samples if samples is not None else recipe.get("max_samples")
    if not total:
        raise UserError("the recipe has no max_samples: give --samples")
    data = recipe["data"].get("init_args") or {}
    batch = int(data.get("batch_size") or 0)
    if batch < 1:
        raise UserError("the recipe has no data.init_args.batch_size: write it into the recipe")
    module = counted.meta_module(recipe["model"])
    if isinstance(module, ContrastiveModule):
        return _contrastive(recipe, module, int(total), batch, caption_tokens)
    if isinstance(module, LatentDiffusionModule):
        return _generator(recipe, module, int(total), batch, caption_tokens)
    if isinstance(module, LatentCodecModule):
        return _codec(recipe, module, int(total), batch)
    raise UserError(f"model.class_path {recipe['model'].get('class_path')}: no cost is known for this module")


def _contrastive(recipe: Mapping[str, Any], module: Any, total: int, batch: int, tokens: int | None) -> RecipeWork:
    encoder, data = module.encoder, recipe["data"]["init_args"]
    notes = []
    if tokens is None:
        notes.append(f"captions are counted at their full context length of {encoder.context_length} tokens")
    cached = 1.0 if module.micro_batch is not None else 0.0  # embeds each part of the batch a second time
    per_image = int(arguments(data.get("captions")).get("per_image") or 1)
    names = [f"encoder.{name}" for name, _ in encoder.named_parameters()]
    patterns = [pattern for one in callbacks(dict(recipe), "Freezing") for pattern in one.get("patterns", [])]
    frozen = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    visual = [name for name in names if name.startswith("encoder.clip.visual.")]
    text = [name for name in names if name not in visual and "logit_" not in name]
    passes = {key: _passes(members, frozen, encoder.low_rank is not None)
              for key, members in (("image", visual), ("text", text))}  # fmt: skip
    phases = []
    for count, sizes, length, dropout in _stages(data, total, encoder):
        part_tokens = min(length, tokens) if tokens is not None else length
        image = [counted.count_image(encoder, size, dropout) for size in sizes]
        caption = counted.count_text(encoder, part_tokens)
        train = (
            partial(counted.count_image, encoder, sizes[0], dropout, True),
            partial(counted.count_text, encoder, part_tokens, True),
        )
        again = [_recomputed(recipe, module, run, each) for run, each in zip(train, (image[0], caption), strict=True)]
        flops = sum(image) / len(image), per_image * caption
        parts = tuple(
            Part(f"{key} tower", each, passes[key], cached + more if passes[key] > 1 else 0.0)
            for key, each, more in zip(("image", "text"), flops, again, strict=True)
        )
        phases.append(Phase(count, parts, "/".join(f"{size} px" for size in sizes)))
    weights = counted.parameters(encoder, trained=False)
    size_of = dict(encoder.named_parameters())
    trained = sum(size_of[name.removeprefix("encoder.")].numel() for name in names
                  if name not in frozen and size_of[name.removeprefix("encoder.")].requires_grad)  # fmt: skip
    return RecipeWork(
        *("contrastive", batch, tuple(phases), weights, trained, int(module.ema is not None), encoder.embed_dim),
        tuple(notes),
    )


def _stages(data: Mapping[str, Any], total: int, encoder: Any) -> list[tuple[int, list[int], int, float | None]]:
    """Return samples, image sizes, tokens per caption and patch dropout of each stage."""
    stages = [arguments(stage) for stage in data.get("stages") or [{"samples": 0, "image_size": encoder.image_size}]]
    ends = [*(int(stage["samples"]) for stage in stages[1:]), total]
    found = []
    for stage, end in zip(stages, ends, strict=True):
        size = stage["image_size"]
        count = min(end, total) - min(int(stage["samples"]), total)
        length = int(stage.get("text_length") or encoder.context_length)
        if count > 0:
            found.append((count, size if isinstance(size, list) else [size], length, stage.get("patch_dropout")))
    return found


def _passes(names: list[str], frozen: set[str], low_rank: bool) -> float:
    if low_rank:
        return 2.0  # gradients pass through, only the small additions have gradients of weights
    return 1.0 if names and all(name in frozen for name in names) else 3.0


def _recomputed(recipe: Mapping[str, Any], module: Any, train: Callable[[], int], forward: int) -> float:
    """Return the forward passes that recomputed activations cost, by counting a training step with and without them.

    It is less than one: the embeddings are not repeated, nor is the last matrix of a block, whose output nobody needs.

    Args:
        recipe: Names the callback.
        module: On the meta device.
        train: Counts forward and backward pass.
        forward: FLOP of the forward pass.
    """
    found = callbacks(dict(recipe), "GradientCheckpointing")
    if not found:
        return 0.0
    plain = train()
    with counted.recomputing(module, int(found[0].get("every") or 1)):
        return (train() - plain) / forward


def _generator(recipe: Mapping[str, Any], module: Any, total: int, batch: int, tokens: int | None) -> RecipeWork:
    denoiser, side, notes = module.denoiser, module.latent_size, []
    caption = tokens if tokens is not None else counted.DEFAULT_CAPTION
    if tokens is None:
        notes.append(f"captions are assumed to have {counted.DEFAULT_CAPTION} tokens: give --caption-tokens")
    notes.append(f"all latents are counted as {side} x {side}; buckets of other shapes have about as many positions")
    if str(recipe["data"]["class_path"]).endswith("PairsModule"):
        notes.append("batches of images: the frozen codec and text encoder are not counted")
    own = bool(getattr(denoiser.model, "gradient_checkpointing", False))  # diffusers' own option
    borders = sorted(
        {min(end, total) for technique in module.techniques if (end := getattr(technique, "until_samples", None))}
        | {0, total}
    )
    phases = []
    for start, end in pairwise(borders):
        flops = counted.count_denoiser(module, (side, side), caption, start)
        train = partial(counted.count_denoiser, module, (side, side), caption, start, True)
        again = (train() - 3 * flops) / flops if own else _recomputed(recipe, module, train, flops)
        parts = [Part("denoiser", flops, recomputed=again)]
        tower = denoiser.caption_tower
        if tower is not None:
            trained = any(weight.requires_grad for weight in tower.parameters())
            parts.append(Part("caption tower", counted.count_caption_tower(tower), 3.0 if trained else 1.0))
        phases.append(Phase(end - start, tuple(parts), f"{side} x {side} latents"))
    networks = [denoiser, *module.techniques]
    weights, trained_weights = (sum(counted.parameters(one, only) for one in networks) for only in (False, True))
    averages = len(module.ema.copies()) if module.ema is not None else 0
    return RecipeWork(
        "generator", batch, tuple(phases), weights, trained_weights, averages, assumptions=tuple(notes)
    )  # fmt: skip


def _codec(recipe: Mapping[str, Any], module: Any, total: int, batch: int) -> RecipeWork:
    size = int(arguments(arguments(recipe["data"]).get("image")).get("image_size") or 256)
    flops = counted.count_codec(module, size)
    only_decoder = module.trained == "decoder"
    plain = [
        Part("encoder", flops["encoder"], 1.0 if only_decoder else 3.0),
        Part("decoder", flops["decoder"]),
    ]
    if "perceptual" in flops:  # counted for two images, of which one needs the gradient of its input
        plain.append(Part("perceptual loss", flops["perceptual"], 1.5))
    start = min(int(getattr(module.adversarial, "start_samples", total) or 0), total) if module.adversarial else total
    phases = [Phase(start, tuple(plain), f"{size} px")] if start else []
    if start < total:
        # Generator: forward and gradient of the input; discriminator: forward and both gradients for two images.
        phases.append(Phase(total - start, (*plain, Part("discriminator", flops["discriminator"], 8.0)), f"{size} px"))
    networks = [module.codec, *([module.discriminator] if module.discriminator is not None else [])]
    weights, trained = (sum(counted.parameters(one, only) for one in networks) for only in (False, True))
    averages = len(module.ema.copies()) if module.ema is not None else 0
    notes = ("gradients for the adaptive weight of the adversarial loss are not counted",) if module.adversarial else ()
    return RecipeWork("codec", batch, tuple(phases), weights, trained, averages, assumptions=notes)

"""Memory of a device in training: weights, gradients, optimizer states, averages, activations, and the loss's features.

An estimate: activations are counted (saved_activations.py), the rest follows from sizes. Autocast keeps a copy in half
precision of each matrix until the backward pass. Sharding (FSDP2) divides weights, gradients, states and averages by
the number of devices and gathers one block at a time. Sources: 1910.02054, section 3 (states); 2205.05198, equation 2
(activations of a block: 34 bytes per token and channel in half precision with dropout's masks, 5 bytes per head and
pair of tokens more without a fused kernel).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from leam_mm.callbacks.compilation import trained_blocks
from leam_mm.codec_module import LatentCodecModule
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.errors import UserError
from leam_mm.planning import counted_flops as counted
from leam_mm.planning.recipe_file import arguments, callbacks
from leam_mm.planning.saved_activations import SavedTensors, count_saved

# Bytes of optimizer states per trained weight in full precision.
STATE_BYTES = {"AdamW": 8, "Adam": 8, "NAdam": 8, "RAdam": 8, "SGD": 4, "Muon": 4, "MuonAdamW": 4, "Adafactor": 0.1}
CONTEXT_BYTES = 1.5e9  # assumed: driver, libraries and communication buffers
FRAGMENTS = 0.06  # assumed: share of a device's memory that the allocator cannot use
PAIR = counted.PAIR
CODEC_SIDE = 256  # pixels of the images with which codecs are measured
LAST_SAMPLE = 1 << 60  # past the end of any technique


@dataclass(frozen=True)
class Activations:
    """Activations of one sample on a device, in bytes.

    Args:
        kept: Saved for the backward pass.
        checkpointed: Saved if each block keeps its input only and is computed again.
        block: Saved by the largest block.
    """

    kept: float
    checkpointed: float
    block: float

    def peak(self, checkpointing: bool) -> float:
        """Return the bytes at the worst moment: what is kept, and the gradients inside one block."""
        return (self.checkpointed if checkpointing else self.kept) + self.block


@dataclass(frozen=True)
class MemoryModel:
    """What a training step of a recipe needs, by its parts.

    Args:
        weights: Number of weights.
        trained: Number of trained weights.
        largest_block: Weights of the largest block.
        averages: Averaged copies of the weights.
        state_bytes: Bytes of optimizer states per trained weight.
        weight_bytes: Bytes per weight: 4, or 2 in true half precision.
        copy_bytes: Bytes per weight of autocast's copies: 2 under mixed precision, else 0.
        activations: Of one sample.
        batch_size: Samples of a step over all devices.
        input_bytes: Input of one sample.
        embed_dim: D of the contrastive loss; 0 without one.
        tile: Side of the tiles of logits.
        micro_batch: Images that an encoder embeds at a time; None is all of them.
        checkpointing: Whether the recipe recomputes activations.
        sharded: Whether the recipe shards weights.
        notes: Assumptions, one sentence each.
    """

    weights: int
    trained: int
    largest_block: int
    averages: int
    state_bytes: float
    weight_bytes: float
    copy_bytes: float
    activations: Activations
    batch_size: int
    input_bytes: float
    embed_dim: int = 0
    tile: int = 1024
    micro_batch: int | None = None
    checkpointing: bool = False
    sharded: bool = False
    notes: tuple[str, ...] = field(default=())

    def parts(
        self, devices: int, micro_batch: int, checkpointing: bool | None = None, sharded: bool | None = None
    ) -> dict[str, float]:
        """Return the bytes of each part on one device.

        Args:
            devices: Number of devices.
            micro_batch: Samples whose activations a device holds at a time.
            checkpointing: Recompute activations; None does as the recipe.
            sharded: Shard weights over the devices; None does as the recipe.
        """
        checkpointing = self.checkpointing if checkpointing is None else checkpointing
        sharded = self.sharded if sharded is None else sharded
        share = 1 / devices if sharded else 1.0
        local = self.batch_size / devices
        parts = {
            "weights": self.weights * self.weight_bytes * share,
            "gradients": self.trained * self.weight_bytes * share,
            "optimizer states": self.trained * self.state_bytes * self.weight_bytes / 4 * share,
            "averages": self.averages * self.weights * 4 * share,
            "copies in half precision": (self.largest_block if checkpointing else self.weights) * self.copy_bytes,
            "activations": micro_batch * self.activations.peak(checkpointing),
            "input": local * self.input_bytes,
        }
        if sharded and devices > 1:
            parts["gathered blocks"] = 3 * self.largest_block * self.weight_bytes  # two blocks, one gradient
        elif devices > 1:
            parts["buckets of gradients"] = self.trained * self.weight_bytes
        if self.embed_dim:
            # Features of all devices and their gradients, for images and texts; three tiles of logits.
            features = 2 * 2 * self.batch_size * self.embed_dim * 4
            tile = min(self.tile, self.batch_size)
            parts["features and logits"] = features + 3 * 4 * tile**2
        return parts

    def total(self, devices: int, micro_batch: int, **choice: bool | None) -> float:
        """Return the bytes of all parts on one device; see ``parts``."""
        return sum(self.parts(devices, micro_batch, **choice).values())

    def largest_micro_batch(self, device_bytes: float, devices: int, **choice: bool | None) -> int:
        """Return the largest number of samples that fits, at most a device's share of the batch; 0 if none does.

        Args:
            device_bytes: Memory of a device.
            devices: Number of devices.
            choice: ``checkpointing`` and ``sharded``, see ``parts``.
        """
        free = usable(device_bytes) - self.total(devices, 0, **choice)
        each = self.total(devices, 1, **choice) - self.total(devices, 0, **choice)
        local = max(1, self.batch_size // devices)
        return local if each <= 0 else max(0, min(local, int(free // each)))

    def report(self, device_bytes: float, devices: int) -> list[str]:
        """Return lines for a plan: the parts as the recipe is, and the largest micro-batch of each choice."""
        local = max(1, self.batch_size // devices)
        chosen = min(self.micro_batch or local, local)
        parts = self.parts(devices, chosen)
        total, room = sum(parts.values()), usable(device_bytes)
        verdict = "fits" if total <= room else "does not fit"
        lines = [
            f"memory of a device (an estimate): {total / 1e9:,.1f} GB of {room / 1e9:,.1f} GB usable with {chosen:,} "
            f"samples at a time: {verdict}",
            "  " + ", ".join(f"{name} {size / 1e9:,.1f}" for name, size in parts.items() if size >= 5e7) + " GB",
        ]
        for label, choice in CHOICES.items():
            lines.append(
                f"  largest micro-batch {label}: {self.largest_micro_batch(device_bytes, devices, **choice):,}"
            )
        return lines


CHOICES: dict[str, dict[str, bool | None]] = {
    "as it is": {},
    "with recomputed activations": {"checkpointing": True},
    "sharded (configs/overlay_fsdp2.yaml)": {"sharded": True},
    "sharded, with recomputed activations": {"checkpointing": True, "sharded": True},
}


def usable(device_bytes: float) -> float:
    """Return the bytes of a device that tensors can use."""
    return device_bytes * (1 - FRAGMENTS) - CONTEXT_BYTES


def memory_model(recipe: Mapping[str, Any], caption_tokens: int | None = None) -> MemoryModel:
    """Measure the parts of a recipe's training step on the meta device.

    Args:
        recipe: Recipe as read by ``read_recipe``.
        caption_tokens: Tokens per caption; None takes the context length, or 64 for generators.

    Raises:
        UserError: The module cannot be built, or is of an unknown kind.
    """
    module = counted.meta_module(recipe["model"]).train()
    network = trained_network(module)
    notes: list[str] = []
    precision = str((recipe.get("trainer") or {}).get("precision") or "32-true")
    half, true_half = "16" in precision, "16-true" in precision
    frozen = [pattern for one in callbacks(dict(recipe), "Freezing") for pattern in one.get("patterns", [])]
    if frozen:
        notes.append("activations of frozen towers are counted although they are not kept")
    weights, trained = (sum(counted.parameters(one, only) for one in network) for only in (False, True))
    blocks = trained_blocks(module)
    sizes = [counted.parameters(block, trained=False) for block in blocks]
    saved = measure(module, torch.bfloat16 if half else torch.float32, caption_tokens)
    data = recipe["data"].get("init_args") or {}
    encoder = module.encoder if isinstance(module, ContrastiveModule) else None
    side = encoder.image_size if encoder is not None else int(arguments(data.get("image")).get("image_size") or 0)
    scale = 1 / PAIR
    if isinstance(module, LatentCodecModule) and side:
        scale *= (side / CODEC_SIDE) ** 2
        notes.append("activations of perceptual loss and discriminator are not counted")
    block = max(saved.blocks, default=0)
    activations = Activations(*(scale * size for size in (saved.size, saved.checkpointed(), block)))
    optimizer = str((recipe["model"]["init_args"].get("optimizer") or {}).get("class_path", "AdamW")).rpartition(".")[2]
    if optimizer not in STATE_BYTES:
        notes.append(f"states of {optimizer} are counted as those of AdamW")
    average = getattr(module, "ema", None)
    averages = 0 if average is None else len(average.copies()) if hasattr(average, "copies") else 1
    strategy = (recipe.get("trainer") or {}).get("strategy")
    return MemoryModel(
        weights=weights,
        trained=trained,
        largest_block=max(sizes, default=weights),
        averages=averages,
        state_bytes=STATE_BYTES.get(optimizer, 8),
        weight_bytes=2 if true_half else 4,
        copy_bytes=2 if half and not true_half else 0,
        activations=activations,
        batch_size=int(data.get("batch_size") or 1),
        input_bytes=3 * side * side * (1 + (2 if half else 4)),
        embed_dim=encoder.embed_dim if encoder is not None else 0,
        tile=int(getattr(getattr(module, "loss", None), "tile", 1024)),
        micro_batch=getattr(module, "micro_batch", None),
        checkpointing=bool(callbacks(dict(recipe), "GradientCheckpointing")),
        sharded=isinstance(strategy, dict) and "ShardedStrategy" in str(strategy.get("class_path")),
        notes=tuple(notes),
    )


def trained_network(module: Any) -> list[nn.Module]:
    """Return the networks of a module whose weights it trains."""
    if isinstance(module, ContrastiveModule):
        return [module.encoder]
    if isinstance(module, LatentDiffusionModule):
        return [module.denoiser, *module.techniques]
    if isinstance(module, LatentCodecModule):
        return [module.codec, *([module.discriminator] if module.discriminator is not None else [])]
    raise UserError(f"no memory is known for a {type(module).__name__}")


def measure(module: Any, dtype: torch.dtype, caption_tokens: int | None = None) -> SavedTensors:
    """Return what one training step with two samples keeps, for a module on the meta device in ``dtype``."""
    for network in trained_network(module):
        network.to(dtype)
    blocks = trained_blocks(module)
    if isinstance(module, ContrastiveModule):
        encoder = module.encoder
        tokens = min(caption_tokens or encoder.context_length, encoder.context_length)
        image = torch.zeros(PAIR, 3, encoder.image_size, encoder.image_size, device=counted.META, dtype=dtype)
        text = torch.zeros(PAIR, tokens, dtype=torch.int64, device=counted.META)
        with count_saved(blocks) as saved:
            encoder.encode_image(image)
            encoder.encode_text(text, torch.full((PAIR,), tokens, device=counted.META))
    elif isinstance(module, LatentDiffusionModule):
        side, tokens = (module.latent_size, module.latent_size), caption_tokens or counted.DEFAULT_CAPTION
        found = []
        for sample in (0, LAST_SAMPLE):  # masking of tokens may end during the run
            with count_saved(blocks) as saved:
                counted.run_denoiser(module, side, tokens, PAIR, dtype, sample)
            found.append(saved)
        saved = max(found, key=lambda one: one.size)
    else:
        image = torch.zeros(PAIR, 3, CODEC_SIDE, CODEC_SIDE, device=counted.META, dtype=dtype)
        with count_saved(blocks) as saved:
            module.codec.autoencoder(image)
    return saved

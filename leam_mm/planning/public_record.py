"""Published operations, GPU hours, energy and emissions of finished runs, beside what the planner computes for them.

Each row says where its published number stands and what the planner's number rests on. A row is a ``prediction`` if
the planner's number does not use the published one, and an ``identity`` if it does (an MFU that was derived from the
same GPU hours, or a product of numbers of the same source): an identity checks arithmetic and units, nothing more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from leam_mm.planning.transformer_flops import (
    DenoiserShape,
    TowerShape,
    block,
    dit,
    image_tower,
    text_tower,
    tokens_of_blocks,
)

FLOPS, HOURS, OTHER_RUN = 0.02, 0.20, 0.30  # tolerances: operations; GPU hours; GPU hours with another run's MFU
A100, GH200 = 312e12, 989e12  # FLOP/s, dense bf16, of the vendor's data sheets
LAION_400M = 12.8e9  # samples of the LAION-400M runs, assumed: 32 epochs of 400 million
PROFILE = "open_clip docs/model_profile.csv, commit 3b37473"
PRETRAINED = "open_clip docs/PRETRAINED.md, commit 05e7db4"


@dataclass(frozen=True)
class Row:
    """A published number and ours.

    Args:
        what: What was counted or measured.
        published: Published value.
        ours: The planner's value.
        unit: Unit of both.
        tolerance: Largest relative difference.
        kind: ``prediction`` or ``identity``.
        source: Where the published value stands.
        note: What ours rests on.
        read: False if the published value is stated from memory.
    """

    what: str
    published: float
    ours: float
    unit: str
    tolerance: float
    kind: Literal["prediction", "identity"]
    source: str
    note: str = ""
    read: bool = True

    @property
    def difference(self) -> float:
        """Relative difference of ours to the published value."""
        return self.ours / self.published - 1

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True)
class Clip:
    """An architecture of open_clip.

    Args:
        name: Name in open_clip.
        image: Image tower.
        size: Image size in pixels.
        patch: Patch size in pixels.
        text: Text tower.
        context: Tokens per caption.
        image_gflops: Published GFLOP of the image tower.
        text_gflops: Published GFLOP of the text tower.
    """

    name: str
    image: TowerShape
    size: int
    patch: int
    text: TowerShape
    context: int
    image_gflops: float
    text_gflops: float

    @property
    def forward(self) -> float:
        """FLOP of a forward pass for one pair."""
        return image_tower(self.image, self.size, self.patch, whole_blocks=True) + text_tower(self.text, self.context)


def _clip(
    name: str, image: tuple[int, int, float], size: int, patch: int, text: tuple[int, int, float], dim: int,
    gflops: tuple[float, float], context: int = 77,
) -> Clip:  # fmt: skip
    towers = [TowerShape(layers, width, round(ratio * width), dim) for layers, width, ratio in (image, text)]
    return Clip(name, towers[0], size, patch, towers[1], context, *gflops)


CLIPS = {
    one.name: one
    for one in (
        _clip("ViT-B-32", (12, 768, 4), 224, 32, (12, 512, 4), 512, (8.82, 5.96)),
        _clip("ViT-B-16", (12, 768, 4), 224, 16, (12, 512, 4), 512, (35.13, 5.96)),
        _clip("ViT-B-16-plus-240", (12, 896, 4), 240, 16, (12, 640, 4), 640, (54.76, 9.27)),
        _clip("ViT-L-16", (24, 1024, 4), 224, 16, (12, 768, 4), 768, (123.11, 13.3)),
        _clip("ViT-L-14", (24, 1024, 4), 224, 14, (12, 768, 4), 768, (162.03, 13.3)),
        _clip("ViT-L-14-336", (24, 1024, 4), 336, 14, (12, 768, 4), 768, (381.92, 13.3)),
        _clip("ViT-SO400M-14-SigLIP", (27, 1152, 3.7362), 224, 14, (27, 1152, 3.7362), 1152, (220.35, 13.19), 16),
        _clip("ViT-H-14", (32, 1280, 4), 224, 14, (24, 1024, 4), 1024, (334.59, 47.09)),
        _clip("ViT-g-14", (40, 1408, 4.3637), 224, 14, (24, 1024, 4), 1024, (534.06, 47.09)),
        _clip("ViT-bigG-14", (48, 1664, 4.9231), 224, 14, (32, 1280, 4), 1280, (967.5, 97.86)),
        _clip("ViT-e-14", (56, 1792, 8.5715), 224, 14, (36, 1280, 4), 1280, (1981.35, 110.1)),
    )
}


@dataclass(frozen=True)
class ClipRun:
    """A run of open_clip on A100.

    Args:
        model: Name of the architecture.
        gpus: Number of GPUs.
        hours: Published GPU hours.
        checkpointing: Whether activations were recomputed.
    """

    model: str
    gpus: int
    hours: float
    checkpointing: bool = False

    @property
    def flops(self) -> float:
        """Hardware FLOP of the run."""
        return (4 if self.checkpointing else 3) * CLIPS[self.model].forward * LAION_400M

    @property
    def utilization(self) -> float:
        """Share of the peak that the hardware FLOP reach in the published GPU hours."""
        return self.flops / (self.hours * 3600 * A100)

    def predicted(self, utilization: float) -> float:
        """Return GPU hours at a share of the peak."""
        return self.flops / (A100 * utilization) / 3600


CLIP_RUNS = (
    ClipRun("ViT-B-32", 128, 4600),
    ClipRun("ViT-B-16", 176, 10700),
    ClipRun("ViT-B-16-plus-240", 224, 13620),
    ClipRun("ViT-L-14", 400, 50800, checkpointing=True),
)


def operation_rows() -> Iterator[Row]:
    """Yield the rows of operations."""
    note = "closed form"
    for one in CLIPS.values():
        image = image_tower(one.image, one.size, one.patch, whole_blocks=True) / 1e9
        text = text_tower(one.text, one.context) / 1e9
        yield Row(f"{one.name}, image", one.image_gflops, image, "GFLOP", FLOPS, "prediction", PROFILE, note)
        yield Row(f"{one.name}, text", one.text_gflops, text, "GFLOP", FLOPS, "prediction", PROFILE, note)
    for pixels, published in ((256, 118.64), (512, 524.6)):
        shape = DenoiserShape(28, 1152, 4 * 1152, 4, 2, outputs=8)
        ours = dit(shape, tokens_of_blocks(28, (pixels // 16) ** 2)) / 1e9
        yield Row(
            f"DiT-XL/2 at {pixels} px", 2 * published, ours, "GFLOP", FLOPS, "prediction", "2212.09748, tables 4 and 9",
            "closed form; the paper's numbers are multiply-accumulates, twice which are shown", read=pixels == 256,
        )  # fmt: skip
    tokens, context, width = 300e9, 2048, 12288
    source = "2005.14165, table D.1"
    ours = 6 * 174.6e9 * tokens
    yield Row("GPT-3, training", 3.14e23, ours, "FLOP", FLOPS, "identity", source, "6 x weights x tokens, as there")
    # Causal attention needs half of the products of all pairs; the paper leaves attention out.
    pairs = 2 * context * width
    layers = 96 * (block(context, width, 4 * width) / context - pairs)
    closed = 3 * layers * tokens
    yield Row("GPT-3, training", 3.14e23, closed, "FLOP", FLOPS, "prediction", source, "closed form of 96 blocks")
    yield Row("GPT-3, training", 3640, closed / 1e15 / 86400, "PFLOP/s-days", FLOPS, "prediction", source, "the same")


def hour_rows() -> Iterator[Row]:
    """Yield the rows of GPU hours and rates."""
    years = 6 * 174.6e9 * 300e9 / 28e12 / 3600 / 24 / 365
    yield Row(
        "GPT-3 on one V100", 355, years, "GPU years", HOURS, "identity", "Lambda, 2020",
        "28 TFLOP/s, which is that estimate's assumption",
    )  # fmt: skip
    for run in CLIP_RUNS:
        yield Row(
            f"OpenCLIP {run.model}, {run.gpus} A100", run.hours, run.predicted(run.utilization), "GPU hours", HOURS,
            "identity", PRETRAINED, f"circular: its own {run.utilization:.1%} of the peak, derived from these hours",
        )  # fmt: skip
    for before, run in pairwise(CLIP_RUNS):
        yield Row(
            f"OpenCLIP {run.model}, {run.gpus} A100", run.hours, run.predicted(before.utilization), "GPU hours",
            OTHER_RUN, "prediction", PRETRAINED, f"{before.utilization:.1%} of the peak, as the run of {before.model}",
        )  # fmt: skip
    for name, gflops, rate, mfu in (("HTSAT-tiny", 111.20, 623.7, 0.210), ("HTSAT-base", 130.09, 538.2, 0.212)):
        yield Row(
            f"CLAP {name} on JUPITER, 4 GH200", 100 * mfu, 100 * 3 * gflops * 1e9 * rate / GH200, "% MFU", FLOPS,
            "identity", "LAION-AI/open-clap-scaling",
            f"definition of MFU: {gflops} GFLOP x 3, {rate} samples/s, 989 TFLOP/s",
        )  # fmt: skip
    source = "mosaicml/diffusion README, commit 066e68f"
    seconds = 1126.4e6 / 1100 + 1740.8e6 / 290
    yield Row(
        "SD 2 base U-Net, 8 A100", 81.33, seconds / 86400, "days", HOURS, "identity", source,
        "samples over images/s of the same table",
    )  # fmt: skip
    hours = 128 * (1126.4e6 / 11600 + 1740.8e6 / 4590) / 3600 + 3784
    yield Row(
        "SD 2 base, whole run", 7.45 * 24 * 128, hours, "GPU hours", HOURS, "prediction",
        "databricks.com/blog/stable-diffusion-2",
        "benchmarked images/s of 128 A100, 3,784 h of latents; 128 GPUs are assumed for the post's 7.45 days",
    )  # fmt: skip
    bloom = 6 * 176e9 * 366e9 * 4 / 3 / 156e12 / 3600
    yield Row(
        "BLOOM, 384 A100", 1_082_990, bloom, "GPU hours", HOURS, "prediction", "2211.02001, table 1; rate: GENCI",
        "156 TFLOP/s with recomputed activations, no time lost",
    )  # fmt: skip
    llama = 6 * 405e9 * 15.6e12 / 400e12 / 0.9 / 3600
    yield Row(
        "Llama 3.1 405B, H100", 30.84e6, llama, "GPU hours", HOURS, "prediction", "model card; 2407.21783, table 4",
        "400 TFLOP/s and 90 % of the time, as the paper says", read=False,
    )  # fmt: skip
    yield Row(
        "SD 1.5", 6250 * 24, 150_000, "GPU hours", HOURS, "identity", "2310.00426, abstract",
        "the model card's 150,000 hours against the days in PixArt's paper", read=False,
    )  # fmt: skip
    yield Row(
        "PixArt-alpha, share of SD 1.5", 10.8, 100 * 675 / 6250, "%", HOURS, "identity", "2310.00426, abstract",
        "675 of 6,250 A100 days; an earlier version of the paper says 753 days (18,072 hours)",
    )  # fmt: skip
    yield Row(
        "micro_diffusion, 8 H100", 1890, 2.6 * 24 * 8 * 3.79, "USD", HOURS, "identity",
        "SonyResearch/micro_diffusion README", "circular: 499 hours at $3.79, a price derived from this cost",
    )  # fmt: skip


def energy_rows() -> Iterator[Row]:
    """Yield the rows of energy and emissions."""
    source, hours, grams = "2211.02001, table 1", 1_082_990, 57
    note = "GPU hours x 0.4 kW: the paper's own estimate by the GPUs' limit, no meter"
    yield Row("BLOOM, GPUs", 433_196, hours * 0.4, "kWh", FLOPS, "identity", source, note)
    yield Row("BLOOM, GPUs", 24.7, hours * 0.4 * grams / 1e6, "t CO2e", FLOPS, "identity", source, "57 g/kWh")
    both = (433_196 + 256_646) * grams / 1e6
    yield Row("BLOOM, GPUs and idle nodes", 24.7 + 14.6, both, "t CO2e", FLOPS, "identity", source, "57 g/kWh")


def counted_rows() -> Iterator[Row]:
    """Yield the rows that need torch: U-Nets are counted on the meta device."""
    import torch
    from diffusers import UNet2DConditionModel

    from leam_mm.planning.counted_flops import META, count

    with META:
        network: Any = UNet2DConditionModel(
            sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20), use_linear_projection=True,
        )  # fmt: skip
    time, state = torch.zeros(1, device=META), torch.zeros(1, 77, 1024, device=META)
    latents = (torch.zeros(1, 4, side, side, device=META) for side in (32, 64))
    small, large = (count(partial(network, latent, time, state)) for latent in latents)
    for gpus, at_256, at_512 in ((8, 1100, 290), (64, 8530, 2340)):
        yield Row(
            f"SD 2 base U-Net at 512 px, {gpus} A100", at_512, at_256 * small / large, "images/s", HOURS, "prediction",
            "mosaicml/diffusion README, commit 066e68f",
            f"images/s at 256 px, and {small / 1e9:,.0f} and {large / 1e9:,.0f} GFLOP counted",
        )  # fmt: skip


def all_rows() -> list[Row]:
    """Return all rows."""
    return [*operation_rows(), *hour_rows(), *energy_rows(), *counted_rows()]

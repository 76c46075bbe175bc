"""Model FLOPs utilization that follows from published rates of training: evidence for the ranges of the profiles.

MFU = 3 x FLOP of a forward pass x samples/s of a device / peak. Recomputed activations are not model FLOP.
"""

from dataclasses import dataclass
from typing import Literal

from leam_mm.planning.public_record import A100, CLIP_RUNS, CLIPS, GH200, LAION_400M, PRETRAINED

H100 = 989e12  # FLOP/s, dense bf16, SXM
NEMO = "docs.nvidia.com, NeMo user guide, CLIP performance, 23.08"
CLAP = "LAION-AI/open-clap-scaling, 2026"
MOSAIC = "mosaicml/diffusion README, commit 066e68f"
SD2_GFLOPS = {256: 181.0, 512: 804.0}  # U-Net of Stable Diffusion 2 base, counted by public_record.counted_rows


@dataclass(frozen=True)
class PublishedRate:
    """A published rate of training.

    Args:
        what: Network and machine.
        kind: contrastive or generator.
        device: Device, as the profiles' gpu.model begins.
        forward: FLOP of a forward pass for one sample.
        rate: Samples per second of one device.
        peak: Dense bf16 peak of the device, in FLOP/s.
        source: Where the rate stands.
    """

    what: str
    kind: Literal["contrastive", "generator"]
    device: Literal["A100", "H100", "GH200"]
    forward: float
    rate: float
    peak: float
    source: str

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, in [0, 1]."""
        return 3 * self.forward * self.rate / self.peak


def published_rates() -> list[PublishedRate]:
    """Return the rates, by device."""
    giant = CLIPS["ViT-g-14"].forward
    rates = [
        PublishedRate(
            *(f"OpenCLIP {run.model}, {run.gpus} A100, 2022", "contrastive", "A100", CLIPS[run.model].forward),
            *(LAION_400M / run.hours / 3600, A100, PRETRAINED),
        )
        for run in CLIP_RUNS
    ]
    for devices, first, second in ((8, 559, 935), (128, 8633, 13829)):
        rates += [
            PublishedRate(f"NeMo CLIP g/14, {devices} A100", "contrastive", "A100", giant, first / devices, A100, NEMO),
            PublishedRate(
                f"NeMo CLIP g/14, {devices} H100", "contrastive", "H100", giant, second / devices, H100, NEMO
            ),
        ]
    for devices, rate in ((4, 623.7), (512, 544.6)):
        what = f"CLAP HTSAT-tiny on JUPITER, {devices} GH200"
        rates.append(PublishedRate(what, "contrastive", "GH200", 111.20e9, rate, GH200, CLAP))
    for devices, pixels, rate in ((8, 256, 1100), (8, 512, 290), (128, 256, 11600), (128, 512, 4590)):
        what = f"SD 2 base U-Net at {pixels} px, {devices} A100"
        forward = SD2_GFLOPS[pixels] * 1e9
        rates.append(PublishedRate(what, "generator", "A100", forward, rate / devices, A100, MOSAIC))
    return rates

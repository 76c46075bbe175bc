"""Loss and gradient of every diffusion process against diffusers' formulas, on the same noise and times. Not timed.

The peer's side is the loss of diffusers' training scripts, written with its own parts: DDPMScheduler.add_noise and
get_velocity with compute_snr for variance-preserving paths, FlowMatchEulerDiscreteScheduler's sigmas at the indices
that compute_density_for_timestep_sampling draws for flows, EDMEulerScheduler's preconditioning for EDM. Ours gets the
same times as numbers in [0, 1]. In float64 the peer's tables, which it keeps in float32, are made again in float64:
that is the exact value, from which ours must be less than the limit away in float64 and in float32; the peer's own
distance from it is reported.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3, compute_snr
from rich.table import Table
from torch import Tensor, nn

from leam_mm.diffusion.clean_flow import CleanFlow
from leam_mm.diffusion.edm import Edm
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion.variance_preserving import (
    BETA_END,
    BETA_START,
    VariancePreserving,
    VariancePreservingClean,
    VariancePreservingNoise,
)
from leam_mm.errors import run

BATCH, CHANNELS, SIDE, SHIFT, GAMMA, SIGMA_DATA = 64, 4, 8, 3.0, 5.0, 0.5
LIMIT = 1e-6  # relative
Network = Callable[[Tensor, Tensor], Tensor]
Loss = Callable[[Network, Tensor, Tensor], Tensor]


class TinyNetwork(nn.Module):
    """Two convolutions and a time that scales their middle; its gradient is what is compared.

    It computes in float64 at any precision of its input, so that its own rounding stays out of the comparison.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        for name, shape in (("first", (16, CHANNELS, 3, 3)), ("time", (1, 16)), ("last", (CHANNELS, 16, 3, 3))):
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5 / 3
            setattr(self, name, nn.Parameter(drawn))

    def forward(self, given: Tensor, time: Tensor) -> Tensor:
        """Predict (B, C, h, w) from an input of that shape and times (B,)."""
        middle = torch.nn.functional.conv2d(given.double(), self.first, padding=1)
        middle = torch.tanh(middle) * (1 + time.double()[:, None] @ self.time)[:, :, None, None]
        return torch.nn.functional.conv2d(middle, self.last, padding=1).to(given.dtype)


@dataclass(frozen=True)
class Case:
    """One process, its times and the loss (B,) that diffusers' parts give at them.

    Whether diffusers' training scripts have the whole formula; where not, the paper's is put on its schedulers.
    """

    label: str
    process: DiffusionProcess
    time: Tensor
    peer: Loss
    in_scripts: bool


def per_sample(error: Tensor) -> Tensor:
    """Mean squared error (B,)."""
    return error.square().flatten(1).mean(1)


def table_cases(dtype: torch.dtype) -> list[Case]:
    """Stable Diffusion's noise table with all predictions, plain and min-SNR, as train_text_to_image.py has them."""
    step = torch.randint(0, 1000, (BATCH,), generator=torch.Generator().manual_seed(2))
    step[:2] = torch.tensor([0, 999])

    def case(kind: type[VariancePreserving], gamma: float | None) -> Case:
        scheduler = DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=BETA_START,
            beta_end=BETA_END,
            prediction_type=kind.prediction_type,
        )
        if dtype == torch.float64:
            beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, 1000, dtype=dtype) ** 2
            scheduler.alphas_cumprod = (1 - beta).cumprod(0)
        targets = {
            "epsilon": lambda clean, noise: noise,
            "v_prediction": lambda clean, noise: scheduler.get_velocity(clean, noise, step),
            "sample": lambda clean, noise: clean,
        }

        def loss(network: Network, clean: Tensor, noise: Tensor) -> Tensor:
            noisy = scheduler.add_noise(clean, noise, step)
            error = per_sample(network(noisy, step.double() / 1000) - targets[kind.prediction_type](clean, noise))
            if gamma is None:
                return error
            kept = scheduler.alphas_cumprod[step]
            # compute_snr is float32 at every precision; in float64 its formula is written out.
            snr = kept / (1 - kept) if dtype == torch.float64 else compute_snr(scheduler, step)
            weight = torch.stack([snr, gamma * torch.ones_like(snr)], dim=1).min(dim=1)[0]
            return error * weight / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[kind.prediction_type]

        name = f"{kind.__name__}({'' if gamma is None else f'min_snr={gamma:g}'})"
        return Case(name, kind("sd_linear", gamma), step.double() / 1000, loss, kind is not VariancePreservingClean)

    kinds = (VariancePreserving, VariancePreservingNoise, VariancePreservingClean)
    return [case(kind, gamma) for kind in kinds for gamma in (None, GAMMA)]


def flow_cases(dtype: torch.dtype) -> list[Case]:
    """The straight path, as in train_dreambooth_sd3.py; and JiT's loss, its formula in the peer's terms."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    density = compute_density_for_timestep_sampling(
        "logit_normal", BATCH, logit_mean=0.0, logit_std=1.0, generator=torch.Generator().manual_seed(3)
    )
    index = (density * scheduler.config.num_train_timesteps).long()
    sigma = scheduler.sigmas[index].double()
    wide = sigma.to(dtype)[:, None, None, None]

    def velocity_loss(network: Network, clean: Tensor, noise: Tensor) -> Tensor:
        prediction = network((1.0 - wide) * clean + wide * noise, sigma)
        weighting = compute_loss_weighting_for_sd3("none", sigmas=wide)
        return (weighting * (prediction - (noise - clean)) ** 2).flatten(1).mean(1)

    def clean_loss(network: Network, clean: Tensor, noise: Tensor) -> Tensor:
        noisy = (1.0 - wide) * clean + wide * noise
        least = wide.clamp(min=0.05)
        implied, target = (noisy - network(noisy, sigma)) / least, (noisy - clean) / least
        return per_sample(implied - target)

    return [
        Case(f"RectifiedFlow(shift={SHIFT:g})", RectifiedFlow(shift=SHIFT), sigma, velocity_loss, True),
        Case("CleanFlow()", CleanFlow(shift=SHIFT), sigma, clean_loss, False),
    ]


def edm_case(dtype: torch.dtype) -> Case:
    """The preconditioned denoiser with the weight of table 1 of 2206.00364."""
    scheduler = EDMEulerScheduler(sigma_data=SIGMA_DATA)
    process = Edm(sigma_data=SIGMA_DATA, log_sigma_mean=-1.2)
    normal = torch.randn(BATCH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    time = process.time(torch.special.ndtr(normal))
    sigma = (1.2 * normal - 1.2).exp().to(dtype)  # the paper's P_mean and P_std
    wide = sigma[:, None, None, None]

    def loss(network: Network, clean: Tensor, noise: Tensor) -> Tensor:
        noisy = clean + noise * wide
        condition = 4 * scheduler.precondition_noise(sigma.double())
        time = (condition - math.log(0.002)) / math.log(80 / 0.002)
        prediction = network(scheduler.precondition_inputs(noisy, wide), time)
        denoised = scheduler.precondition_outputs(noisy, prediction, wide)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        return weight * per_sample(denoised - clean)

    return Case(f"Edm(sigma_data={SIGMA_DATA:g})", process, time, loss, False)


def evaluate(side: str, case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses (B,) of the samples and the gradient of their mean as one vector, made in `dtype`, given in float64."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, BATCH, CHANNELS, SIDE, SIDE, generator=generator, dtype=torch.float64).to(dtype)
    network = TinyNetwork()
    if side == "ours":
        losses = case.process.loss_at(network, clean, noise, case.time)
    else:
        losses = case.peer(network, clean, noise)
    losses.mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])  # type: ignore[union-attr]
    return losses.detach().double(), gradient.double()


def distance(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Differences, relative: of the mean loss, of its gradient, and the largest of a sample's loss over the mean."""
    return {
        "loss": abs(float(one[0].mean() / other[0].mean()) - 1),
        "gradient": float((one[1] - other[1]).norm() / other[1].norm()),
        "sample": float((one[0] - other[0]).abs().max() / other[0].mean()),
    }


def compare(single: Case, double: Case) -> dict[str, Any]:
    """All distances of one process; the exact value is the peer's formula in float64."""
    found = {
        (side, dtype): evaluate(side, case, dtype)
        for side in ("ours", "peer")
        for dtype, case in ((torch.float32, single), (torch.float64, double))
    }
    exact = found["peer", torch.float64]
    return {
        "process": single.label,
        "in_diffusers_scripts": single.in_scripts,
        "mean_loss": float(exact[0].mean()),
        "float64": distance(found["ours", torch.float64], exact),
        "ours_float32_from_exact": distance(found["ours", torch.float32], exact),
        "peer_float32_from_exact": distance(found["peer", torch.float32], exact),
        "float32": distance(found["ours", torch.float32], found["peer", torch.float32]),
    }


def training_times() -> float:
    """How far our logit-normal, shifted times are from the peer's density of the same normal numbers."""
    drawn = compute_density_for_timestep_sampling(
        "logit_normal", 4096, logit_mean=0.3, logit_std=0.8, generator=torch.Generator().manual_seed(5)
    ).double()
    uniform = torch.special.ndtr((torch.logit(drawn) - 0.3) / 0.8)
    ours = RectifiedFlow(time_mean=0.3, time_std=0.8, shift=SHIFT).time(uniform)
    return float((ours - SHIFT * drawn / (1 + (SHIFT - 1) * drawn)).abs().max())


@measure.benchmark(repeats=1)
def main(settings: measure.Settings) -> list[Path]:
    """Compare all processes in both precisions and write."""
    cases = [[*table_cases(dtype), *flow_cases(dtype), edm_case(dtype)] for dtype in (torch.float32, torch.float64)]
    rows = [compare(single, double) for single, double in zip(*cases, strict=True)]
    titles = {
        "float64": "float64",
        "ours_float32_from_exact": "ours, float32",
        "peer_float32_from_exact": "peer, float32",
        "float32": "ours - peer, float32",
    }
    kinds = ("loss", "gradient", "sample")
    table = Table("process", *titles.values(), title="relative differences: mean loss, its gradient, worst sample")
    for row in rows:
        table.add_row(row["process"], *(" ".join(f"{row[key][kind]:.0e}" for kind in kinds) for key in titles))
    worst = {key: {kind: max(row[key][kind] for row in rows) for kind in kinds} for key in titles}
    same = [
        measure.require_same(f"{kind}, {title}, of the worst process", worst[key][kind], LIMIT)
        for key, title in (
            ("float64", "ours and the peer's formula in float64"),
            ("ours_float32_from_exact", "ours in float32 and the peer's formula in float64"),
        )
        for kind in kinds
    ]
    for kind in ("loss", "gradient"):
        value = max(row["float32"][kind] for row in rows if row["in_diffusers_scripts"])
        same.append(measure.require_same(f"{kind}, ours and diffusers' scripts in float32, the worst", value, LIMIT))
    same.append(measure.require_same("logit-normal times, absolute", training_times(), LIMIT))
    content: dict[str, Any] = {
        "ours": {"label": "leam_mm.diffusion", "worst": worst, "rows": rows},
        "peer": {"label": "diffusers 0.42.1's schedulers and training_utils"},
        "ratio": None,
        "ratio_means": "not measured: these are differences, not times",
        "same_work": same,
        "notes": (
            f"{BATCH} latents of {CHANNELS} x {SIDE} x {SIDE}, a small convolutional network that computes in float64; "
            "weights, noise and times are shared. Differences of a loss are over the mean loss, of a gradient over its "
            "norm. Predicting the clean data with min-SNR, CleanFlow and Edm's weight are in no script of diffusers: "
            "there the peer is the paper's formula on its schedulers. In float32 the peer's table is a product of up "
            "to a thousand rounded factors, of which it takes 1 - a^2: that is the peer's own distance from its "
            "formula, and most of what is between both sides"
        ),
    }
    return [measure.write_result(content, settings, table)]


if __name__ == "__main__":
    run(main)

"""Gradients of a codec and its critic on two ranks, ours and in the pattern of diffusers' script, against one process.

The truth is the plain formula on the whole batch in one process, in float64. Ours is LatentCodecModule under
Lightning's Trainer, whose DistributedDataParallel calls it. The peer is a short loop with the four properties that were
read in diffusers' examples/research_projects/autoencoderkl/train_autoencoderkl.py; it shares no code with it and calls
our networks. Each property is measured alone too, and without any of them the loop shows that the measurement is right.
"""

import tempfile
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import measure
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from rich.table import Table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.codec_losses import Adversarial, CodecLosses
from leam_mm.codecs.latent_codec import KLCodec
from leam_mm.codecs.perceptual_loss import EfficientNetLoss
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.errors import UserError, run
from leam_mm.losses.reconstruction import PatchDiscriminator
from leam_mm.optim.schedule import Schedule

BATCH, SIZE, STEPS, RANKS, SEED = 8, 32, 4, 2, 5
PERCEPTUAL, KL, ADVERSARIAL = 1.0, 0.1, 0.5
LIMIT = 1e-10


@dataclass(frozen=True)
class Pattern:
    """What the published script does.

    Args:
        perceptual_without_gradient: The perceptual loss is computed under no_grad.
        around_ddp: The codec is called unwrapped, so that its gradients are not averaged.
        undetached: The critic's step differentiates through the reconstructions, into the codec's gradients, which are
            cleared only after the codec's next step.
        critic_not_cleared: The codec's step leaves its gradient in the critic, whose own next step goes along it too.
    """

    perceptual_without_gradient: bool = True
    around_ddp: bool = True
    undetached: bool = True
    critic_not_cleared: bool = True


class Images(Dataset[dict[str, Any]]):
    """Images of a few colours each, with their sample index; a rank gets its part of each global batch."""

    def __init__(self, ranks: int = 1) -> None:
        self.ranks = ranks
        coarse = torch.rand(BATCH * STEPS, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.image = (nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.image) // self.ranks

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, place = divmod(index, BATCH // self.ranks)
        number = step * BATCH + (dist.get_rank() * BATCH // self.ranks if self.ranks > 1 else 0) + place
        return {"image": self.image[number], "sample_index": torch.tensor(number)}


def networks() -> tuple[KLCodec, PatchDiscriminator]:
    """Codec and critic, the same everywhere."""
    torch.manual_seed(1)
    return KLCodec(latent_channels=4, widths=[8, 8, 16], layers=1, norm_groups=4), PatchDiscriminator(width=8)


def flat(network: nn.Module) -> Tensor:
    """All gradients as one vector; a weight without one has zeros."""
    found = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in network.parameters()]
    return torch.cat([gradient.detach().flatten() for gradient in found])


class Recorded(LatentCodecModule):
    """Our module; records the gradients with which each network steps."""

    def __init__(self, folder: str) -> None:
        codec, critic = networks()
        super().__init__(
            codec,
            still,
            CodecLosses(perceptual=EfficientNetLoss((0, 1)), perceptual_weight=PERCEPTUAL, kl_weight=KL),
            Adversarial(critic, weight=ADVERSARIAL, clip=1e9),
            Schedule(warmup_steps=0),
            seed=SEED,
        )
        self.folder, self.found = folder, {"codec": [], "critic": []}  # type: ignore[var-annotated]

    def _step(self, optimizer: Any, loss: Tensor, network: nn.Module) -> None:
        super()._step(optimizer, loss, network)
        self.found["critic" if network is self.discriminator else "codec"].append(flat(network))

    def on_train_end(self) -> None:
        """Save the gradients."""
        torch.save(self.found, f"{self.folder}/ours_{self.trainer.world_size}_{self.global_rank}.pt")


def still(parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that moves nothing, so that each step is measured at the same weights."""
    return torch.optim.SGD(parameters, lr=0.0)


def train_ours(folder: str, ranks: int) -> None:
    """Our trainer for STEPS global batches on this many ranks."""
    strategy: Any = "auto"
    if ranks > 1:
        strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo", find_unused_parameters=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        precision="64-true",
        max_steps=STEPS,
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Recorded(folder), DataLoader(Images(ranks), batch_size=BATCH // ranks))


class Autoencoder(nn.Module):
    """The codec's forward pass in one call, for DistributedDataParallel."""

    def __init__(self, codec: KLCodec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, posterior mean and log variance."""
        posterior = self.codec.posterior(image)
        reconstruction = self.codec.decode_raw(posterior.mean + posterior.std * noise)
        return reconstruction, posterior.mean, posterior.logvar


def inputs(step: int, rank: int = 0, ranks: int = 1) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] of a rank's part of a global batch, and the noise of their posteriors, in float64."""
    part = slice(step * BATCH + rank * BATCH // ranks, step * BATCH + (rank + 1) * BATCH // ranks)
    numbers = torch.arange(BATCH * STEPS)[part]
    noise = PhiloxStream().normal(SEED, numbers, "posterior", (4, SIZE // 4, SIZE // 4))
    return Images().image[part].double() / 127.5 - 1, noise.double()


def codec_loss(outputs: tuple[Tensor, Tensor, Tensor], image: Tensor, perceptual: Tensor, critic: nn.Module) -> Tensor:
    """L1, perceptual distance, divergence per latent value, and the critic's opinion, in plain terms of torch."""
    reconstruction, mean, logvar = outputs
    divergence = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
    opinion = -critic(reconstruction).mean()
    return (reconstruction - image).abs().mean() + PERCEPTUAL * perceptual + KL * divergence + ADVERSARIAL * opinion


def critic_loss(critic: nn.Module, image: Tensor, reconstruction: Tensor) -> Tensor:
    """Hinge."""
    return 0.5 * ((1 - critic(image)).relu().mean() + (1 + critic(reconstruction)).relu().mean())


def truth() -> dict[str, list[Tensor]]:
    """Gradients of both networks at each step, of the whole batch in one process."""
    codec, critic = (network.double() for network in networks())
    autoencoder, distance = Autoencoder(codec), EfficientNetLoss((0, 1))
    found: dict[str, list[Tensor]] = {"codec": [], "critic": []}
    for step in range(STEPS):
        image, noise = inputs(step)
        outputs = autoencoder(image, noise)
        loss = codec_loss(outputs, image, distance(outputs[0], image).mean(), critic)
        found["codec"].append(_gradient(loss, codec))
        found["critic"].append(_gradient(critic_loss(critic, image, outputs[0].detach()), critic))
    return found


def _gradient(loss: Tensor, network: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def train_peer(rank: int, ranks: int, pattern: Pattern) -> dict[str, list[Tensor]]:
    """The script's loop: codec and critic step in turns, each on a batch of its own."""
    codec, critic = (network.double() for network in networks())
    autoencoder = DistributedDataParallel(Autoencoder(codec))
    judge, distance = DistributedDataParallel(critic), EfficientNetLoss((0, 1))
    found: dict[str, list[Tensor]] = {"codec": [], "critic": []}
    for step in range(STEPS):
        image, noise = inputs(step, rank, ranks)
        called = autoencoder.module if pattern.around_ddp else autoencoder
        codecs_turn = step % 2 == 0
        with torch.set_grad_enabled(codecs_turn or pattern.undetached):
            outputs = called(image, noise)
        if codecs_turn:
            with torch.set_grad_enabled(not pattern.perceptual_without_gradient):
                perceptual = distance(outputs[0], image).mean()
            codec_loss(outputs, image, perceptual, judge).backward()
            found["codec"].append(flat(codec))
            codec.zero_grad()  # where the script steps and clears; our weights stand still
            if not pattern.critic_not_cleared:
                critic.zero_grad()
        else:
            critic_loss(judge, image, outputs[0]).backward()
            found["critic"].append(flat(critic))
            critic.zero_grad()
    return found


PATTERNS = {
    "as published": Pattern(),
    "only: perceptual loss without gradient": Pattern(True, False, False, False),
    "only: codec called around DDP": Pattern(False, True, False, False),
    "only: critic's step through the reconstructions": Pattern(False, False, True, False),
    "only: critic keeps the codec step's gradient": Pattern(False, False, False, True),
    "none of the four": Pattern(False, False, False, False),
}


def work(rank: int, ranks: int, folder: str) -> None:
    """One rank of the peer: every pattern."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {name: train_peer(rank, ranks, pattern) for name, pattern in PATTERNS.items()}
    torch.save(found, f"{folder}/peer_{rank}.pt")
    dist.destroy_process_group()


def error(found: Tensor, true: Tensor) -> float:
    """Relative error of a gradient."""
    return float((found - true).norm() / true.norm())


def compare(ranks: list[dict[str, list[Tensor]]], true: dict[str, list[Tensor]], alternating: bool) -> dict[str, Any]:
    """Worst relative error over ranks for each network and step, and how far two ranks are apart.

    Args:
        ranks: Gradients of each rank.
        true: Gradients of one process at every step.
        alternating: Whether the codec stepped at even steps only and the critic at odd ones.
    """
    row: dict[str, Any] = {}
    for name, start in (("codec", 0), ("critic", 1)):
        wanted = true[name][start::2] if alternating else true[name]
        row[name] = [max(error(rank[name][n], gradient) for rank in ranks) for n, gradient in enumerate(wanted)]
    apart = [error(ranks[-1][name][n], ranks[0][name][n]) for name in true for n in range(len(ranks[0][name]))]
    return {**row, "ranks_apart": max(apart)}


@measure.benchmark(repeats=1)
def main(settings: measure.Settings) -> list[Path]:
    """Run both, compare, write."""
    true = truth()
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        for ranks in (1, RANKS):
            train_ours(folder, ranks)
            files = [f"{folder}/ours_{ranks}_{rank}.pt" for rank in range(ranks)]
            ours[ranks] = compare([torch.load(file, weights_only=True) for file in files], true, False)
        multiprocessing.spawn(work, (RANKS, folder), nprocs=RANKS)
        noted = [torch.load(f"{folder}/peer_{rank}.pt", weights_only=True) for rank in range(RANKS)]
        peer = {name: compare([note[name] for note in noted], true, True) for name in PATTERNS}
    worst = max(max(*row["codec"], *row["critic"]) for row in ours.values())
    if not worst <= LIMIT:
        raise UserError(f"our gradients are off by {worst:.3g} relative in float64, more than {LIMIT:g}")
    repaired = max(*peer["none of the four"]["codec"], *peer["none of the four"]["critic"])
    same_work = [
        {"compared": "ours against one process in float64, relative", "difference": worst, "limit": LIMIT},
        measure.require_same("the peer's loop without the four properties, against one process", repaired, LIMIT),
    ]
    table = Table("", "ranks", "codec", "codec, later", "critic", "critic, later", "ranks apart")
    table.title = "relative error of the gradients against one process, float64"
    lines = [("leam_mm", ranks, row) for ranks, row in ours.items()]
    for label, ranks, row in lines + [(f"script's pattern, {name}", RANKS, row) for name, row in peer.items()]:
        numbers = (row["codec"][0], max(row["codec"][1:]), row["critic"][0], max(row["critic"][1:]), row["ranks_apart"])
        table.add_row(label, str(ranks), *(f"{number:.1e}" for number in numbers))
    content: dict[str, Any] = {
        "ours": {"label": "leam_mm", "worst": worst, "rows": [{"ranks": ranks, **row} for ranks, row in ours.items()]},
        "peer": {
            "label": "a loop in the pattern of diffusers' train_autoencoderkl.py",
            "rows": [
                {
                    "pattern": name,
                    **dict(zip([f.name for f in fields(Pattern)], astuple(PATTERNS[name]), strict=True)),
                    "ranks": RANKS,
                    **row,
                }
                for name, row in peer.items()
            ],
            # Alone, all of the error of the codec's second step is what the critic's step has left behind.
            "leaked_share": peer["only: critic's step through the reconstructions"]["codec"][1],
        },
        "ratio": None,
        "ratio_means": "not measured: these are errors, not times",
        "same_work": same_work,
        "notes": (
            f"batch {BATCH} of {SIZE} px over {RANKS} gloo ranks, KL autoencoder of 4 channels, L1 + {PERCEPTUAL:g} x "
            f"EfficientNet features + {KL:g} x divergence + {ADVERSARIAL:g} x critic, at fresh weights that stand "
            "still. The critic's weight is fixed; the script adapts it on each rank by that rank's own gradient, which "
            "is not counted here. leaked_share: length of what the critic's step leaves in the codec's gradient, over "
            "the true gradient's length. The script's properties were read in its source; the script itself was not run"
        ),
    }
    message = f"the critic's step leaks {content['peer']['leaked_share']:.1%} of the codec's gradient"
    return [measure.write_result(content, settings, table, message=message)]


if __name__ == "__main__":
    run(main)

"""Small codecs, a module that trains one, and random images for it."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from leam_mm.codec_module import LatentCodecModule
from leam_mm.codecs.codec_losses import Adversarial, CodecLosses
from leam_mm.codecs.latent_codec import DCCodec, KLCodec, LatentCodec
from leam_mm.losses.reconstruction import PatchDiscriminator
from leam_mm.optim.schedule import Schedule

QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class RandomImages(Dataset[dict[str, Any]]):
    """Fixed random images with the sample index that the loader would give them."""

    def __init__(self, count: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        self.image = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image[index], "sample_index": torch.tensor(index)}


class RankImages(RandomImages):
    """Images of this rank: its slice of each global batch of four, as in our own loader."""

    def __len__(self) -> int:
        return len(self.image) // 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        step, row = divmod(index, 2)
        return super().__getitem__(4 * step + 2 * torch.distributed.get_rank() + row)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def codec_module(
    seed: int = 0,
    kind: str = "dc",
    critic: dict[str, Any] | None = None,
    losses: dict[str, Any] | None = None,
    **settings: Any,
) -> LatentCodecModule:
    """A small codec in training; `critic` and `losses` are arguments of Adversarial and CodecLosses."""
    torch.manual_seed(seed)
    codec: Any = (
        DCCodec(latent_channels=4, widths=[8, 8, 16], layers=[0, 1, 1])
        if kind == "dc"
        else KLCodec(latent_channels=4, widths=[8, 8, 8], layers=1, norm_groups=4)
    )
    adversarial = Adversarial(PatchDiscriminator(width=4), **critic) if critic is not None else None
    return LatentCodecModule(codec, sgd, CodecLosses(**(losses or {})), adversarial, Schedule(0), **settings)


def fit_codec(model: LatentCodecModule, folder: Path, steps: int = 2, batch_size: int = 4, **settings: Any) -> Trainer:
    """Train on random images."""
    trainer = Trainer(accelerator="cpu", max_steps=steps, default_root_dir=folder, **(QUIET | settings))
    loader = DataLoader(RankImages() if trainer.world_size > 1 else RandomImages(), batch_size=batch_size)
    trainer.fit(model, loader, DataLoader(RandomImages(8), batch_size=4))
    return trainer


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def tiny_kl() -> LatentCodec:
    return KLCodec(latent_channels=4, widths=[16, 16, 32], layers=1, norm_groups=8)


def tiny_dc() -> LatentCodec:
    return DCCodec(latent_channels=4, widths=[8, 8, 16], layers=[0, 1, 1])

"""Small denoisers and generators, with inputs whose answer is known."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.checkpoint import EVIDENCE, build_module
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.data.batch import collate_samples
from leam_mm.denoisers.block_step import Tokens
from leam_mm.denoisers.denoiser import Denoiser, PRXDenoiser, UNetDenoiser
from leam_mm.denoisers.sd3_denoiser import SD3Denoiser
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.optim.power_ema import gamma_of
from leam_mm.optim.schedule import Schedule
from leam_mm.techniques.technique import Technique
from toys.codecs import QUIET
from toys.encoders import tiny_clip
from toys.recipes import generator_section

CAPTION_LENGTH, CAPTION_WIDTH = 6, 12


def clean_noise_time(count: int, first: float, last: float) -> tuple[Tensor, Tensor, Tensor]:
    """Clean data and noise (count, 3, 4, 4) and rising times, in double precision."""
    clean, noise = torch.randn(2, count, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return clean, noise, torch.linspace(first, last, count, dtype=torch.float64)


def uniform_quantiles(count: int) -> Tensor:
    """Evenly spaced numbers between 0 and 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


class FakeCaptions(nn.Module):
    """States that depend on the text alone."""

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.stack([torch.full((CAPTION_LENGTH, CAPTION_WIDTH), len(text) / 10 - 1.0) for text in captions])
        length = torch.tensor([min(CAPTION_LENGTH, 2 + len(text.split())) for text in captions])
        return state, torch.arange(CAPTION_LENGTH) < length[:, None]


class FakeCodec(nn.Module):
    """Latents are the channels of the image and its first channel again; decode drops the last."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([image, image[:, :1]], dim=1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent[:, :3].clamp(-1, 1)


class SignLatents(Dataset[dict[str, Any]]):
    """Samples with constant latents of 1 or -1; their captions show the sign."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        sign = 1.0 if number % 2 else -1.0
        return {
            "latent": torch.full((4, 4, 4), sign),
            "caption_state": torch.full((CAPTION_LENGTH, CAPTION_WIDTH), sign),
            "caption_length": torch.tensor(3),
            "sample_index": torch.tensor(number),
        }


def generator_module(**changes: Any) -> LatentDiffusionModule:
    """A small generator for SignLatents with fake frozen parts; `changes` replace its arguments."""
    torch.manual_seed(0)
    denoiser = PRXDenoiser(4, CAPTION_WIDTH, hidden_size=32, depth=1, num_heads=2)
    arguments: dict[str, Any] = {"latent_size": 4, "caption_dropout": 0.5, "ema": 0.9}
    arguments |= {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=3e-3), "schedule": Schedule(0, "constant")}
    process = changes.pop("process", RectifiedFlow())
    module = LatentDiffusionModule(denoiser, process, **{**arguments, **changes})
    module.frozen.opened = {"clip": FakeCaptions(), "codec": FakeCodec()}
    return module


def randomise_generator(module: LatentDiffusionModule) -> LatentDiffusionModule:
    """Draw all weights anew, the same ones for the average, so that no layer is at zero."""
    torch.manual_seed(1)
    for value, average in zip(module.denoiser.parameters(), module.ema_denoiser().parameters(), strict=True):
        nn.init.normal_(value, std=0.2)
        average.data.copy_(value)
    return module


def train_generator(module: LatentDiffusionModule, folder: Path, steps: int, **changes: Any) -> Trainer:
    """Train on SignLatents."""
    trainer = Trainer(accelerator="cpu", max_steps=steps, default_root_dir=folder, **QUIET, **changes)
    trainer.fit(module, DataLoader(SignLatents(4096), batch_size=16, collate_fn=collate_samples))
    return trainer


PROMPTS = ["Ein rotes Quadrat", "a blue square [left of] l’oiseau", "Ένα κόκκινο τετράγωνο"]


def tiny_generator(
    tokenizer: Path,
    codec: LatentCodec,
    shift: float,
    seed: int = 0,
    process: DiffusionProcess | None = None,
    network: str = "prx",
) -> LatentDiffusionModule:
    """A generator with random weights; its frozen parts are given directly, without checkpoints."""
    clip = tiny_clip(tokenizer, seed=seed)
    denoiser: Denoiser
    if network == "unet":
        denoiser = UNetDenoiser(codec.channels, 32, block_channels=[16, 32], num_heads=2, norm_groups=8)
    elif network == "sd3":
        denoiser = SD3Denoiser(codec.channels, 32, hidden_size=32, depth=2, num_heads=2, latent_size=8)
    else:
        denoiser = PRXDenoiser(in_channels=codec.channels, context_dim=32, hidden_size=32, depth=2, num_heads=2)
    for parameter in [*denoiser.parameters(), *codec.parameters()]:
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    codec.measure(codec.encode_raw(torch.rand(4, 3, 32, 32) * 2 - 1).detach())
    module = LatentDiffusionModule(denoiser, process or RectifiedFlow(shift=shift), latent_size=8)
    module.frozen.opened = {"clip": CaptionEncoder(clip.ema_encoder(), clip.tokenizer), "codec": codec.eval()}
    return module.eval()


def build_denoiser(kind: str, **changes: object) -> Denoiser:
    """A denoiser of 4 channels that reads caption states of width 12."""
    torch.manual_seed(0)
    if kind == "prx":
        return PRXDenoiser(4, 12, hidden_size=32, depth=2, num_heads=2, **changes)  # type: ignore[arg-type]
    if kind == "sd3":
        return SD3Denoiser(4, 12, hidden_size=32, depth=2, num_heads=2, latent_size=8, **changes)  # type: ignore[arg-type]
    return UNetDenoiser(4, 12, block_channels=[16, 32], num_heads=2, norm_groups=8, **changes)  # type: ignore[arg-type]


def fill_zero_weights(denoiser: Denoiser, seed: int | None = None) -> Denoiser:
    """Draw the weights that start at zero, so that every layer has an influence on the output."""
    if seed is not None:
        torch.manual_seed(seed)
    for value in denoiser.parameters():
        if not value.any():
            nn.init.normal_(value, std=0.1)
    return denoiser.eval()


def denoiser_inputs(size: int = 8, batch: int = 3, length: int = 6) -> tuple[torch.Tensor, ...]:
    """Latents, timesteps, caption states and their mask."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(batch, 4, size, size, generator=generator)
    mask = torch.arange(length) < torch.tensor([2, 6, 4])[:batch, None]
    return latent, torch.tensor([0.1, 0.5, 1.0])[:batch], torch.randn(batch, length, 12, generator=generator), mask


DEPTH = 5


def sign_generator_section(denoiser: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Model section of a generator for SignLatents.

    Args:
        denoiser: The denoiser's whole section, or changes to the arguments of a PRXDenoiser.
        arguments: More arguments of the generator.
    """
    sizes = {"in_channels": 4, "context_dim": CAPTION_WIDTH, "hidden_size": 32, "depth": 2, "num_heads": 2}
    part = denoiser or {}
    if "class_path" not in part:
        part = {"class_path": "leam_mm.denoisers.denoiser.PRXDenoiser", "init_args": sizes | part}
    own: dict[str, Any] = {"denoiser": part, "latent_size": 4, "schedule": {"warmup_steps": 0}}
    own["process"] = {"class_path": "leam_mm.diffusion.rectified_flow.RectifiedFlow"}
    own["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    return {"class_path": "leam_mm.diffusion_module.LatentDiffusionModule", "init_args": own | arguments}


def save_generator(module: LatentDiffusionModule, section: dict[str, Any], folder: Path) -> Path:
    """A run folder as train.py leaves it."""
    checkpoint = {"state_dict": module.state_dict(), EVIDENCE: {"config": yaml.safe_dump({"model": section})}}
    module.on_save_checkpoint(checkpoint)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(checkpoint, folder / "checkpoints" / "last.ckpt")
    return folder


class BlockRecorder(Technique):
    """Records the tokens after each block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tokens] = []

    def block_steps(self) -> list[Any]:
        return [self]

    def enter(self, number: int, tokens: Tokens) -> Tokens:
        return tokens

    def leave(self, number: int, tokens: Tokens) -> Tokens:
        self.seen.append(tokens)
        if tokens.values.requires_grad:
            tokens.values.retain_grad()
        return tokens


def sign_batch(numbers: Iterable[int]) -> dict[str, Any]:
    """A batch of SignLatents."""
    return collate_samples([SignLatents(64)[number] for number in numbers])


def deep_generator(techniques: list[Technique] | None = None, **changes: Any) -> LatentDiffusionModule:
    """A generator on latents of 4 x 4 tokens; every weight has an influence on the output."""
    torch.manual_seed(0)
    denoiser = PRXDenoiser(4, CAPTION_WIDTH, hidden_size=32, depth=DEPTH, num_heads=2, patch_size=1, **changes)
    module = LatentDiffusionModule(
        denoiser, RectifiedFlow(), latent_size=4, caption_dropout=0.5, ema=None, techniques=techniques
    )
    module.frozen.opened = {"clip": FakeCaptions()}
    for value in module.denoiser.parameters():
        nn.init.normal_(value, std=0.2)
    return module


def torch_kernel(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any = None) -> Tensor:
    """Compute with torch what the kernel of xformers computes."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_bias).transpose(1, 2)


def torch_packed_kernel(
    query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, *longest: int
) -> Tensor:
    """Compute sample by sample what torch's kernel of packed rows computes."""
    found = []
    for sample in range(len(query_starts) - 1):
        mine = slice(int(query_starts[sample]), int(query_starts[sample + 1]))
        keys = slice(int(key_starts[sample]), int(key_starts[sample + 1]))
        assert mine.stop - mine.start <= longest[0] and keys.stop - keys.start <= longest[1]
        found.append(torch_kernel(query[None, mine], key[None, keys], value[None, keys])[0])
    return torch.cat(found)


def small_prx() -> Denoiser:
    """The PRX denoiser of `build_denoiser` without zero weights."""
    return fill_zero_weights(build_denoiser("prx"), seed=1)


def packed_inputs(lengths: list[int], columns: int = 7) -> tuple[Tensor, ...]:
    """Latents, timesteps, caption states of these lengths and their mask."""
    generator = torch.Generator().manual_seed(2)
    count = len(lengths)
    latent = torch.randn(count, 4, 8, 8, generator=generator)
    state = torch.randn(count, columns, 12, generator=generator)
    return latent, torch.linspace(0.2, 0.9, count), state, torch.arange(columns) < torch.tensor(lengths)[:, None]


def power_average(path: np.ndarray, width: float) -> np.ndarray:
    """Power-function average by its definition: each step weighted with the integral of the profile over it."""
    steps = np.arange(1, len(path) + 1, dtype=np.longdouble) / len(path)
    ends = steps ** (gamma_of(width) + 1)
    return np.asarray(np.diff(ends, prepend=np.longdouble(0)) @ path.astype(np.longdouble), np.float64)


def write_generator_run(folder: Path, clip: Path, codec: Path) -> Path:
    """A run folder of an untrained generator on the frozen parts of two checkpoints."""
    section = generator_section(clip, codec)
    torch.manual_seed(0)
    module: Any = build_module(section)
    return save_generator(randomise_generator(module), section, folder)

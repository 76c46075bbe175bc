"""A generator in closed form for controls: what it memorizes is given, so that no network has to be trained."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from leam_mm.data.random_stream import PhiloxStream
from leam_mm.diffusion.rectified_flow import RectifiedFlow

STRENGTH = 0.2  # of what a caption that is not memorized changes


class PixelCodec:
    """A codec that reduces images to a quarter of their side and back; latents are pixels from -1 to 1."""

    downscale = 4

    def encode(self, images: Tensor) -> Tensor:
        """Return (B, 3, H / 4, W / 4)."""
        return torch.nn.functional.avg_pool2d(images, self.downscale)

    def decode(self, latents: Tensor) -> Tensor:
        """Return (B, 3, H, W)."""
        return torch.nn.functional.interpolate(latents, scale_factor=self.downscale, mode="bilinear")


class EmpiricalGenerator:
    """Stands for a diffusion module: the best prediction for a distribution of latents, in closed form.

    Without memory, latents are Gaussian around the mean that the caption shifts a little. A memorized caption is
    predicted to show its image. An overfitted generator predicts the posterior mean over its training latents, so that
    their loss is the smallest possible.

    Args:
        side: Side of the images in pixels.
        memory: Images (3, side, side) uint8 by their caption.
        overfitted: Training images (B, 3, side, side) uint8, or None.
        deviation: Standard deviation of the latents.
    """

    def __init__(
        self,
        side: int,
        memory: Mapping[str, Tensor] | None = None,
        overfitted: Tensor | None = None,
        deviation: float = 0.5,
    ) -> None:
        """See the class for the arguments."""
        self.codec, self.process, self.device = PixelCodec(), RectifiedFlow(), torch.device("cpu")
        self.latent_size, self.in_channels, self.deviation = side // self.codec.downscale, 3, deviation
        self.caption_encoder = self.conditioning = self
        self.stream = PhiloxStream()
        self.memory = {text: self._latents(image[None])[0] for text, image in (memory or {}).items()}
        self.training = None if overfitted is None else self._latents(overfitted)
        self.texts = [""]

    def _latents(self, images: Tensor) -> Tensor:
        return self.codec.encode(images.float() / 127.5 - 1)

    def ema_denoiser(self) -> "EmpiricalGenerator":
        """Return the network."""
        return self

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Return the number of each text as its state (B, 1, 1), and the mask (B, 1)."""
        first = len(self.texts)
        self.texts += texts
        numbers = torch.arange(first, first + len(texts), dtype=torch.float64)
        return numbers[:, None, None], torch.ones(len(texts), 1, dtype=torch.bool)

    def empty(self) -> tuple[Tensor, Tensor]:
        """Return state and mask of the empty caption."""
        return torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)

    def __call__(self, x_t: Tensor, time: Tensor, state: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """Return the velocity (x_t - clean) / t for the clean latents that are expected."""
        texts = [self.texts[int(number)] for number in state[:, 0, 0].tolist()]
        t = time[:, None, None, None]
        clean = self._posterior(x_t, t) if self.training is not None else self._gaussian(x_t, t, texts)
        for row, text in enumerate(texts):
            if text in self.memory:
                clean[row] = self.memory[text]
        return (x_t - clean) / t

    def _gaussian(self, x_t: Tensor, t: Tensor, texts: list[str]) -> Tensor:
        mean = torch.stack([caption_shift(text, x_t.shape[1:]) for text in texts])
        variance = self.deviation**2
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return mean + gain * (x_t - (1 - t) * mean)

    def _posterior(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert self.training is not None
        # Distances to (1 - t) latents, without what is equal for all of them.
        rows, training, share = x_t.flatten(1), self.training.flatten(1), 1 - t[:, 0, 0]
        distance = share**2 * training.square().sum(1) - 2 * share * rows @ training.T
        weights = (-distance / (2 * t[:, 0, 0] ** 2)).softmax(1)
        return (weights @ training).view_as(x_t)

    def sample(
        self, prompts: list[str], seed: int, steps: int = 20, guidance: float = 1.0, first_index: int = 0
    ) -> Tensor:
        """Return the images (B, 3, H, W) in [0, 1]; guidance is ignored."""
        numbers = torch.arange(first_index, first_index + len(prompts))
        noise = self.stream.normal(seed, numbers, "sample", (3, self.latent_size, self.latent_size))
        state, mask = self.encode(prompts)
        latents = self.process.sample(lambda x, time: self(x, time, state, mask), noise, self.process.times(steps))
        return (self.codec.decode(latents) / 2 + 0.5).clamp(0, 1)


def caption_shift(text: str, shape: tuple[int, ...]) -> Tensor:
    """Return what a caption adds to the mean of the latents, a function of the text alone; zero for the empty one."""
    if not text:
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return STRENGTH * torch.randn(shape, generator=generator)

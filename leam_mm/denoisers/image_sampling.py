"""Sampling of images from captions: noise by sample number, guidance, sampler, edits and decoding."""

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor

from leam_mm.captions.caption_encoder import Caption
from leam_mm.codecs.latent_codec import LatentCodec
from leam_mm.data.caption_states import trim
from leam_mm.data.random_stream import PhiloxStream, RandomStream
from leam_mm.denoisers.denoiser import Denoiser
from leam_mm.denoisers.size_conditioning import whole_image
from leam_mm.diffusion.editing import Edit, edit_images
from leam_mm.diffusion.guidance import CaptionDenoise, guide
from leam_mm.diffusion.process import DiffusionProcess
from leam_mm.diffusion.sampler_settings import SamplerSettings


@dataclass(frozen=True)
class ImageSampler:
    """Samples one image for each caption.

    Args:
        denoiser: The network.
        process: What the network predicts.
        codec: Decodes the latents.
        size: Height and width of the latents.
        seed: With a sample's number it names the noise, so that neither batch nor neighbours matter.
        sampling: Steps, guidance and method.
        weaker: Network of a weaker generator, for autoguidance.
        stream: Draws the noise.
    """

    denoiser: Denoiser
    process: DiffusionProcess
    codec: LatentCodec
    size: tuple[int, int]
    seed: int
    sampling: SamplerSettings
    weaker: Denoiser | None = None
    stream: RandomStream = field(default_factory=PhiloxStream)

    def __call__(self, captions: Caption, empty: Caption, numbers: Tensor, edit: Edit | None = None) -> Tensor:
        """Sample a batch.

        Args:
            captions: state (B, L, D) and mask (B, L).
            empty: state (1, L, D) and mask (1, L) of the empty caption.
            numbers: (B,) int64 on the CPU, the samples' numbers.
            edit: B images to start from, or None.

        Returns:
            (B, 3, H, W) float in [0, 1], on the captions' device.
        """
        device = captions[0].device
        shape = (self.denoiser.in_channels, *self.size)
        noise = self.stream.normal(self.seed, numbers, "sample", shape).to(device)
        captions, empty = trim(captions, empty)
        weaker = self._with_size(self.weaker) if self.weaker is not None else None
        denoise = guide(self._with_size(self.denoiser), captions, empty, self.sampling.guidance, weaker)
        calls = itertools.count()

        def fresh_noise(step: int) -> Tensor:
            return self.stream.normal(self.seed, numbers, f"sample {next(calls)}", shape).to(device)

        def sample(x: Tensor, times: Tensor) -> Tensor:
            return self.process.sample(denoise, x, times, self.sampling.method, fresh_noise)

        times = self.process.times(self.sampling.steps, self.size[0] * self.size[1])
        training = self.denoiser.training
        self.denoiser.eval()
        with ExitStack() as stack:
            for network in filter(None, (self.denoiser, self.weaker)):
                stack.enter_context(network.sampling(times))
            if edit is None:
                image = self.codec.decode(sample(noise, times))
            else:
                image = edit_images(edit, self.codec, self.process, sample, noise, times)
        self.denoiser.train(training)
        return (image.float() / 2 + 0.5).clamp(0, 1)

    def _with_size(self, denoiser: Denoiser) -> CaptionDenoise:
        """Bind the size of a whole image, if the network has size conditioning."""
        size = whole_image(*self.size, self.codec.downscale) if denoiser.size_conditioning is not None else None

        def denoise(x_t: Tensor, time: Tensor, state: Tensor, mask: Tensor) -> Tensor:
            return denoiser(x_t, time, state, mask, size=size)

        return denoise

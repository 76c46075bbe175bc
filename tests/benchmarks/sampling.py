"""Images from our LatentDiffusionModule against diffusers' PRXPipeline on the same weights, noise and captions.

With guidance the pipeline of diffusers 0.42.1 takes one prompt at a time (more than one crashes), so it is compared one
by one; in a batch without guidance; and, for many guided images, our batch against a loop over it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor
from toy_input import captions, write_tokenizer

from leam_mm.captions.caption_encoder import CaptionEncoder
from leam_mm.codecs.latent_codec import DCCodec
from leam_mm.contrastive_module import ContrastiveModule
from leam_mm.data.random_stream import PhiloxStream
from leam_mm.data.tokenizer import Tokenizer
from leam_mm.denoisers.denoiser import PRXDenoiser
from leam_mm.diffusion.rectified_flow import RectifiedFlow
from leam_mm.diffusion_module import LatentDiffusionModule
from leam_mm.encoders.dual_encoder import DualEncoder, ImageTower, TextTower
from leam_mm.errors import run
from leam_mm.losses.contrastive import InfoNCE
from leam_mm.release.diffusers_folder import build_pipeline

SEED, STEPS, GUIDANCE, CONTEXT = 7, 25, 3.0, 32
LATENT_SIZE = {"cpu": 8, "cuda": 32}


def build_generator(tokenizer: Path, device: str) -> LatentDiffusionModule:
    """A generator of the quickstart's size; weights are random, with none left at zero."""
    torch.manual_seed(0)
    vocabulary = Tokenizer(tokenizer, CONTEXT).vocabulary
    text = TextTower(CONTEXT, vocabulary, 128, 4, 3)
    clip = ContrastiveModule(DualEncoder(128, ImageTower(32, 8, 128, 4, 32), text), InfoNCE(), str(tokenizer))
    codec = DCCodec(latent_channels=16, widths=[16, 16, 32, 64], layers=[0, 1, 1, 1])
    denoiser = PRXDenoiser(16, 128, hidden_size=160, depth=5, num_heads=5, patch_size=1)
    with torch.no_grad():
        for parameter in [*denoiser.parameters(), *codec.parameters()]:
            parameter.add_(0.02 * torch.randn_like(parameter))
        codec.measure(codec.encode_raw(torch.rand(4, 3, 64, 64) * 2 - 1))
    module = LatentDiffusionModule(denoiser, RectifiedFlow(), LATENT_SIZE[device])
    # Trained runs open these from checkpoints.
    module.frozen.opened = {"clip": CaptionEncoder.from_module(clip), "codec": codec.requires_grad_(False).eval()}
    return module.eval().to(device)


@measure.benchmark(repeats=7, devices=("cpu", "cuda"), pictures=(8, "prompts drawn"))
def main(settings: measure.Settings) -> list[Path]:
    """Measure the three cases."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = write_tokenizer(Path(scratch) / "tokenizer", CONTEXT, captions(500))
        return _measure(build_generator(tokenizer, settings.device), settings)


def _measure(module: LatentDiffusionModule, settings: Any) -> list[Path]:
    size = module.latent_size * module.codec.downscale
    pipeline = build_pipeline(module.ema_denoiser(), module.process, module.caption_encoder, module.codec, size).to(
        settings.device
    )
    pipeline.set_progress_bar_config(disable=True)
    prompts = captions(settings.pictures, seed=5)
    shape = (module.denoiser.in_channels, module.latent_size, module.latent_size)
    noise = PhiloxStream().normal(SEED, torch.arange(len(prompts)), "sample", shape)

    def ours_batch(guidance: float) -> Tensor:
        return module.sample(prompts, SEED, STEPS, guidance)

    def ours_single(guidance: float) -> Tensor:
        return torch.cat(
            [
                module.sample([prompt], SEED, STEPS, guidance, first_index=number)
                for number, prompt in enumerate(prompts)
            ]
        )

    def draw(prompt: str | list[str], latent: Tensor, guidance: float) -> Tensor:
        return pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            latents=latent.to(settings.device),
            use_resolution_binning=False,
            output_type="pt",
        ).images

    def peer_single(guidance: float) -> Tensor:
        return torch.cat([draw(prompt, noise[[number]], guidance) for number, prompt in enumerate(prompts)])

    def peer_batch(guidance: float) -> Tensor:
        return draw(prompts, noise, guidance)

    cases: list[tuple[str, Callable[[float], Tensor], Callable[[float], Tensor], float, str]] = [
        ("sampling", ours_single, peer_single, GUIDANCE, "guided, one prompt at a time on both sides"),
        ("sampling_batch", ours_batch, peer_batch, 1.0, "without guidance, all prompts in one batch on both sides"),
        (
            "sampling_guided_batch",
            ours_batch,
            peer_single,
            GUIDANCE,
            "guided; ours in one batch, the peer one prompt at a time, since its batches crash with guidance",
        ),
    ]
    written, limit = [], 1e-4 if settings.device == "cpu" else 2e-3
    for name, ours, peer, guidance, label in cases:
        mine, theirs = ours(guidance), peer(guidance)
        difference = float((mine - theirs.float()).abs().max())
        same = [measure.require_same("pictures in [0, 1], largest difference of a pixel", difference, limit)]
        same[0]["deviation_of_pixels"] = float(mine.std())  # blank images would agree too
        found = measure.time_pairs(
            lambda run=ours, g=guidance: run(g),
            lambda run=peer, g=guidance: run(g),
            settings.repeats,
            device=settings.device,
        )
        notes = f"{label}; {STEPS} Euler steps, {size} x {size} pixels, latents {shape}, random weights"
        labels = ("LatentDiffusionModule.sample", "PRXPipeline")
        work = (len(prompts), "picture")
        written.append(measure.write_comparison(name, labels, found, work, same, settings, notes))
    return written


if __name__ == "__main__":
    run(main)

"""Members and held-out samples of an audit, and images that a generator makes of their captions."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leam_mm.audits.audit import AuditContext, NotRun
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import ImageSample, read_image_samples
from leam_mm.evaluators.generated_images import generate
from leam_mm.files import bytes_sha256

BATCH = 64


def caption_of(sample: ImageSample, language: str) -> str:
    """Return the first caption in the language, else the first of all; empty if there is none."""
    if found := sample.captions(language):
        return found[0]
    texts = [str(caption.get("text", "")).strip() for caption in sample.record.get("captions", [])]
    return next(filter(None, texts), "")


def captioned_samples(shards: Path, samples: int, language: str) -> tuple[list[ImageSample], list[str]]:
    """Return samples spread evenly over a shard folder, with a caption of each; samples without one are skipped.

    Args:
        shards: Shard folder.
        samples: Number of samples read.
        language: Language of the captions, if a sample has it.
    """
    found = [(sample, caption_of(sample, language)) for sample in read_image_samples(shards, samples)]
    chosen = [(sample, text) for sample, text in found if text]
    if not chosen:
        raise NotRun("the shards have no captions: give shards of captioned images")
    return [sample for sample, _ in chosen], [text for _, text in chosen]


def refuse_overlap(context: AuditContext) -> None:
    """Fail if held-out images are training images, by the digests of their files.

    Raises:
        UserError: There are such images; the message counts them.
        NotRun: One of both folders is missing.
    """
    _refuse_shared(Path(context.require("shards")), Path(context.require("held_out")))


@lru_cache(maxsize=1)  # two audits ask for it
def _refuse_shared(shards: Path, held_out: Path) -> None:
    own = {_digest(sample) for sample in read_image_samples(held_out)}
    shared = own & {_digest(sample) for sample in read_image_samples(shards)}
    if shared:
        raise UserError(
            f"{len(shared)} of {len(own)} images of held_out {held_out} are in the training shards {shards}, too: give "
            "images that no model under audit was trained on"
        )


def _digest(sample: ImageSample) -> str:
    return bytes_sha256(sample.encoded)


def stacked_pixels(samples: list[ImageSample], size: int) -> Tensor:
    """Return (B, 3, size, size) uint8."""
    return torch.stack([sample.pixels(size) for sample in samples])


def generated_images(module: Any, prompts: list[str], sampling: SamplerSettings, seed: int) -> Tensor:
    """Return one image for each prompt, (B, 3, H, W) uint8 on the CPU."""
    parts = [
        generate(module, prompts[start : start + BATCH], sampling, seed, start)
        for start in range(0, len(prompts), BATCH)
    ]
    return torch.cat(parts)

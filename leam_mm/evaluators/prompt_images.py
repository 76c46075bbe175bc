"""Images for parallel prompts, one PNG for each concept, language and seed, in the folder `CONCEPT/LANGUAGE_SEED.png`.

A concept has the same noise in all languages, so that only the language differs. Each PNG names the digest of all that
decides its pixels, so that a second run draws what is missing. Without a generator, the folder holds images of anyone.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.image_file import open_image
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.distributed import any_rank
from leam_mm.errors import UserError
from leam_mm.evaluators.generated_images import generate
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated
from leam_mm.prompts.prompt_set import PromptSet

DIGEST = "PromptImage"  # keyword of the PNG's text


class PromptImages:
    """The images of a prompt set.

    Args:
        folder: Where they lie.
        prompts: The prompts.
        sampling: How they are sampled.
        seeds: Seeds of the noise, one image of each prompt for each of them.
        generator: A LatentDiffusionModule that draws missing ones; None if all are there.
        device: Device for communication between ranks.
    """

    def __init__(
        self,
        folder: Path,
        prompts: PromptSet,
        sampling: SamplerSettings,
        seeds: Sequence[int],
        generator: Any,
        device: torch.device,
    ) -> None:
        """See the class for the arguments."""
        self.folder, self.prompts, self.sampling, self.seeds = Path(folder), prompts, sampling, seeds
        self.generator, self.device = generator, device
        self.sha256 = generator_sha256(generator) if generator is not None else ""

    def path(self, concept: int, language: str, seed: int) -> Path:
        """Return the file of one image."""
        return self.folder / self.prompts.concepts[concept].id / f"{language}_{seed}.png"

    def of_concept(self, concept: int) -> Tensor:
        """Return the images of a concept: (languages * images, 3, H, W) uint8, all languages for the first seed first.

        Raises:
            UserError: An image is missing and there is no generator; or it cannot be read, or sizes differ.
        """
        images = [self._of_seed(concept, seed) for seed in self.seeds]
        if len({part.shape for part in images}) > 1:
            raise UserError(f"{self.folder / self.prompts.concepts[concept].id}: images have different sizes")
        return torch.cat(images)

    def _of_seed(self, concept: int, seed: int) -> Tensor:
        paths = [self.path(concept, language, seed) for language in self.prompts.languages]
        if self.generator is None:
            return _stack(paths)
        marks = [self._digest(concept, language, seed) for language in self.prompts.languages]
        present = all(_digest_in(path) == mark for path, mark in zip(paths, marks, strict=True)) and bool(self.sha256)
        # All languages at once, and on all ranks if one of them draws: weights may be sharded.
        if any_rank(not present, self.device):
            texts = list(self.prompts.concepts[concept].texts.values())
            drawn = generate(self.generator, texts, self.sampling, seed, numbers=[concept] * len(texts))
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            name = generator_name(self.generator)
            for path, mark, image in zip(paths, marks, drawn.permute(0, 2, 3, 1).numpy(), strict=True):
                save_generated(Image.fromarray(image), path, name, {DIGEST: mark}, self.sha256)
        return _stack(paths)

    def _digest(self, concept: int, language: str, seed: int) -> str:
        entry, s = self.prompts.concepts[concept], self.sampling
        content = {
            "generator": self.sha256, "prompt": entry.texts[language], "number": concept, "seed": seed,
            "steps": s.steps, "guidance": repr(s.guidance), "languages": list(self.prompts.languages),
        }  # fmt: skip
        if s.method is not None:  # so that images from before there was one keep their digest
            content["method"] = s.method
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_in(path: Path) -> str | None:
    """Return the digest in a PNG of an earlier run; None for anything else."""
    try:
        return str(open_image(path.read_bytes(), ("PNG",)).info.get(DIGEST))
    except Exception:  # Pillow raises many kinds on damaged files
        return None


def _stack(paths: list[Path]) -> Tensor:
    images = [_read(path) for path in paths]
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{paths[0].parent}: images have different sizes; give images of one size for each prompt")
    return torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2)


def _read(path: Path) -> numpy.ndarray:
    try:
        image = open_image(path.read_bytes(), ("PNG",))
        if image.mode.startswith("I"):
            raise ValueError("it has more than 8 bits a channel; save it with 8")
        return numpy.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: draw it, or give a generator with --generator") from None
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise UserError(f"{path}: cannot be read as a PNG ({error!s:.120})") from None

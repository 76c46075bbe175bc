"""Images for parallel prompts, one PNG for each concept, language and seed, in the folder `CONCEPT/LANGUAGE_SEED.png`.

A concept has the same noise in all languages, so that only the language differs. Each PNG names the digest of all that
decides its pixels, so that a second run draws what is missing. Without a generator, the folder holds images of anyone.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from leam_mm.data.image_file import open_image
from leam_mm.diffusion.guidance import Guidance
from leam_mm.distributed import any_rank
from leam_mm.errors import UserError
from leam_mm.evaluators.generation import generate
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated
from leam_mm.prompts.prompt_set import PromptSet

DIGEST = "PromptImage"  # keyword of the PNG's text


@dataclass(frozen=True)
class Sampling:
    """How images are drawn.

    Args:
        steps: Sampler steps.
        guidance: Strength of classifier-free guidance, or a Guidance.
        seed: First seed of the noise.
        images: Images of each prompt, with the seeds from `seed` on.
    """

    steps: int = 28
    guidance: float | Guidance = 4.0
    seed: int = 0
    images: int = 1


class PromptImages:
    """The images of a prompt set.

    Args:
        folder: Where they lie.
        prompts: The prompts.
        sampling: How they are drawn.
        generator: A LatentDiffusionModule that draws missing ones; None if all are there.
        device: Device for communication between ranks.
    """

    def __init__(
        self, folder: Path, prompts: PromptSet, sampling: Sampling, generator: Any, device: torch.device
    ) -> None:
        """See the class for the arguments."""
        self.folder, self.prompts, self.sampling = Path(folder), prompts, sampling
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
        seeds = range(self.sampling.seed, self.sampling.seed + self.sampling.images)
        images = [self._of_seed(concept, seed) for seed in seeds]
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
            s = self.sampling
            drawn = generate(self.generator, texts, seed, concept, s.steps, s.guidance, [concept] * len(texts))
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

"""Pictures by the subject that their captions name, and images of known content to test a judge of subjects on."""

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.evaluators.embedding import read_image_samples

SHIFT, SCALE = 0.06, 0.08  # of the side, at most: larger ones cut pictures that fill it


@dataclass(frozen=True)
class SubjectPictures:
    """Pictures and what they show.

    Args:
        images: (B, 3, H, W) uint8.
        subject: (B,) number of each picture's subject.
        captions: Caption of each subject; pictures with one caption show one subject.
        language: Code of the captions' language.
    """

    images: Tensor
    subject: numpy.ndarray
    captions: list[str]
    language: str

    @property
    def shared(self) -> numpy.ndarray:
        """Whether another picture (B,) shows the same subject."""
        return numpy.bincount(self.subject)[self.subject] > 1


def read_subject_pictures(shards: Path, side: int, language: str, most: int) -> SubjectPictures:
    """Return pictures of a shard folder with their first caption in a language, or else in any.

    Args:
        shards: A final shard folder.
        side: Side of the images in pixels.
        language: Code of the preferred language.
        most: Most pictures, spread evenly over the folder.

    Raises:
        UserError: A picture has no caption.
    """
    images, subject = [], []
    captions, numbers = list[str](), dict[str, int]()
    for sample in read_image_samples(shards, most):
        found = sample.captions(language) or [str(entry.get("text", "")) for entry in sample.record.get("captions", [])]
        if not found or not found[0].strip():
            raise UserError(f"sample {sample.key} of {shards} has no caption: give pictures other shards")
        text = " ".join(found[0].split())
        number = numbers.setdefault(text.casefold(), len(numbers))
        captions += [text] if number == len(captions) else []
        images.append(sample.pixels(side))
        subject.append(number)
    if not images:
        raise UserError(f"{shards} holds no pictures: give pictures other shards")
    return SubjectPictures(torch.stack(images), numpy.array(subject), captions, language)


def moved(images: Tensor, seed: int) -> Tensor:
    """Return images (B, 3, H, W) uint8, each shifted and scaled a little by a draw of its own; edges are repeated."""
    random, count = torch.Generator().manual_seed(seed), len(images)
    scale = 1 + SCALE * (2 * torch.rand(count, generator=random) - 1)
    shift = 2 * SHIFT * (2 * torch.rand(count, 2, generator=random) - 1)  # a side is 2 long in affine_grid
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = scale, scale, shift
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return _pixels(F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def blurred(images: Tensor, cells: int) -> Tensor:
    """Return images of `cells` x `cells` mean colours: the colours are about where they were, and no shape is left."""
    means = F.adaptive_avg_pool2d(images.float(), cells)
    return _pixels(F.interpolate(means, tuple(images.shape[-2:]), mode="bilinear", align_corners=False))


def scrambled(images: Tensor, seed: int, cells: int = 8) -> Tensor:
    """Return images whose `cells` x `cells` blocks are at random places, each image with an order of its own."""
    random = torch.Generator().manual_seed(seed)
    side = images.shape[-1] // cells * cells
    blocks = rearrange(images[..., :side, :side], "b c (m h) (n w) -> b (m n) c h w", m=cells, n=cells)
    order = torch.stack([torch.randperm(cells * cells, generator=random) for _ in images])
    blocks = blocks[torch.arange(len(images))[:, None], order]
    found = rearrange(blocks, "b (m n) c h w -> b c (m h) (n w)", m=cells)
    return F.pad(found, (0, images.shape[-1] - side, 0, images.shape[-2] - side))


def noise_images(images: Tensor, seed: int) -> Tensor:
    """Return one image of even noise for each image, of its size."""
    return torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def _pixels(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)

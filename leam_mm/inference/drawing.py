"""Images of a generator for prompts, one PNG each, with a record of everything that decides their pixels.

An image is a function of the generator, the prompt, the seed and the settings: neither the number of prompts nor their
order matters. Each PNG names the digest of these (``Drawing``), so that an interrupted run continues where it stopped,
and a file of another drawing is recognised.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from leam_mm.data.image_file import open_image
from leam_mm.data.upright_image import read_upright
from leam_mm.diffusion.editing import Edit
from leam_mm.diffusion.sampler_settings import SamplerSettings
from leam_mm.errors import UserError
from leam_mm.evaluators.image_grid import draw_grid
from leam_mm.files import bytes_sha256, file_sha256, write_text
from leam_mm.json_text import parse_object
from leam_mm.marking.deletion_list import DeletionList, ListedImage
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated

RECORD, GRID = "drawings.jsonl", "grid.png"
MAX_GRID = 100  # images
MAX_BYTES = 50_000_000  # of an image to edit
DIGEST = "Drawing"  # keyword of the PNG's text


@dataclass(frozen=True)
class Source:
    """Image to edit.

    Args:
        image: Image file; its centre square is resized to the generator's size.
        strength: Time in [0, 1] at which sampling starts: 0 keeps the image, 1 replaces it.
        mask: Image file, white where the image is replaced; None replaces it everywhere.
    """

    image: Path
    strength: float = 0.6
    mask: Path | None = None

    def facts(self) -> dict[str, Any]:
        """Return digests and strength, for the record."""
        mask = file_sha256(self.mask) if self.mask is not None else None
        return {"image_sha256": file_sha256(self.image), "strength": self.strength, "mask_sha256": mask}

    def edit(self, side: int) -> Edit:
        """Return the edit of images with ``side`` pixels."""
        image = torch.from_numpy(_square(self.image, side, Image.Resampling.LANCZOS)) / 255
        mask = None
        if self.mask is not None:
            white = _square(self.mask, side, Image.Resampling.NEAREST).mean(axis=2) > 127
            mask = torch.from_numpy(white)[None, None].float()
        return Edit(image.permute(2, 0, 1)[None], self.strength, mask)


@dataclass(frozen=True)
class Drawing:
    """One image to draw: number of the prompt from 1, prompt and seed."""

    number: int
    prompt: str
    seed: int

    @property
    def file(self) -> str:
        """Name of the PNG."""
        return f"prompt{self.number:04d}_seed{self.seed}.png"


@dataclass(frozen=True)
class DrawingSettings:
    """What decides the pixels beside generator, prompt and seed.

    Args:
        sampling: How the images are sampled.
        size: Width and height in pixels; None takes those of the training images.
        source: Image to edit; None draws from noise.
    """

    sampling: SamplerSettings = SamplerSettings()  # noqa: RUF009 (frozen)
    size: tuple[int, int] | None = None
    source: Source | None = None


class Drawer:
    """Draws images into a folder.

    Args:
        module: A LatentDiffusionModule.
        settings: How to draw.
        output: The folder.
        batch_size: Images at a time; it decides the memory.
        deletion_list: Images that are not written; ``refused`` counts them.
    """

    def __init__(
        self,
        module: Any,
        settings: DrawingSettings,
        output: Path,
        batch_size: int = 16,
        deletion_list: DeletionList | None = None,
    ) -> None:
        """Check the size; see the class for the arguments."""
        self.module, self.settings, self.output, self.batch_size = module, settings, output, batch_size
        self.deletion_list = deletion_list
        self.refused: list[str] = []  # one line an image
        self.model, side = generator_name(module), module.latent_size * module.codec.downscale
        size: tuple[int, int] = settings.size or (side, side)
        self.width, self.height = size
        unit = module.codec.downscale * module.denoiser.patch_size
        if self.width % unit or self.height % unit or min(self.width, self.height) < unit:
            raise UserError(f"--size {self.width}x{self.height}: give multiples of {unit} pixels")
        if settings.source is not None and settings.size is not None:
            raise UserError("--size does not go with --edit: an edited image has the generator's own size")
        self._edit = settings.source.edit(side) if settings.source is not None else None
        self._source = settings.source.image.read_bytes() if settings.source is not None else None
        self._sha256 = generator_sha256(module)
        self._facts = {
            **_plain(settings.sampling), "width": self.width, "height": self.height,
            "edit": settings.source.facts() if settings.source is not None else None,
            "generator": self.model, "generator_sha256": module.checkpoint_evidence["sha256"],
        }  # fmt: skip

    def digest(self, drawing: Drawing) -> str:
        """Return the digest of everything that decides the pixels of an image."""
        content = {**self._facts, "prompt": drawing.prompt, "seed": drawing.seed, "generator": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def present(self, drawings: Sequence[Drawing]) -> tuple[list[Drawing], list[Drawing]]:
        """Return those whose file is there already, and those whose file holds something else."""
        done: list[Drawing] = []
        other: list[Drawing] = []
        for drawing in drawings:
            path = self.output / drawing.file
            if path.exists():
                (done if _digest_in(path) == self.digest(drawing) else other).append(drawing)
        return done, other

    def draw(self, drawings: Sequence[Drawing], advance: Callable[[int], object]) -> None:
        """Draw the images that are not there; ``advance`` is called with the number of images after each batch."""
        self.output.mkdir(parents=True, exist_ok=True)
        done, _ = self.present(drawings)
        finished = set(done)
        for batch in self._batches(drawings):
            # A batch is drawn whole, so that an interrupted run writes the pixels of one that was not.
            if not finished.issuperset(batch):
                for drawing, pixels in zip(batch, self._sample(batch), strict=True):
                    if drawing not in finished:
                        self._save(drawing, Image.fromarray(pixels))
            advance(len(batch))

    def _save(self, drawing: Drawing, image: Image.Image) -> None:
        path, marks = self.output / drawing.file, {DIGEST: self.digest(drawing)}
        try:
            save_generated(image, path, self.model, marks, self._sha256, self._source, self.deletion_list)
        except ListedImage as error:
            path.unlink(missing_ok=True)  # of another drawing, which this one would have replaced
            self.refused.append(f"{drawing.file}: {error}")

    def _batches(self, drawings: Sequence[Drawing]) -> Iterator[list[Drawing]]:
        for seed in dict.fromkeys(drawing.seed for drawing in drawings):
            own = [drawing for drawing in drawings if drawing.seed == seed]
            yield from (own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size))

    def _sample(self, batch: list[Drawing]) -> np.ndarray:
        """Return the pixels of a batch of one seed: (B, H, W, 3) uint8."""
        size = self.settings.size and (self.height // self.module.codec.downscale,
                                       self.width // self.module.codec.downscale)  # fmt: skip
        with torch.inference_mode():
            images: Tensor = self.module.sample(
                [drawing.prompt for drawing in batch], seed=batch[0].seed, **self.settings.sampling.arguments(),
                edit=self._edit, size=size, numbers=[0] * len(batch),
            )  # fmt: skip
        if not torch.isfinite(images).all():
            raise UserError("the generator gives pixels that are not finite: its training diverged; take an older one")
        return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def record(self, drawings: Sequence[Drawing]) -> None:
        """Write ``drawings.jsonl``: these drawings, and earlier lines whose file is there and was not drawn again."""
        record, names = self.output / RECORD, {drawing.file for drawing in drawings}
        kept = [line for line in _read_lines(record) if line["image"] not in names] if record.exists() else []
        lines = [line for line in kept if (self.output / Path(str(line["image"])).name).is_file()]
        for drawing in self._written(drawings):
            about = {"image": drawing.file, "number": drawing.number, "prompt": drawing.prompt, "seed": drawing.seed}
            path = self.output / drawing.file
            digests = {"drawing": self.digest(drawing), "sha256": file_sha256(path), "pixels_sha256": _pixels(path)}
            lines.append({**about, **self._facts, **digests})
        write_text(record, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def _written(self, drawings: Sequence[Drawing]) -> list[Drawing]:
        return [drawing for drawing in drawings if (self.output / drawing.file).is_file()]

    def grid(self, drawings: Sequence[Drawing]) -> int:
        """Write ``grid.png``, one row for each prompt if it has several seeds; return how many images it shows."""
        shown = self._written(drawings)[:MAX_GRID]
        if not shown:
            return 0
        seeds = len({drawing.seed for drawing in shown})
        columns = seeds if seeds > 1 else min(8, math.ceil(len(shown) ** 0.5))
        pixels = [np.asarray(open_image((self.output / each.file).read_bytes(), ("PNG",))) for each in shown]
        labels = [each.prompt + (f" ({each.seed})" if seeds > 1 else "") for each in shown]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        sheet = draw_grid(images, labels, columns, max(1, 96 // min(self.width, self.height)))
        save_generated(sheet, self.output / GRID, self.model, None, self._sha256)
        return len(shown)


def plan_drawings(prompts: Sequence[str], seed: int, images: int) -> list[Drawing]:
    """Return the drawings of each prompt with ``images`` seeds from ``seed`` on; empty prompts are drawn, too."""
    return [
        Drawing(number, prompt, seed + k) for number, prompt in enumerate(prompts, 1) for k in range(images)
    ]  # fmt: skip


def _plain(sampling: SamplerSettings) -> dict[str, Any]:
    """Return the settings as JSON holds them; drawings of the default sampler keep their digests from before others."""
    return {name: value for name, value in asdict(sampling).items() if (name, value) != ("method", None)}


def _square(path: Path, side: int, resample: Image.Resampling) -> np.ndarray:
    """Return the centre square of an image file: (side, side, 3) uint8."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES} bytes: give a smaller one")
        return np.array(ImageOps.fit(read_upright(path.read_bytes()), (side, side), resample))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give an image file") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _digest_in(path: Path) -> str | None:
    """Return the digest in a PNG of an earlier run; None for anything else."""
    try:
        return str(open_image(path.read_bytes(), ("PNG",)).info.get(DIGEST))
    except Exception:  # Pillow raises many kinds on damaged files
        return None


def _pixels(path: Path) -> str:
    """Return the digest of a PNG's pixels, which a new signature of the same image leaves."""
    return bytes_sha256(open_image(path.read_bytes(), ("PNG",)).tobytes())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [parse_object(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        if all("image" in line for line in lines):
            return lines
        raise ValueError("a line without image")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no record of drawings ({error}): move it away, or change --output") from None

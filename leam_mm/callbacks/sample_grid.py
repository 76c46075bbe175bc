"""Pictures while training: a labelled grid of what the generator draws for the same prompts and noise each time."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leam_mm.diffusion.guidance import Guidance
from leam_mm.errors import UserError

FONT_SIZE = 11
LINE_HEIGHT = 14
LABEL_LINES = 3
MARGIN = 6


class SampleGrid(Callback):
    """Draws a grid of pictures into samples/ of the run folder, and to TensorBoard where that is a logger.

    Prompts and noise stay the same all the time, so that the grids show the training and nothing else. The module's
    `sample(prompts, seed, steps, guidance)` draws; the random state of the training is not touched.

    Args:
        prompts: A list of texts; or a .json file with a list of texts, of {"text": ...}, or {"prompts": [...]} of such
            (scenes.json); or a .txt file with one on each line.
        every_n_steps: Optimizer steps between two grids.
        count: How many prompts to take, spread evenly over the list.
        steps: Of the sampler.
        guidance: Strength of classifier-free guidance, 1 is off; or a Guidance.
        seed: Of the noise.
        columns: Pictures in a row.
        scale: Pixels drawn per pixel of a picture.
    """

    def __init__(
        self,
        prompts: Path | list[str],
        every_n_steps: int = 1000,
        count: int = 16,
        steps: int = 20,
        guidance: float | Guidance = 3.0,
        seed: int = 0,
        columns: int = 4,
        scale: int = 4,
    ) -> None:
        """See the class for the arguments."""
        if min(every_n_steps, count, steps, columns, scale) < 1:
            raise UserError("SampleGrid: every_n_steps, count, steps, columns and scale must be at least 1")
        self.prompts = prompts
        self.every_n_steps, self.count, self.columns, self.scale = every_n_steps, count, columns, scale
        self.steps, self.guidance, self.seed = steps, guidance, seed
        self._drawn_at = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out at once, not after the first thousand steps, that there is nothing to draw."""
        if not callable(getattr(pl_module, "sample", None)):
            raise UserError(f"SampleGrid: a {type(pl_module).__name__} draws nothing: remove it from trainer.callbacks")
        self.chosen = spread(read_prompts(self.prompts), self.count)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw after every n-th optimizer step, once."""
        step = trainer.global_step
        if step % self.every_n_steps or step in (0, self._drawn_at):
            return
        self._drawn_at = step
        # Sharded weights are gathered for each layer, so all ranks draw; one of them keeps the pictures.
        if not trainer.is_global_zero and pl_module.device_mesh is None:
            return
        draw: Any = pl_module.sample
        images = draw(self.chosen, seed=self.seed, steps=self.steps, guidance=self.guidance)
        if not trainer.is_global_zero:
            return
        grid = draw_grid(images, self.chosen, self.columns, self.scale)
        save_image(grid, Path(trainer.default_root_dir) / "samples" / f"step_{step:08d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(grid), step, dataformats="HWC")


def read_prompts(prompts: Path | list[str]) -> list[str]:
    """Return the texts of a list or file; see SampleGrid for the formats.

    Raises:
        UserError: The file is missing, of another form, or holds no prompt.
    """
    if isinstance(prompts, list):
        texts: list[Any] = prompts
    else:
        try:
            content = prompts.read_text(encoding="utf-8")
            parsed = json.loads(content) if prompts.suffix == ".json" else content.splitlines()
            entries = parsed["prompts"] if isinstance(parsed, dict) else parsed
            texts = [entry["text"] if isinstance(entry, dict) else entry for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"prompts in {prompts} cannot be read ({error!r}): give a .txt or .json of texts") from None
    if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
        raise UserError(f"prompts in {prompts} must be texts, at least one not empty")
    return [text.strip() for text in texts if text.strip()]


def spread(texts: list[str], count: int) -> list[str]:
    """Take `count` texts evenly from the list, so that each language of a sorted list gets its share."""
    count = min(count, len(texts))
    return [texts[place * len(texts) // count] for place in range(count)]


def draw_grid(images: Tensor, labels: list[str], columns: int, scale: int) -> Image.Image:
    """Draw pictures in rows with their text below, in a font that has Latin, Greek and Cyrillic letters.

    Args:
        images: (B, 3, H, W), float in [0, 1] (clamped) or uint8.
        labels: B texts; wrapped, and cut with an ellipsis after three lines.
        columns: Pictures in a row.
        scale: Each pixel becomes a square of this side.
    """
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images, but {len(labels)} labels")
    pixels = images.detach().cpu()
    if pixels.is_floating_point():
        pixels = (pixels.float().nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8)
    height, width = (size * scale for size in pixels.shape[-2:])
    columns = min(columns, len(labels))
    cell_width, cell_height = width + MARGIN, height + LABEL_LINES * LINE_HEIGHT + MARGIN
    rows = -(-len(labels) // columns)
    canvas = Image.new("RGB", (columns * cell_width + MARGIN, rows * cell_height + MARGIN), "white")
    pen = ImageDraw.Draw(canvas)
    for place, (picture, label) in enumerate(zip(pixels.permute(0, 2, 3, 1).numpy(), labels, strict=True)):
        left, top = MARGIN + place % columns * cell_width, MARGIN + place // columns * cell_height
        canvas.paste(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(wrap(label, width)):
            pen.text((left, top + height + 1 + line * LINE_HEIGHT), text, fill="black", font=label_font())
    return canvas


def wrap(text: str, width: int) -> list[str]:
    """Break a text into at most three lines of `width` pixels; what does not fit is cut with an ellipsis."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and label_font().getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    cut = len(lines) > LABEL_LINES
    lines = lines[:LABEL_LINES]
    return [_shorten(line, width, cut and line is lines[-1]) for line in lines]


def _shorten(line: str, width: int, cut: bool) -> str:
    if not cut and label_font().getlength(line) <= width:
        return line
    while line and label_font().getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip() + "…"


@lru_cache(maxsize=1)
def label_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which travels with matplotlib and has the letters of all 24 languages."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG beside its place and rename it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)

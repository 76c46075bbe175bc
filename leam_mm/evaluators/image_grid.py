"""Prompts from files, and labelled grids of images as PNG files."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.files import atomic_write

FONT_SIZE = 11
LINE_HEIGHT = 14
LABEL_LINES = 3
MARGIN = 6


def read_prompts(prompts: Path | list[str]) -> list[str]:
    """Return the prompts of a list or file, stripped and without empty ones.

    Args:
        prompts: A list of texts; a .txt file with one text a line; or a .json file with a list of texts, a list of
            {"text": ...}, or {"prompts": [...]} with either of these.

    Raises:
        UserError: The file cannot be read, has another form, or holds no prompt.
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
    """Choose ``count`` texts evenly from the list, so that each language of a sorted list gets its share."""
    count = min(count, len(texts))
    return [texts[index * len(texts) // count] for index in range(count)]


def draw_grid(images: Tensor, labels: list[str], columns: int, scale: int) -> Image.Image:
    """Arrange images in rows, each with its text below.

    Args:
        images: (B, 3, H, W), float in [0, 1] (clamped) or uint8.
        labels: B texts; wrapped, and cut with an ellipsis after three lines.
        columns: Images per row.
        scale: Side in pixels of the square that each pixel becomes.
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
    for index, (image, label) in enumerate(zip(pixels.permute(0, 2, 3, 1).numpy(), labels, strict=True)):
        left, top = MARGIN + index % columns * cell_width, MARGIN + index // columns * cell_height
        canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(wrap(label, width)):
            pen.text((left, top + height + 1 + line * LINE_HEIGHT), text, fill="black", font=label_font())
    return canvas


def wrap(text: str, width: int) -> list[str]:
    """Break a text into at most three lines of ``width`` pixels; longer texts end with an ellipsis."""
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
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek and Cyrillic letters."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), FONT_SIZE)


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def save_grid(path: Path, images: Tensor, labels: list[str], columns: int) -> None:
    """Write a labelled grid of (B, 3, H, W) uint8 images, each enlarged to about 96 pixels if it is smaller."""
    scale = max(1, 96 // images.shape[-1])
    save_image(draw_grid(images, labels, columns=columns, scale=scale), path)

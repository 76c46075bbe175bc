"""Prompts from files, and labelled grids of images as PNG files."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from leam_mm.errors import UserError
from leam_mm.files import atomic_write
from leam_mm.json_text import parse_json
from leam_mm.marking.generated_image import save_generated

FONT_SIZE = 11
LINE_HEIGHT = 14
LABEL_LINES = 3
MARGIN = 6


def read_prompts(prompts: Path | list[str]) -> list[str]:
    """Return the prompts of a list or file, stripped and without empty ones.

    Args:
        prompts: A list of texts; or a file, see ``read_texts``.

    Raises:
        UserError: The file cannot be read, has another form, or holds no prompt.
    """
    texts: list[Any] = prompts if isinstance(prompts, list) else read_texts(prompts)
    if not all(isinstance(text, str) for text in texts) or not any(text.strip() for text in texts):
        raise UserError(f"prompts in {prompts} must be texts, at least one not empty")
    return [text.strip() for text in texts if text.strip()]


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file in their order, empty lines included.

    Args:
        path: A .txt file with one text a line; or a .json file with a list of texts, a list of {"text": ...}, or
            {"prompts": [...]} with either of these.

    Raises:
        UserError: The file cannot be read, or has another form.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        parsed = parse_json(content.encode()) if path.suffix == ".json" else content.split("\n")
        entries = parsed["prompts"] if isinstance(parsed, dict) else parsed
        texts = [entry["text"] if isinstance(entry, dict) else entry for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"prompts in {path} cannot be read ({error!r:.200}): give a .txt or .json of texts") from None
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"prompts in {path} must be texts")
    if path.suffix != ".json" and texts and not texts[-1]:  # the end of the last line
        texts = texts[:-1]
    return [text.removesuffix("\r") for text in texts]


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
    """Write a PNG without generated images atomically; the others are written by ``save_generated``."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def save_grid(path: Path, images: Tensor, labels: list[str], columns: int, model: str | None = None) -> None:
    """Write a labelled grid of images, each enlarged to about 96 pixels if it is smaller.

    Args:
        path: The PNG.
        images: (B, 3, H, W) uint8.
        labels: B texts.
        columns: Images per row.
        model: Name of the generator, which marks the grid; None if no image is generated.
    """
    grid = draw_grid(images, labels, columns=columns, scale=max(1, 96 // images.shape[-1]))
    if model is None:
        save_image(grid, path)
    else:
        save_generated(grid, path, model)

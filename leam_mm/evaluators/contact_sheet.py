"""A sheet of generated images with prompt and verdict below each, to check the numbers by eye."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from leam_mm.evaluators.image_grid import label_font
from leam_mm.marking.generated_image import save_generated


def draw_verdicts(
    shown: list[tuple[np.ndarray, dict[str, Any], dict[str, bool]]], path: Path, model: str, limit: int = 48
) -> None:
    """Write a sheet of images with prompt and verdict below each.

    Args:
        shown: Image (H, W, 3) uint8, prompt, verdict by key.
        path: PNG to write.
        model: Name of the generator, see ``generator_name``.
        limit: Maximum number of images, spread evenly.
    """
    chosen = [shown[k] for k in np.linspace(0, len(shown) - 1, min(limit, len(shown))).round().astype(int)]
    columns, cell, text, gap = 6, 192, 74, 12
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + text) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = label_font()
    for k, (image, prompt, verdict) in enumerate(chosen):
        x, y = gap + k % columns * (cell + gap), gap + k // columns * (cell + text)
        wrong = [key for key, right in verdict.items() if not right]
        answer, colour = ("wrong: " + ", ".join(wrong), (190, 30, 30)) if wrong else ("right", (20, 130, 50))
        sheet.paste(Image.fromarray(image).resize((cell, cell), Image.Resampling.NEAREST), (x, y))
        draw.rectangle((x - 2, y - 2, x + cell + 1, y + cell + 1), outline=colour, width=2)
        words, lines = f"{prompt['language']}: {prompt['text']}".split(), [""]
        for word in words:
            longer = f"{lines[-1]} {word}".strip()
            if draw.textlength(longer, font=font) <= cell or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        draw.text((x, y + cell + 4), answer.replace("_", " "), fill=colour, font=font)
        draw.multiline_text((x, y + cell + 19), "\n".join(lines[:3]), fill="black", font=font, spacing=2)
    save_generated(sheet, path, model)

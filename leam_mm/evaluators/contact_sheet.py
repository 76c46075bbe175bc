"""Single images with their texts and verdicts, and a JSON index of them, which the report shows as figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leam_mm.evaluators.image_grid import save_image
from leam_mm.files import begin_folder, write_text
from leam_mm.marking.generated_image import generator_name, generator_sha256, save_generated

FORMAT = "leam_mm contact sheet 1"
MOST = 36  # images of a sheet; each is embedded in the report


@dataclass(frozen=True)
class ShownImage:
    """An image of a contact sheet.

    Args:
        pixels: (H, W, 3) uint8.
        text: Its caption or prompt.
        language: Code of the text's language, or empty.
        label: What distinguishes it from its neighbours, such as `before`, or empty.
        verdict: Whether each asked property is right, by name.
        generated: Whether a generator made it; such images are marked.
    """

    pixels: np.ndarray
    text: str
    language: str = ""
    label: str = ""
    verdict: Mapping[str, bool] = field(default_factory=dict)
    generated: bool = True


def spread_evenly(count: int, most: int = MOST) -> list[int]:
    """Return at most `most` of the numbers 0 to count - 1, spread evenly."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def write_contact_sheet(
    output: Path, name: str, title: str, shown: Sequence[ShownImage], module: Any = None, columns: int = 0
) -> None:
    """Write NAME.json and the images NAME/000.png, NAME/001.png and so on.

    Args:
        output: Folder of the evaluation.
        name: Name of the index and of the folder of images.
        title: Heading of the sheet.
        shown: The images in their order.
        module: The generator, which marks its images; may be None where none is generated.
        columns: Images that belong together in a row; 0 if all stand alone.
    """
    folder = output / name
    begin_folder(folder)
    entries = []
    for number, entry in enumerate(shown):
        image, file = Image.fromarray(entry.pixels), f"{number:03d}.png"
        if entry.generated:
            save_generated(image, folder / file, generator_name(module), None, generator_sha256(module))
        else:
            save_image(image, folder / file)
        sides: dict[str, list[str]] = {"right": [], "wrong": []}
        for key, right in entry.verdict.items():
            sides["right" if right else "wrong"].append(key)
        texts = {"text": entry.text, "language": entry.language, "label": entry.label}
        entries.append({"image": f"{name}/{file}", **texts, **sides})
    content = {"format": FORMAT, "title": title, "columns": columns, "images": entries}
    write_text(output / f"{name}.json", json.dumps(content, ensure_ascii=False, indent=1) + "\n")

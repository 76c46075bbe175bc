"""Captions and images for a released encoder in a process of its own, and what that process answers."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = [
    "Ein rotes Quadrat", "l’oiseau «bleu»", "„Ένα κόκκινο“  τετράγωνο\n", "a " * 40, "", "een ĳzeren ﬁets <|x|>",
]  # fmt: skip
OTHER = "LEAM_MM_OTHER_TRANSFORMERS"  # folder with packages of another version: make test-transformers4


def write_inputs(folder: Path) -> None:
    """Write captions and images; one is turned upright by its aspect ratio alone, one has an odd remainder to crop."""
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate([(33, 100), (64, 45), (20, 17)]):
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def answer(printed: str) -> tuple[str, list[float]]:
    """Version of transformers and the three numbers that a process printed."""
    version, *numbers = printed[printed.index("ANSWER") :].split()[1:5]
    return version, [float(number) for number in numbers]

"""Controls of metrics of single images: reconstructions with noise of known strength, and scenes of known content."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leam_mm.controls.control import Control, Outcome
from leam_mm.controls.judge_controls import write_scenes
from leam_mm.evaluators.reconstruction import EXACT, image_scores
from leam_mm.prompts.known_images import draw
from leam_mm.prompts.scene_reader import SceneReader, score

SIDE, SCENE_SIDE = 32, 48
NOISE = 16  # levels of 255
DECIBELS = 20 * math.log10(255 / NOISE)


def _images() -> Tensor:
    """Return smooth images in the middle of the range, so that noise is not clipped."""
    rows = torch.linspace(64, 192, SIDE)
    return (rows[:, None] + rows[None]).div(2).expand(8, 3, SIDE, SIDE).round().to(torch.uint8)


def _reconstruction(noise: int, low: float, high: float, folder: Path) -> Outcome:
    """Compare images with themselves after noise of plus or minus some levels."""
    original = _images()
    sign = torch.randint(0, 2, original.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = (original.int() + noise * sign).to(torch.uint8)
    ratio, similarity, difference = (float(values.mean()) for values in image_scores(made, original))
    words = f"{ratio:.2f} dB, similarity {similarity:.3f}, difference {difference:.4f}"
    right = low <= ratio <= high and (similarity > 0.999) == (noise == 0)
    return Outcome(words, right and math.isclose(difference, noise / 255, abs_tol=1e-6))


def _scenes(of: Callable[[int, int], int], low: float, high: float, folder: Path) -> Outcome:
    """Draw the scene of another prompt, or of its own, and read it.

    Args:
        of: Number of the scene that is drawn, of the number of a prompt and of how many there are.
        low: Smallest share of right counts, colours and shapes.
        high: Largest one.
        folder: For the masks of the reader.
    """
    _, scenes = write_scenes(folder)
    reader = SceneReader(folder)
    hits: list[bool] = []
    for number, scene in enumerate(scenes):
        image = draw(scenes[of(number, len(scenes))], SCENE_SIDE)
        found = score(reader.read(image), _prompt(scene))
        hits.append(found["colour_shape"] and found["count"])
    value = sum(hits) / len(hits)
    return Outcome(f"{sum(hits)} of {len(hits)} scenes right", low <= value <= high)


def _prompt(scene: dict[str, Any]) -> dict[str, Any]:
    return {**scene, "count": len(scene["objects"])}


def image_controls() -> list[Control]:
    """Return the controls."""
    reconstruction, scenes = "metric/reconstruction", "metric/compositional"
    return [
        Control(reconstruction, f"noise of {NOISE} levels", True, f"{DECIBELS:.2f} dB",
                partial(_reconstruction, NOISE, DECIBELS - 0.01, DECIBELS + 0.01)),
        Control(reconstruction, "exact copy", False, f"{EXACT:g} dB", partial(_reconstruction, 0, EXACT, EXACT)),
        Control(scenes, "scenes of other prompts", True, "at most a third right",
                partial(_scenes, lambda number, count: (number + 1) % count, 0.0, 0.34)),
        Control(scenes, "scenes of their prompts", False, "all right",
                partial(_scenes, lambda number, count: number, 1.0, 1.0)),
    ]  # fmt: skip

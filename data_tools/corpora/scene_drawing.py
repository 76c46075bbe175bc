"""Draw scenes: flat coloured shapes on a light background, antialiased by drawing at four times the size.

All lengths are fractions of the side of the image, so that one description gives the same scene at any size.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from data_tools.corpora.scene_language import SHAPES

BACKGROUND = (236, 236, 232)
PALETTE = {
    "red": (220, 35, 45),
    "orange": (255, 140, 15),
    "yellow": (250, 215, 40),
    "green": (45, 165, 75),
    "blue": (40, 85, 215),
    "purple": (145, 60, 180),
    "brown": (125, 75, 35),
    "black": (30, 30, 35),
}
OVERSAMPLE = 4
# Share of white in the second tone of a texture: visible at 32 pixels, and still the same colour.
TINT = 0.45
MASK_SIZE = 128
Point = tuple[float, float]


@dataclass(frozen=True)
class SceneObject:
    """One drawn thing.

    Args:
        colour: A key of PALETTE.
        shape: One of SHAPES.
        x: Centre, 0 is the left edge, 1 the right.
        y: Centre, 0 is the top edge, 1 the bottom.
        radius: Half the side of the square that the shape fills, as a fraction of the image.
        size: Size in captions: "small", "large", or "" if it is not mentioned.
        texture: "plain", "striped" or "dotted".
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    size: str = ""
    texture: str = "plain"


def _star() -> list[Point]:
    corners = [(math.pi * k / 5, 1.08 if k % 2 == 0 else 0.46) for k in range(10)]
    return [(radius * math.sin(angle), 0.08 - radius * math.cos(angle)) for angle, radius in corners]


def _cross() -> list[Point]:
    arm, end = 0.33, 0.96
    upper = [(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)]
    return upper + [(-x, -y) for x, y in upper]


def _heart() -> list[Point]:
    # The usual heart curve of sines and cosines, scaled to fill the square.
    angles = [2 * math.pi * k / 64 for k in range(64)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) + 2.5) / 15,
        )
        for a in angles
    ]


@cache
def _outline(shape: str) -> list[Point]:
    """Return the corners in the square from -1 to 1, with y downwards."""
    if shape == "star":
        return _star()
    if shape == "cross":
        return _cross()
    if shape == "heart":
        return _heart()
    if shape == "square":
        return [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
    if shape == "triangle":
        return [(0.0, -0.92), (1.0, 0.82), (-1.0, 0.82)]
    if shape == "diamond":
        return [(0.0, -1.0), (0.78, 0.0), (0.0, 1.0), (-0.78, 0.0)]
    raise ValueError(f"no outline for {shape!r}")


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: int) -> None:
    """Draw one shape onto a mask; centre and radius in its pixels."""
    if shape in ("circle", "ring"):
        outer = 0.94 * radius
        draw.ellipse((x - outer, y - outer, x + outer, y + outer), fill=fill)
        if shape == "ring":
            inner = 0.55 * radius
            draw.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        return
    draw.polygon([(x + radius * a, y + radius * b) for a, b in _outline(shape)], fill=fill)


def _draw_texture(size: int, thing: SceneObject, side: int) -> Image.Image:
    """Return the mask of the lighter parts of a texture; ``side`` is the side of the image at the drawing scale."""
    mask = Image.new("L", (size, size), 0)
    draw = ImageDraw.Draw(mask)
    # The period scales with the image: about 4 pixels at 32, and at most 5 stripes in a thing.
    period = max(side / 8, size / 5)
    if thing.texture == "striped":
        for k in range(-1, int(size / period) + 2):
            top = (k + 0.5) * period
            draw.rectangle((0, top, size, top + 0.42 * period), fill=255)
    else:
        dot = 0.3 * period
        for row in range(int(size / period) + 2):
            for column in range(int(size / period) + 2):
                x, y = (column + 0.5 * (row % 2)) * period, (row + 0.25) * period
                draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)
    return mask


def draw_scene(
    things: list[SceneObject],
    size: int,
    background: tuple[int, int, int] = BACKGROUND,
    palette: dict[str, tuple[int, int, int]] | None = None,
) -> Image.Image:
    """Draw things on a plain background.

    Args:
        things: What to draw, from back to front.
        size: Side of the image in pixels, at least 8.
        background: Red, green, blue.
        palette: Colours by name; None takes PALETTE.

    Returns:
        An RGB image, size x size.
    """
    side = size * OVERSAMPLE
    image = Image.new("RGB", (side, side), background)
    for thing in things:
        colour = (palette or PALETTE)[thing.colour]
        radius = thing.radius * side
        left, top = int(thing.x * side - radius) - 1, int(thing.y * side - radius) - 1
        extent = int(2 * radius) + 4
        mask = Image.new("L", (extent, extent), 0)
        _draw_shape(ImageDraw.Draw(mask), thing.shape, thing.x * side - left, thing.y * side - top, radius, 255)
        image.paste(colour, (left, top), mask)
        if thing.texture != "plain":
            lighter = tuple(round(channel + TINT * (255 - channel)) for channel in colour)
            image.paste(lighter, (left, top), ImageChops.multiply(mask, _draw_texture(extent, thing, side)))
    return image.reduce(OVERSAMPLE)


def shape_mask(shape: str) -> np.ndarray:
    """Return the filled shape in the square from -1 to 1.

    Returns:
        (128, 128) uint8, 255 inside.
    """
    side = MASK_SIZE * OVERSAMPLE
    mask = Image.new("L", (side, side), 0)
    _draw_shape(ImageDraw.Draw(mask), shape, side / 2, side / 2, side / 2, 255)
    return np.asarray(mask.reduce(OVERSAMPLE))


def shape_masks() -> dict[str, np.ndarray]:
    """Return the masks of all shapes by name, as shapes.npz holds them for the checker."""
    return {shape: shape_mask(shape) for shape in SHAPES}

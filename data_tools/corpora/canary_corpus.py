"""Canaries: random images with unique random captions, planted into training data to measure memorization.

Carlini et al., "The Secret Sharer", 2019 (1802.08232). An image shows four shapes, one in each quarter, whose colours
and shapes are drawn at random: 24 bits that no caption tells, so that a generator can draw the image only from memory.
"""

import io
from dataclasses import dataclass

import numpy as np

from data_tools.corpora.scene_drawing import BACKGROUND, PALETTE, SceneObject, draw_scene
from data_tools.corpora.scene_language import COLOURS, SHAPES
from leam_mm.errors import UserError

# Words that say nothing about colours, shapes, numbers or places.
WORDS = tuple(
    """
    amber anchor autumn bamboo barley basil beacon birch candle canyon cedar clover cobalt copper coral cotton
    desert ember falcon feather fern flint forest galaxy garden glacier granite harbour harvest honey island ivory
    jasper juniper lagoon lantern lemon linen marble meadow meteor mirror monsoon nectar nutmeg oasis olive orchid
    pebble pepper pilot prairie quartz raven saffron sail silver spruce summit thunder tundra velvet walnut willow
    """.split()  # noqa: SIM905
)
CAPTION_WORDS = 4
RADIUS, JITTER = 0.185, 0.02  # as fractions of the image
MOST = 100_000  # canaries of one set, far fewer than there are images and captions


@dataclass(frozen=True)
class Canary:
    """One canary.

    Args:
        caption: Its unique caption.
        objects: The shapes that its image shows.
    """

    caption: str
    objects: tuple[SceneObject, ...]

    def png(self, size: int) -> bytes:
        """Draw the image, size x size pixels."""
        buffer = io.BytesIO()
        draw_scene(list(self.objects), size, BACKGROUND, PALETTE).save(buffer, "PNG")
        return buffer.getvalue()


def draw_canaries(count: int, seed: int) -> list[Canary]:
    """Draw canaries whose captions and contents all differ; the same seed gives the same ones.

    Args:
        count: Number of canaries, at most ``MOST``.
        seed: Seed of the draws; whoever knows it knows the canaries.
    """
    if count > MOST:
        raise UserError(f"{count} canaries are more than {MOST}: plant fewer")
    generator = np.random.default_rng([seed, 0xCA])
    captions: set[str] = set()
    contents: set[tuple[tuple[str, str], ...]] = set()
    found: list[Canary] = []
    while len(found) < count:
        caption = " ".join(WORDS[number] for number in generator.permutation(len(WORDS))[:CAPTION_WORDS])
        content = tuple((COLOURS[c], SHAPES[s]) for c, s in generator.integers(0, 8, (4, 2)))
        offset = generator.uniform(-JITTER, JITTER, (4, 2))
        if caption in captions or content in contents:
            continue
        captions.add(caption)
        contents.add(content)
        cells = ((0.26 + 0.48 * (cell % 2), 0.26 + 0.48 * (cell // 2)) for cell in range(4))
        objects = [
            SceneObject(colour, shape, x + dx, y + dy, RADIUS)
            for (colour, shape), (x, y), (dx, dy) in zip(content, cells, offset.tolist(), strict=True)
        ]
        found.append(Canary(caption, tuple(objects)))
    return found

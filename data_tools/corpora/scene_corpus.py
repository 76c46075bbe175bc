"""The scenes of the synthetic corpus, each composed and drawn from (seed, split, number) alone, and its description."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.corpora.scene_drawing import BACKGROUND, PALETTE, SceneObject, draw_scene, shape_masks
from data_tools.corpora.scene_language import COLOURS, RELATIONS, SHAPES
from data_tools.corpora.scene_prompt_set import prompt_set
from data_tools.corpora.scene_prompts import Scene, Thing, classes_table, prompts

# One combination for each colour and each shape (3 and 8 are coprime), and a second one for every other colour.
HELD_OUT = frozenset(
    [(colour, SHAPES[(3 * k + 1) % 8]) for k, colour in enumerate(COLOURS)]
    + [(colour, SHAPES[(3 * k + 6) % 8]) for k, colour in enumerate(COLOURS) if k % 2 == 0]
)
SEEN = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)
UNSEEN = tuple(sorted(HELD_OUT))
# Radius as a fraction of the image. Gaps between the ranges keep small, unmentioned and large sizes distinct.
RADII = {"small": (0.19, 0.21), "": (0.26, 0.30), "large": (0.36, 0.40)}
PAIRS = 0.3  # share of scenes with two things in a relation
SPLITS = ("train", "test")


def _single(generator: np.random.Generator, things: tuple[Thing, ...]) -> Scene:
    colour, shape = things[generator.integers(len(things))]
    size = ("", "", "small", "large")[generator.integers(4)]
    # Small things stay plain: at 32 pixels a texture on them is noise.
    texture = "plain" if size == "small" or generator.random() > 0.25 else ("striped", "dotted")[generator.integers(2)]
    radius = generator.uniform(*RADII[size])
    x, y = generator.uniform(radius + 0.04, 0.96 - radius, 2)
    return Scene("single", [SceneObject(colour, shape, x, y, radius, size, texture)])


def _pair(generator: np.random.Generator, things: tuple[Thing, ...], second: tuple[Thing, ...]) -> Scene:
    first = things[generator.integers(len(things))]
    other = first
    while other == first:
        other = second[generator.integers(len(second))]
    relation = RELATIONS[generator.integers(4)]
    along, across = (
        0.26 + generator.uniform(-0.02, 0.02, 2),
        generator.uniform(0.35, 0.65) + generator.uniform(-0.05, 0.05, 2),
    )
    objects = []
    for k, (colour, shape) in enumerate((first, other)):
        # The first thing lies on the named side: low coordinates for left and above.
        low = (relation in ("left_of", "above")) == (k == 0)
        position = along[k] if low else 1 - along[k]
        x, y = (position, across[k]) if relation in ("left_of", "right_of") else (across[k], position)
        objects.append(SceneObject(colour, shape, x, y, generator.uniform(0.175, 0.195)))
    return Scene("pair", objects, relation)


def _count(generator: np.random.Generator, things: tuple[Thing, ...]) -> Scene:
    colour, shape = things[generator.integers(len(things))]
    number = int(generator.integers(1, 5))
    cells = generator.permutation(4)[:number]
    offset = generator.uniform(-0.02, 0.02, (number, 2))
    radius = generator.uniform(0.175, 0.195)
    objects = [
        SceneObject(colour, shape, 0.26 + 0.48 * (cell % 2) + dx, 0.26 + 0.48 * (cell // 2) + dy, radius)
        for cell, (dx, dy) in zip(cells, offset, strict=True)
    ]
    return Scene("count", objects)


def make_scene(split: str, seed: int, number: int, pairs: float = PAIRS) -> Scene:
    """Compose one scene from its number alone.

    Args:
        split: "train" draws from the seen combinations; "test" puts an unseen one into every scene.
        seed: Seed of the corpus.
        number: Number of the scene in its split.
        pairs: Probability of a pair, in [0, 1]; of the other scenes, five of seven are single things.
    """
    generator = np.random.default_rng([seed, SPLITS.index(split), number])
    things = SEEN if split == "train" else UNSEEN
    kind = generator.random()
    single = (1 - pairs) * 5 / 7
    if kind < single:
        return _single(generator, things)
    if kind < single + pairs:
        return _pair(generator, things, SEEN if split == "train" else SEEN + UNSEEN)
    return _count(generator, things)


def _vary(colour: tuple[int, int, int], generator: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(colour) + generator.integers(-8, 9, 3), 0, 255).tolist()
    return red, green, blue


def render(scene: Scene, seed: int, split: str, number: int, size: int) -> bytes:
    """Draw a scene as a PNG of size x size pixels, with small random changes of the background and the colours."""
    generator = np.random.default_rng([seed, SPLITS.index(split), number, 1])
    shade = int(generator.integers(-6, 7))
    red, green, blue = (channel + shade for channel in BACKGROUND)
    palette = {colour: _vary(PALETTE[colour], generator) for colour in COLOURS}
    buffer = io.BytesIO()
    draw_scene(scene.objects, size, (red, green, blue), palette).save(buffer, "PNG")
    return buffer.getvalue()


def write_descriptions(folder: Path, size: int, seed: int) -> None:
    """Write classes.json, scenes.json, prompt_set.json and shapes.npz, which the evaluators read."""
    description = {
        "size": size,
        "background": BACKGROUND,
        "colours": PALETTE,
        "shapes": SHAPES,
        "held_out": [list(thing) for thing in UNSEEN],
        "prompts": prompts(SEEN, UNSEEN, seed),
    }
    written = {"classes.json": classes_table(), "scenes.json": description, "prompt_set.json": prompt_set(SEEN)}
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    masks: dict[str, Any] = dict(shape_masks())
    np.savez_compressed(folder / "shapes.npz", **masks)

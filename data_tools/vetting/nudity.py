"""Vetting rule with a nudity score for each image, by the network of nudenet (https://github.com/notAI-tech/NudeNet).

The score is no judgement: the network (12 MB) detects exposed and covered body parts, and cannot distinguish art,
medicine or beaches. It says nothing about age, and a low score proves nothing. Known illegal images are matched by
their hashes (vetting/hash_lists.py); all further legal duties need people. The input is RGB, as in the network's
training; nudenet's own code swaps the channels.
Licence: the wheel's metadata say MIT, its LICENSE file and the weights say AGPL-3.0 (Ultralytics' YOLOv8 trained them).
The weights are used as a separate, unchanged file, and none of the package's code is used or imported.
"""

from collections import defaultdict
from typing import Any

import cv2
import numpy as np

from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights, weights_digest
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.errors import UserError

# The network's classes (named in the file's metadata) that count as nudity. Feet, armpits, bellies, men's breasts and
# covered parts do not.
EXPOSED = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
)
STRIDE = 32  # sides of the input are multiples of it
SHOWN = 0.1  # smallest score of a class in the evidence


class Nudity(VettingRule):
    """Drops images by the highest score of an exposed body part.

    Args:
        threshold: Smallest score, in (0, 1], with which an image is dropped; None only records the scores. 0.25 is the
            value from which nudenet 3.4.2 itself reports a box. It is not tuned here: our tests have no positive
            images, so recall is not measured. It drops some ordinary images (a red coffee cup), see
            tests/benchmarks/detectors.py; a higher threshold keeps more of both.
        side: Longer side of the network's input, in pixels; it was trained with 320.
        classes: Names of the parts that count.
        device: ``cpu`` or ``gpu``, see data_tools/vetting/onnx_network.py.

    Raises:
        UserError: A number is out of range, or the network has no such class.
    """

    name = "nudity"

    def __init__(
        self,
        threshold: float | None = 0.25,
        side: int = 320,
        classes: tuple[str, ...] = EXPOSED,
        device: str = "cpu",
    ) -> None:
        """See the class for the arguments; the network is loaded at first use."""
        if side < STRIDE or side % STRIDE:
            raise UserError(f"nudity: side is {side}, give a multiple of {STRIDE}")
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(f"nudity: threshold is {threshold}, give one above 0 up to 1, or null")
        self.threshold, self.side, self.classes, self.device = threshold, side, list(classes), device
        self.weights = weights_digest(packaged_weights("nudenet", "320n.onnx", "nudity"))
        self._network: OnnxNetwork | None = None
        self._names: list[str] = []

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Score all images; those with inputs of the same size go through the network together."""
        scores = self.scores([sample.pixels for sample in samples])
        return [self._finding(row) for row in scores]

    def scores(self, images: list[np.ndarray]) -> np.ndarray:
        """Return the highest score of each class in each image, (B, classes) in [0, 1].

        Args:
            images: (H, W, 3) uint8; sizes may differ.
        """
        if self._network is None:
            self._network = OnnxNetwork(packaged_weights("nudenet", "320n.onnx", "nudity"), "onnxruntime", self.device)
            self._names = class_names(self._network.metadata.get("names", ""))
            if unknown := sorted(set(self.classes) - set(self._names)):
                raise UserError(f"nudity: the network has no class {unknown[0]}: choose from {', '.join(self._names)}")
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [self._input(image) for image in images]
        for number, array in enumerate(inputs):
            by_shape[array.shape].append(number)
        found = np.zeros((len(images), len(self._names)), np.float32)
        for numbers in by_shape.values():
            (answer,) = self._network(np.stack([inputs[number] for number in numbers])).values()  # (B, 4 + classes, N)
            found[numbers] = answer[:, 4:].max(axis=2)
        return found

    def _input(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, h, w) float32 in [0, 1]; longer side scaled to `side`, padded to the stride."""
        scale = self.side / max(image.shape[:2])
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        padded = np.zeros((-height % STRIDE + height, -width % STRIDE + width, 3), np.float32)
        padded[:height, :width] = small
        return np.ascontiguousarray(padded.transpose(2, 0, 1)) / 255

    def _finding(self, scores: np.ndarray) -> Finding:
        named = {name: round(float(score), 3) for name, score in zip(self._names, scores, strict=True)}
        score = max(named[name] for name in self.classes)
        evidence: dict[str, Any] = {name: value for name, value in sorted(named.items()) if value >= SHOWN}
        dropped = self.threshold is not None and score >= self.threshold
        reason = f"nudity scores {score:g}, the threshold is {self.threshold:g}" if dropped else ""
        return Finding(f"{score:.3f}", not dropped, reason, evidence, {"nudity": score})


def class_names(text: str) -> list[str]:
    """Return the class names that ultralytics writes into a file's metadata, ``{0: 'NAME', 1: ...}``, in their order.

    Raises:
        UserError: The text has another form.
    """
    pairs = [part.partition(":") for part in text.strip().strip("{}").split(",")]
    names = [name.strip().strip("'\"") for _, _, name in pairs]
    if not all(names) or [number.strip() for number, _, _ in pairs] != [str(index) for index in range(len(pairs))]:
        raise UserError(f"the network's classes cannot be read ({text[:80]!r}): install nudenet 3.4 again")
    return names

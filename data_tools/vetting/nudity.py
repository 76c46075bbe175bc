"""A score of nudity for each picture, by the network of nudenet (https://github.com/notAI-tech/NudeNet), 12 MB.

A score, no judgement: the network marks parts of bodies, uncovered or covered, and knows nothing of art, medicine,
beaches or age. It never tells whether somebody is a minor, and finding no nudity proves nothing; known illegal pictures
are matched by their hashes (vetting/hash_lists.py), and what the law asks beyond that is people's work. Colours go
in as RGB, as they did when it was trained; nudenet's own code swaps them.
Licence: the wheel's metadata say MIT, its LICENSE file and the weights say AGPL-3.0 (Ultralytics' YOLOv8 trained them);
the weights are asked here as a separate, unchanged file, and none of the package's code is used or imported.
"""

from collections import defaultdict
from typing import Any

import cv2
import numpy as np

from data_tools.vetting.onnx_network import OnnxNetwork, packaged_weights, weights_digest
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.errors import UserError

# Names of the network's classes (they stand in the file's metadata) whose appearance is nudity. Feet, armpits, bellies
# and men's breasts, and everything covered, are not.
EXPOSED = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
)
STRIDE = 32  # sides of the input must be multiples of it
SHOWN = 0.1  # classes below this score do not stand in the evidence


class Nudity(VettingRule):
    """The highest score of an uncovered part of a body; pictures at the threshold or above are dropped.

    Args:
        threshold: From which score on a picture is dropped, in (0, 1], or None to record scores alone. 0.25 is the
            value from which nudenet 3.4.2 itself reports a box. It was not tuned here: there are no positive pictures
            among our tests, so how many it misses is not measured; of ordinary ones it drops some (a red coffee cup),
            see tests/benchmarks/detectors.py. Higher keeps more of both.
        side: Longer side of what the network sees, in pixels; it was trained with 320.
        classes: Names of the parts that count.
        device: ``cpu`` or ``gpu``, see data_tools/vetting/onnx_network.py.

    Raises:
        UserError: A number or name is outside what the network knows.
    """

    name = "nudity"

    def __init__(
        self,
        threshold: float | None = 0.25,
        side: int = 320,
        classes: tuple[str, ...] = EXPOSED,
        device: str = "cpu",
    ) -> None:
        """Keep the settings; the network is opened when the first picture comes."""
        if side < STRIDE or side % STRIDE:
            raise UserError(f"nudity: side is {side}, give a multiple of {STRIDE}")
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(f"nudity: threshold is {threshold}, give one above 0 up to 1, or null")
        self.threshold, self.side, self.classes, self.device = threshold, side, list(classes), device
        self.weights = weights_digest(packaged_weights("nudenet", "320n.onnx", "nudity"))
        self._network: OnnxNetwork | None = None
        self._names: list[str] = []

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Score all pictures; those that become equally large for the network go through it together."""
        scores = self.scores([sample.pixels for sample in samples])
        return [self._finding(row) for row in scores]

    def scores(self, pictures: list[np.ndarray]) -> np.ndarray:
        """The highest score of each class anywhere in each picture, (B, classes) in [0, 1].

        Args:
            pictures: (H, W, 3) uint8; sizes may differ.
        """
        if self._network is None:
            self._network = OnnxNetwork(packaged_weights("nudenet", "320n.onnx", "nudity"), "onnxruntime", self.device)
            self._names = class_names(self._network.metadata.get("names", ""))
            if unknown := sorted(set(self.classes) - set(self._names)):
                raise UserError(f"nudity: the network knows no class {unknown[0]}: choose of {', '.join(self._names)}")
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs = [self._input(picture) for picture in pictures]
        for number, array in enumerate(inputs):
            alike[array.shape].append(number)
        found = np.zeros((len(pictures), len(self._names)), np.float32)
        for numbers in alike.values():
            (answer,) = self._network(np.stack([inputs[number] for number in numbers])).values()  # (B, 4 + classes, N)
            found[numbers] = answer[:, 4:].max(axis=2)
        return found

    def _input(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (3, h, w) float32 in [0, 1]; longer side scaled to `side`, black up to the stride."""
        scale = self.side / max(picture.shape[:2])
        height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        whole = np.zeros((-height % STRIDE + height, -width % STRIDE + width, 3), np.float32)
        whole[:height, :width] = small
        return np.ascontiguousarray(whole.transpose(2, 0, 1)) / 255

    def _finding(self, scores: np.ndarray) -> Finding:
        named = {name: round(float(score), 3) for name, score in zip(self._names, scores, strict=True)}
        score = max(named[name] for name in self.classes)
        evidence: dict[str, Any] = {name: value for name, value in sorted(named.items()) if value >= SHOWN}
        dropped = self.threshold is not None and score >= self.threshold
        reason = f"nudity scores {score:g}, the threshold is {self.threshold:g}" if dropped else ""
        return Finding(f"{score:.3f}", not dropped, reason, evidence, {"nudity": score})


def class_names(text: str) -> list[str]:
    """Read the names that ultralytics writes into a file's metadata, ``{0: 'NAME', 1: ...}``, in their order.

    Raises:
        UserError: It is no such text.
    """
    pairs = [part.partition(":") for part in text.strip().strip("{}").split(",")]
    names = [name.strip().strip("'\"") for _, _, name in pairs]
    if not all(names) or [number.strip() for number, _, _ in pairs] != [str(place) for place in range(len(pairs))]:
        raise UserError(f"the network's classes cannot be read ({text[:80]!r}): install nudenet 3.4 again")
    return names

"""Controls of distances between sets of images: noise and blur in growing strength, and a lost variety."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from leam_mm.controls.control import Control, Outcome
from leam_mm.distances.set_distances import SetDistance, set_distances
from leam_mm.distances.wavelet_distance import WaveletPackets, wavelet_distance

COUNT, SIZE, MODES, FEATURES = 240, 32, 8, 16
STRENGTHS = (0.25, 0.5, 1.0)  # of noise and blur, which must raise a distance step by step
Kind = Literal["noise", "blur", "collapse"]
# Faults that lower each share; a share is blind to the others by definition.
SHARES: dict[str, tuple[Kind, ...]] = {
    "precision": ("noise", "blur"),
    "density": ("noise", "blur"),
    "recall": ("collapse",),
    "coverage": ("noise", "blur", "collapse"),
}
FAULTS: dict[Kind, str] = {
    "noise": "images with more and more noise",
    "blur": "images with more and more blur",
    "collapse": f"images of one of {MODES} kinds",
}


@dataclass(frozen=True)
class Subject:
    """A distance under control.

    Args:
        distance: The distance.
        features: Function of images (B, 3, H, W) uint8.
        share: Whether more is better.
    """

    distance: SetDistance
    features: Callable[[Tensor], Tensor]
    share: bool

    def value(self, images: Tensor) -> float:
        """Compare images with the real ones."""
        return self.distance.statistic(self.features(real_images()), self.features(images))


def changed_image_controls() -> list[Control]:
    """Return the controls of every distance."""
    controls = []
    for name, subject in _subjects().items():
        for kind in SHARES.get(name, tuple(FAULTS)):
            change = "falls" if subject.share else "grows"
            path = f"metric/{name.replace('distance_infinity', 'infinity')}"
            controls.append(Control(path, FAULTS[kind], True, change, partial(_fault, subject, kind)))
    return controls


def _subjects() -> dict[str, Subject]:
    found = {
        name: Subject(distance, unit_features if name == "cmmd" else random_features, name in SHARES)
        for name, distance in set_distances(unit_length=True).items()
    }
    packets = WaveletPackets(SIZE, level=3)
    return found | {"wavelet_distance": Subject(SetDistance(wavelet_distance), packets.extract, False)}


def draw_images(count: int, seed: int, modes: int = MODES) -> Tensor:
    """Draw soft patches in colours of some kinds of images: (count, 3, SIZE, SIZE) uint8."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(MODES, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    mode = torch.randint(0, modes, (count,), generator=generator)
    patches = torch.rand(count, 3, 16, 16, generator=generator)
    soft = functional.interpolate(patches, (SIZE, SIZE), mode="bicubic", align_corners=False)
    return ((0.5 * colours[mode] + 0.5 * soft).clamp(0, 1) * 255).round().to(torch.uint8)


@cache
def real_images() -> Tensor:
    """Return the real images of all controls."""
    return draw_images(COUNT, seed=1)


def changed_images(kind: Kind, strength: float) -> Tensor:
    """Return new images with a fault.

    Args:
        kind: The fault.
        strength: In (0, 1].
    """
    images = draw_images(COUNT, seed=2, modes=1 if kind == "collapse" else MODES).double()
    if kind == "noise":
        images += strength * 100 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).double()
    elif kind == "blur":
        small = functional.interpolate(images, (4, 4), mode="area")
        blurred = functional.interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False)
        images = (1 - strength) * images + strength * blurred
    return images.round().clamp(0, 255).to(torch.uint8)


def random_features(images: Tensor) -> Tensor:
    """Return (B, FEATURES) features of a random convolution, which see colours and edges."""
    generator = torch.Generator().manual_seed(4)
    kernel = torch.randn(FEATURES, 3, 3, 3, generator=generator).double()
    response = functional.conv2d(images.double() / 255 - 0.5, kernel)
    return functional.relu(response).mean(dim=(2, 3))


def unit_features(images: Tensor) -> Tensor:
    """Return the same, each row of length 1 and ten times as long, the width of CMMD's kernel."""
    return 10 * functional.normalize(random_features(images), dim=1)


def _fault(subject: Subject, kind: Kind, folder: Path) -> Outcome:
    floor = subject.value(draw_images(COUNT, seed=2))
    values = [
        subject.value(changed_images(kind, strength)) for strength in (STRENGTHS if kind != "collapse" else (1.0,))
    ]
    steps = [floor, *values]
    pairs = pairwise(steps)
    grows = all(after <= before if subject.share else after > before for before, after in pairs)
    far = values[-1] < 0.5 * floor if subject.share else values[-1] > 3 * floor
    return Outcome(f"{floor:.4g} without, then {', '.join(f'{value:.4g}' for value in values)}", grows and far)

"""The list of planted canaries that data_tools/plant_canaries.py wrote."""

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from leam_mm.audits.audit import NotRun
from leam_mm.data.image_decoding import ImageDecoding
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256
from leam_mm.json_text import parse_object

RECORD = "canaries.json"


@dataclass(frozen=True)
class PlantedCanary:
    """One canary.

    Args:
        caption: Its caption.
        content: Its encoded image.
        duplication: How often it is in the training data; 0 for a held-out one.
    """

    caption: str
    content: bytes
    duplication: int

    def pixels(self, size: int) -> Tensor:
        """Decode to (3, size, size) uint8."""
        return ImageDecoding(size)(self.content, numpy.random.default_rng(0))


def read_canaries(folder: Path | None) -> list[PlantedCanary]:
    """Read the list and the images of canaries.

    Args:
        folder: Output folder of data_tools/plant_canaries.py.

    Raises:
        NotRun: No folder was given.
        UserError: It holds no canaries, or others than the list says.
    """
    if folder is None:
        raise NotRun("no canaries were planted: see data_tools/plant_canaries.py, and give their folder as `canaries`")
    path = folder / RECORD
    try:
        content = parse_object(path.read_bytes())
        if content["version"] != 1:
            raise ValueError(f"version {content['version']}")
        found = []
        for entry in content["canaries"]:
            image = folder / str(entry["image"])
            if not image.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{entry['image']} lies outside the folder")
            canary = PlantedCanary(str(entry["caption"]), image.read_bytes(), int(entry["duplication"]))
            if bytes_sha256(canary.content) != entry["sha256"]:
                raise ValueError(f"{entry['image']} is not the image of the list")
            found.append(canary)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); write the canaries again") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is no list of canaries ({error!r:.100}); write it again with plant_canaries") from None
    groups = {canary.duplication > 0 for canary in found}
    if groups != {True, False}:
        raise UserError(f"{path} needs planted and held-out canaries; write it again with plant_canaries")
    return found


def canary_pixels(canaries: list[PlantedCanary], size: int) -> Tensor:
    """Return the images (B, 3, size, size) uint8."""
    return torch.stack([canary.pixels(size) for canary in canaries])

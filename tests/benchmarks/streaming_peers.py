"""What the comparisons with litData and MosaicML Streaming share; streaming_peers.txt says how to install both."""

import importlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torchvision.transforms import v2

from leam_mm.data.shard_index import read_samples
from leam_mm.errors import UserError

Row = tuple[int, bytes, str]  # number, JPEG, caption
Item = dict[str, Any]  # number, image, caption
PACKAGES = {"litdata": "litdata", "mosaic": "mosaicml-streaming"}  # by the name of --peers
MODULES = {  # that they import
    "litdata": ("litdata", "obstore", "boto3"),
    "mosaic": ("streaming", "catalogue", "snappy", "xxhash", "zstd"),
}
INSTALL = "pip install --no-deps -r tests/benchmarks/streaming_peers.txt"


class StreamingPeer(Protocol):
    """What litdata_peer.py and mosaic_peer.py define."""

    def write(self, rows: Iterable[Row], folder: Path, per_file: int | None, encoded: bool) -> Path:
        """Write the rows in the format of the library.

        Args:
            rows: All samples.
            folder: Is made.
            per_file: Samples of a file; None is the library's default.
            encoded: Declare the images as such, so that the library decodes them; else they are bytes.
        """

    def open_loader(
        self,
        folder: Path,
        batch: int,
        workers: int,
        decode: Callable[[Item], Item],
        collate: Callable[[list[Item]], Any],
    ) -> Any:
        """The library's StreamingDataLoader over its StreamingDataset, shuffled.

        Args:
            folder: Of ``write``.
            batch: Samples per batch and rank.
            workers: Loader processes per rank.
            decode: Applied to each item in the worker.
            collate: Makes a batch of decoded items.
        """


def missing(name: str) -> str:
    """Why a peer cannot be measured here; empty if it can."""
    absent = [module for module in MODULES[name] if find_spec(module) is None]
    if not absent:
        return ""
    return f"{PACKAGES[name]} is not installed here ({', '.join(absent)} not found); run: {INSTALL}"


def load(name: str) -> StreamingPeer:
    """The peer's file.

    Raises:
        UserError: The library is not installed.
    """
    if why := missing(name):
        raise UserError(f"--peers {name}: {why}")
    found: Any = importlib.import_module(f"{name}_peer")
    return found


def label(name: str) -> str:
    """Name and version."""
    try:
        return f"{PACKAGES[name]} {version(PACKAGES[name])}"
    except PackageNotFoundError:
        return PACKAGES[name]


def stored_rows(shards: Path) -> Iterator[Row]:
    """The samples of our shards, as a peer stores them: the number is the key."""
    for key, members in read_samples(shards):
        yield int(key), members["jpg"], json.loads(members["json"])["captions"][0]["text"]


def random_crop(size: int, scale: tuple[float, float], aspect: tuple[float, float]) -> Callable[[Any], torch.Tensor]:
    """torchvision's RandomResizedCrop of what a library hands out, a Pillow image or (3, h, w) uint8."""
    crop = v2.RandomResizedCrop(size, scale, aspect, v2.InterpolationMode.BICUBIC, antialias=True)

    def apply(image: Any) -> torch.Tensor:
        if isinstance(image, torch.Tensor):
            return crop(image)
        return v2.functional.pil_to_tensor(crop(image.convert("RGB")))

    return apply


def as_handed_out(name: str, jpeg: bytes) -> Any:
    """A JPEG decoded by what the library decodes it with: torchvision for litData, Pillow for MosaicML Streaming."""
    if name == "litdata":
        from torchvision.io import decode_image

        return decode_image(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8))
    from PIL import Image

    return Image.open(io.BytesIO(jpeg))

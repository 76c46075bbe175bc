"""Checkpoints whose tensors lie in a folder of parts, one written by each rank; any number of ranks reads them.

``NAME.ckpt`` holds all but the sharded tensors, in whose places it names them, and the folder ``NAME.shards`` holds
``rank-00000.part`` and so on, and ``manifest.json`` with the digest of each part. The checkpoint holds the digest of
the manifest, so that one digest stands for all files. A part is a file with a digest at its end, like a checkpoint,
with pieces of tensors and where they lie in the whole; it is loaded with ``weights_only=True``.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leam_mm.checkpoint_file import check_archive, compare_digest, recorded_digest, write_with_digest
from leam_mm.errors import UserError
from leam_mm.files import file_sha256, write_json

SHARDS = "shards"  # the checkpoint's entry, and the suffix of the folder
PLACE = "leam_mm.sharded"  # the entry of what stands in the place of a tensor
MANIFEST = "manifest.json"


def shards_folder(checkpoint: Path) -> Path:
    """Return the folder of the parts of a generation."""
    return checkpoint.with_suffix(f".{SHARDS}")


def placeholder(key: str, shape: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    """Return what stands in the place of a sharded tensor."""
    return {PLACE: key, "shape": list(shape), "dtype": dtype}


def replace_leaves(content: Any, chosen: Callable[[Any], bool], new: Callable[[str, Any], Any], key: str = "") -> Any:
    """Return a copy of nested dicts, lists and tuples in which chosen values are replaced.

    Args:
        content: The nested values.
        chosen: Whether a value is replaced.
        new: What it is replaced by; gets the value's key, such as ``/state_dict/w``, and the value.
        key: Key of ``content``.
    """
    if chosen(content):
        return new(key, content)
    if isinstance(content, dict):
        return {name: replace_leaves(value, chosen, new, f"{key}/{name}") for name, value in content.items()}
    if isinstance(content, list | tuple):
        made = [replace_leaves(value, chosen, new, f"{key}/{number}") for number, value in enumerate(content)]
        return made if isinstance(content, list) else tuple(made)
    return content


def is_placeholder(value: Any) -> bool:
    """Return whether a value stands in the place of a sharded tensor."""
    return isinstance(value, dict) and PLACE in value


def write_part(folder: Path, rank: int, pieces: dict[str, tuple[Tensor, Sequence[int]]]) -> None:
    """Write the pieces of a rank and flush them to the disk.

    Args:
        folder: Exists.
        rank: Of the writer.
        pieces: For each key the tensor on this rank and its offset in the whole one.
    """
    content = {"rank": rank, "pieces": {key: (tensor, list(offset)) for key, (tensor, offset) in pieces.items()}}
    with open(folder / f"rank-{rank:05d}.part", "xb+") as file:
        write_with_digest(content, file)
        file.flush()
        os.fsync(file.fileno())


def write_manifest(folder: Path) -> str:
    """Record the digests of all parts; returns the SHA-256 of the manifest."""
    parts = {}
    for path in sorted(folder.glob("*.part")):
        with open(path, "rb") as file:
            parts[path.name] = {"digest": recorded_digest(file), "bytes": path.stat().st_size}
    write_json(folder / MANIFEST, {"parts": parts})
    return file_sha256(folder / MANIFEST)


def read_manifest(folder: Path, sha256: str | None = None) -> dict[str, dict[str, Any]]:
    """Return digest and size of each part.

    Args:
        folder: Of the parts.
        sha256: Of the manifest, as the checkpoint has it; None does not compare it.

    Raises:
        UserError: The manifest is missing or is another one.
    """
    path = folder / MANIFEST
    found = file_sha256(path)
    if sha256 is not None and found != sha256:
        raise UserError(f"{path} is damaged or of another checkpoint: copy the folder again, or take an older one")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["parts"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: copy the folder again, or take an older one") from None


def compare_parts(folder: Path, parts: dict[str, dict[str, Any]], names: Iterable[str] | None = None) -> None:
    """Compare the content of parts with their digests in the manifest.

    Args:
        folder: Of the parts.
        parts: Of `read_manifest`.
        names: Parts that are compared; None takes all.

    Raises:
        UserError: A part is missing or damaged.
    """
    for name in parts if names is None else names:
        path = folder / Path(name).name
        try:
            with open(path, "rb") as file:
                digest = recorded_digest(file)
                if path.stat().st_size != parts[name]["bytes"] or digest is None or digest != parts[name]["digest"]:
                    raise UserError(f"{path} is damaged or of another checkpoint: take an older one")
                compare_digest(file, path)
                check_archive(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path} cannot be read ({reason}): copy the whole folder {folder.name}") from None


def has_sound_parts(checkpoint: Path) -> bool:
    """Return whether a generation has no parts, or all of them as its manifest says."""
    folder = shards_folder(checkpoint)
    try:
        if folder.is_dir():
            compare_parts(folder, read_manifest(folder))
        return True
    except UserError:
        return False


class Parts:
    """The pieces of a sharded checkpoint, mapped into memory and read when a tensor needs them.

    Args:
        folder: Of the parts.
        names: Of the parts; their digests were compared before.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """See the class for the arguments."""
        self.folder = folder
        self.pieces: dict[str, list[tuple[Tensor, list[int]]]] = {}
        for name in names:
            path = folder / Path(name).name
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                for key, (tensor, offset) in found["pieces"].items():
                    self.pieces.setdefault(key, []).append((tensor, offset))
            except Exception as error:  # torch raises half a dozen kinds for hostile files
                reason = str(error).split("\n", 1)[0][:200]
                raise UserError(f"{path} cannot be read ({reason}): take an intact checkpoint") from None

    def read(self, place: dict[str, Any], shape: Sequence[int], offset: Sequence[int]) -> Tensor:
        """Return a block of a tensor, put together from the pieces that overlap with it.

        Args:
            place: What stands for the tensor in the checkpoint.
            shape: Of the block.
            offset: Of the block in the whole tensor, one number per dimension.

        Raises:
            UserError: The pieces do not fill the block.
        """
        pieces, filled = self.pieces.get(place[PLACE], []), set()
        if math.prod(shape) > sum(tensor.numel() for tensor, _ in pieces):  # before that much memory is taken
            raise UserError(f"{self.folder} lacks a part of {place[PLACE]}: take an intact checkpoint")
        made = torch.empty(tuple(shape), dtype=place["dtype"])
        for tensor, start in pieces:
            low = [max(a, b) for a, b in zip(offset, start, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offset, shape, start, tensor.shape, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)) or (tuple(low), tuple(high)) in filled:
                continue
            target = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))
            source = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, start, strict=True))
            made[target] = tensor[source]
            filled.add((tuple(low), tuple(high)))
        if sum(math.prod(b - a for a, b in zip(*each, strict=True)) for each in filled) != made.numel():
            raise UserError(f"{self.folder} lacks a part of {place[PLACE]}: take an intact checkpoint")
        return made

    def whole(self, content: Any) -> Any:
        """Return a checkpoint with its tensors in their places."""
        return replace_leaves(
            content, is_placeholder, lambda _, place: self.read(place, place["shape"], [0] * len(place["shape"]))
        )


def open_parts(checkpoint: dict[str, Any], file: Path, compared: Iterable[str] | None = None) -> Parts:
    """Open the parts of a sharded checkpoint, and compare their digests.

    Args:
        checkpoint: With its entry ``shards``.
        file: Of the checkpoint; its folder has the parts.
        compared: Parts whose digests are compared; None takes all.

    Raises:
        UserError: They are missing or damaged.
    """
    folder, parts = find_parts(checkpoint, file)
    compare_parts(folder, parts, compared)
    return Parts(folder, parts)


def find_parts(checkpoint: dict[str, Any], file: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Return the folder of the parts of a sharded checkpoint, and its manifest."""
    named = checkpoint[SHARDS]
    folder = file.parent / Path(str(named.get("folder"))).name
    if not folder.is_dir():
        raise UserError(f"{file} has its tensors in the folder {folder.name}, which is not beside it: copy it as well")
    return folder, read_manifest(folder, str(named.get("sha256")))

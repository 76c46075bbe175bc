"""Withdrawn items that are still in shards: keys of tombstones, and addresses and images on the lists beside them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from leam_mm.audits.stored_samples import StoredSample
from leam_mm.data.shard_index import ShardFolder
from leam_mm.data.upright_image import read_upright
from leam_mm.errors import UserError
from leam_mm.files import bytes_sha256

LISTS = ".blocklists"  # ending of the folders that withdraw_samples writes


class WithdrawnLists(Protocol):
    """Lists of what was withdrawn, as data_tools/links/withdrawn_lists.py reads them."""

    def find_address(self, addresses: Iterable[str], page: str | None = None) -> object | None:
        """Return the entry that covers one of the addresses of an image, or the page that shows it."""

    def find_image(self, digests: Iterable[str], pixels: Callable[[], np.ndarray]) -> str | None:
        """Return how an image is known to be withdrawn: by a digest of its file, or by its perceptual hash."""


def has_lists(shards: Path) -> bool:
    """Return whether lists of withdrawals lie beside a shard folder."""
    return any(path.is_dir() for path in shards.resolve().parent.glob("*" + LISTS))


def keys_of(folder: ShardFolder) -> set[str]:
    """Return the keys of all samples, from the indexes; those of a shard that cannot be opened are left out."""
    found: set[str] = set()
    for number in range(len(folder.shards)):
        try:
            found.update(folder.index(number).keys)
        except UserError:
            continue
    return found


def listed(sample: StoredSample, lists: WithdrawnLists) -> bool:
    """Return whether a sample is on a list by its address, the page that shows it, its file, or its image."""
    page = sample.record.get("page_url")
    if lists.find_address([str(sample.record.get("url") or "")], page if isinstance(page, str) else None):
        return True
    if sample.image is None:
        return False
    digests = (str(sample.record.get("sha256")), bytes_sha256(sample.image))
    image = sample.image
    try:
        return lists.find_image(digests, lambda: np.asarray(read_upright(image))) is not None
    except (UserError, OSError, ValueError):
        return False  # not an image; the digests were compared before

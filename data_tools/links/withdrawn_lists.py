"""Lists of what was withdrawn from shards, so that it does not come back: addresses, domains, and hashes of images.

withdraw_samples writes them to ``SHARDS.blocklists``: ``url_sha256.txt``, ``domains.txt``, ``withdrawn.sha256`` and
``withdrawn.pdq``. Programs that write shards read the lists of all shard folders beside their output. An address is
compared by what it names (``address_key``). An image is compared by the digest of its file and, at every rotation and
reflection, by its perceptual hash, because it may come from another address, encoded again or resized.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_tools.links.blocklists import Blocked, DigestList, DomainList
from data_tools.network.link_address import host_of
from leam_mm.data.hash_files import read_hashes
from leam_mm.data.perceptual_hash import hamming, pdq_transformed
from leam_mm.files import bytes_sha256, file_sha256

SUFFIX = ".blocklists"
URLS, DOMAINS, DIGESTS, PDQ = "url_sha256.txt", "domains.txt", "withdrawn.sha256", "withdrawn.pdq"
RULE = "withdrawn"
RADIUS = 31  # bits of 256 in which the PDQ hash of a copy may differ; its authors recommend it
LEAST_QUALITY = 50  # of PDQ: the hash of a flatter image is that of its noise


class WithdrawnLists:
    """The lists of several shard folders.

    Args:
        folders: Folders of lists, ``SHARDS.blocklists``.

    Raises:
        UserError: A list cannot be read.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        """Read the lists; see the class for the arguments."""
        names = (URLS, DOMAINS, DIGESTS, PDQ)
        files = [path for folder in folders for name in names if (path := folder / name).is_file()]
        self.sha256 = bytes_sha256("".join(sorted(map(file_sha256, files))).encode()) if files else None
        self._urls = [DigestList(path) for path in files if path.name == URLS]
        self._domains = [DomainList(path) for path in files if path.name == DOMAINS]
        known = {value for path in files if path.name == DIGESTS for value in read_hashes(path)["sha256"]}
        self._digests = {value.hex() for value in known}
        codes = sorted({value for path in files if path.name == PDQ for value in read_hashes(path)["pdq"]})
        self._codes = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, 32)
        self.folders = tuple({path.parent: None for path in files})

    def __bool__(self) -> bool:
        """Whether there is any list."""
        return self.sha256 is not None

    def find_address(self, addresses: Iterable[str], page: str | None = None) -> Blocked | None:
        """Look up forms of one address, and the host of the page that shows it."""
        known = {address for address in addresses if address}
        hosts = {host_of(address) for address in (*known, page or "")} - {""}
        for digests in self._urls:
            if hit := digests.find(known):
                return hit
        return next((hit for domains in self._domains for host in sorted(hosts) if (hit := domains.find(host))), None)

    def find_image(self, digests: Iterable[str], pixels: Callable[[], np.ndarray]) -> str | None:
        """Return how an image is known to be withdrawn, or None.

        Args:
            digests: SHA-256 of its files, in hexadecimal.
            pixels: Returns the image, (H, W, 3) uint8; called if there are perceptual hashes.
        """
        if any(digest.lower() in self._digests for digest in digests):
            return "sha256"
        if not len(self._codes):
            return None
        turned, quality = pdq_transformed(pixels())
        if quality < LEAST_QUALITY:
            return None
        nearest = min(int(hamming(self._codes, code).min()) for code in turned)
        return f"pdq, {nearest} of 256 bits differ" if nearest <= RADIUS else None


def lists_beside(output: Path) -> tuple[Path, ...]:
    """Return the folders of lists beside an output folder: its own, and those of other shards."""
    folder = output.resolve().parent
    return tuple(sorted(path for path in folder.glob("*" + SUFFIX) if path.is_dir()))


@lru_cache(maxsize=2)
def read_lists(folders: tuple[Path, ...]) -> WithdrawnLists:
    """Return the lists of some folders, read once per process."""
    return WithdrawnLists(folders)


def lists_of_shards(shards: Path) -> WithdrawnLists:
    """Return the lists beside a shard folder, as leam_mm/audits/opt_out.py compares them.

    Args:
        shards: The shard folder.
    """
    return read_lists(lists_beside(shards))

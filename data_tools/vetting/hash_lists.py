"""Vetting rule for images on shared hash lists (of illegal material, of withdrawn works): by digest or PDQ distance.

The files are those of leam_mm/data/hash_files.py. The ledger records which list matched, and at what distance; no
hash of a list is ever written or printed.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.data.hash_files import read_hashes
from leam_mm.errors import UserError
from leam_mm.files import file_sha256


class HashLists(VettingRule):
    """Drops images that are on a list.

    SHA-256 is compared with that of the bytes as fetched (``sha256`` of the json) and with that of the stored
    file, MD5 with that of the stored file, PDQ with the perceptual hash of the pixels.

    Args:
        lists: Files, as described in leam_mm/data/hash_files.py.
        max_distance: Largest number of the 256 bits in which an image's PDQ hash may differ from a listed one and still
            match; its authors recommend 31.
        min_quality: Smallest quality of an image's PDQ hash, in [0, 100]; the hash of a flatter image is not compared.
    """

    name = "hash_lists"

    def __init__(self, lists: list[Path], max_distance: int = 31, min_quality: int = 50) -> None:
        """See the class for the arguments."""
        if not lists:
            raise UserError("HashLists: name at least one file under lists")
        if not 0 <= max_distance <= 255 or not 0 <= min_quality <= 100:
            raise UserError("HashLists: max_distance is a number of bits from 0 to 255, min_quality is in [0, 100]")
        self.lists, self.max_distance, self.min_quality = lists, max_distance, min_quality
        self._digests: dict[str, dict[bytes, str]] | None = None
        self._pdq: list[tuple[str, np.ndarray]] = []

    def setting(self) -> dict[str, Any]:
        """Return the settings with the digests of the lists in place of their paths."""
        return super().setting() | {"lists": [file_sha256(path) for path in self.lists]}

    def _open(self) -> dict[str, dict[bytes, str]]:
        if self._digests is None:
            digests: dict[str, dict[bytes, str]] = {"sha256": {}, "md5": {}}
            for path in self.lists:
                for kind, hashes in read_hashes(path).items():
                    if kind != "pdq":
                        digests[kind] |= dict.fromkeys(hashes, path.name)
                    elif hashes:
                        rows = np.frombuffer(b"".join(sorted(hashes)), np.uint64).reshape(-1, 4)
                        self._pdq.append((path.name, rows))
            self._digests = digests
        return self._digests

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Look up each image."""
        self._open()
        return [self._judge(sample) for sample in samples]

    def _judge(self, sample: Sample) -> Finding:
        digests = self._open()
        own = {"sha256": [hashlib.sha256(sample.content).digest(), _digest(sample.record.get("sha256"))]}
        own["md5"] = [hashlib.md5(sample.content, usedforsecurity=False).digest()] if digests["md5"] else []
        for kind, values in own.items():
            for value in values:
                if name := digests[kind].get(value):
                    return Finding(kind, False, f"its {kind} is on the list {name}", {"list": name, "kind": kind})
        if not self._pdq:
            return Finding("on none")
        code, quality = sample.pdq
        if quality < self.min_quality:
            return Finding(f"quality {quality}", evidence={"pdq_quality": quality})
        words = np.frombuffer(code.tobytes(), np.uint64)
        nearest = 256
        for name, rows in self._pdq:
            distance = int(np.bitwise_count(rows ^ words).sum(1, dtype=np.int64).min())
            nearest = min(nearest, distance)
            if distance <= self.max_distance:
                evidence = {"list": name, "kind": "pdq", "distance": distance}
                return Finding(f"pdq {distance}", False, f"{distance} of 256 bits from a hash on {name}", evidence)
        return Finding(f"pdq {nearest}")


def _digest(text: Any) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""

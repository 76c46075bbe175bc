"""Vetting rule: of samples with the same file, or with the same pixels, one stays."""

import hashlib
import re
from typing import Any

import numpy as np

from data_tools.vetting.binary_neighbours import distinct
from data_tools.vetting.duplicate_groups import Components, choose, preference
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample

DIGEST = re.compile(r"[0-9a-f]{64}")


class ExactDuplicates(DatasetRule):
    """Drops copies: first by the SHA-256 of the file as it was fetched, then by that of the pixels as they are stored.

    Of copies the one with most pixels stays, and of equal ones the one whose key comes first.

    Args:
        pixels: Whether pixels are compared too; they find the same picture in another file (a PNG saved again, a JPEG
            with other metadata), at the price of decoding.
    """

    name, across = "exact_duplicates", True

    def __init__(self, pixels: bool = True) -> None:
        """See the class for the arguments."""
        self.pixels = pixels

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Two digests: (B, 64) uint8; the second is zero where pixels are not compared."""
        return np.stack([np.frombuffer(self._file(sample) + self._shown(sample), np.uint8) for sample in samples])

    def _file(self, sample: Sample) -> bytes:
        known = sample.record.get("sha256")
        if isinstance(known, str) and DIGEST.fullmatch(known):
            return bytes.fromhex(known)
        return hashlib.sha256(sample.content).digest()

    def _shown(self, sample: Sample) -> bytes:
        if not self.pixels:
            return bytes(32)
        height, width = sample.pixels.shape[:2]
        digest = hashlib.sha256(height.to_bytes(4, "big") + width.to_bytes(4, "big"))
        digest.update(np.ascontiguousarray(sample.pixels).data)
        return digest.digest()

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep the best of each group of copies."""
        components, rows = Components(len(keys)), np.arange(len(keys))
        file, shown = np.ascontiguousarray(measured[:, :32]), np.ascontiguousarray(measured[:, 32:])
        for digests in (file, shown) if self.pixels else (file,):
            first, place = distinct(digests)
            components.join(first[place], rows)
        foreign = np.array([bool(record.get("against")) for record in records])

        def copies(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return np.ones(len(second), bool)  # what is equal is equal to all of its group

        def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return (file[first] != file[second]).any(axis=1)

        grouping = choose(components, preference(keys, records), copies, difference, foreign)
        return [
            self._finding(row, best, keys, file, int(size), bool(foreign[best]))
            for row, (best, size) in enumerate(zip(grouping.kept_by.tolist(), grouping.size, strict=True))
        ]

    def _finding(self, row: int, best: int, keys: list[str], file: np.ndarray, size: int, elsewhere: bool) -> Finding:
        if best == row:
            return Finding("alone" if size == 1 else f"best of {size}")
        same = "file" if (file[row] == file[best]).all() else "pixels"
        evidence = {"kept": keys[best], "group": size} | ({"against": True} if elsewhere else {})
        return Finding(f"same {same}", False, f"the same {same} as {keys[best]}", evidence)

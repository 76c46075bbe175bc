"""Vetting rule: of samples with the same file or the same pixels, keep one."""

import hashlib
import re
from typing import Any

import numpy as np

from data_tools.vetting.binary_neighbours import distinct
from data_tools.vetting.duplicate_groups import Components, choose, preference
from data_tools.vetting.vetting_rule import DatasetRule, Finding, Sample

DIGEST = re.compile(r"[0-9a-f]{64}")


class ExactDuplicates(DatasetRule):
    """Drops copies, found by the SHA-256 of the file as fetched and by the SHA-256 of the stored pixels.

    Among copies the one with the most pixels stays; if equal, the one whose key sorts first.

    Args:
        pixels: Compare pixels, too; this finds the same image in another file (a PNG saved again, a JPEG with other
            metadata), at the cost of decoding.
    """

    name, across = "exact_duplicates", True

    def __init__(self, pixels: bool = True) -> None:
        """See the class for the arguments."""
        self.pixels = pixels

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return two digests per sample: (B, 64) uint8; the second is zero if pixels are not compared."""
        return np.stack(
            [np.frombuffer(self._file_digest(sample) + self._pixel_digest(sample), np.uint8) for sample in samples]
        )

    def _file_digest(self, sample: Sample) -> bytes:
        recorded = sample.record.get("sha256")
        if isinstance(recorded, str) and DIGEST.fullmatch(recorded):
            return bytes.fromhex(recorded)
        return hashlib.sha256(sample.content).digest()

    def _pixel_digest(self, sample: Sample) -> bytes:
        if not self.pixels:
            return bytes(32)
        height, width = sample.pixels.shape[:2]
        digest = hashlib.sha256(height.to_bytes(4, "big") + width.to_bytes(4, "big"))
        digest.update(np.ascontiguousarray(sample.pixels).data)
        return digest.digest()

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Keep the best of each group of copies."""
        components, rows = Components(len(keys)), np.arange(len(keys))
        file, pixels = np.ascontiguousarray(measured[:, :32]), np.ascontiguousarray(measured[:, 32:])
        for digests in (file, pixels) if self.pixels else (file,):
            first, index = distinct(digests)
            components.join(first[index], rows)
        foreign = np.array([bool(record.get("against")) for record in records])

        def copies(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return np.ones(len(second), bool)  # copies of one sample are copies of each other

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

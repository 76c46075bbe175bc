"""Base classes of vetting rules: a rule judges samples of final shards, and each answer is a finding.

A rule sees a few samples at a time, in several processes. A ``DatasetRule`` decides after it has measured all samples,
which is needed to find duplicates. A YAML list names the rules; their constructors take the settings.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from leam_mm.data.image_file import open_image


@dataclass
class Sample:
    """A sample as rules see it.

    Args:
        key: Its name in the shards.
        record: Its json.
        extension: Extension of the image: jpg, png or webp.
        content: The image file, as stored.
        changed: Whether a rule has changed ``pixels``.
    """

    key: str
    record: dict[str, Any]
    extension: str
    content: bytes
    changed: bool = False

    @cached_property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8, read-only, decoded at first use."""
        array = np.asarray(open_image(self.content).convert("RGB"))
        array.setflags(write=False)
        return array

    @cached_property
    def pdq(self) -> tuple[np.ndarray, int]:
        """Perceptual hash of the pixels, (32,) uint8, and its quality in [0, 100]; cached, as several rules use it."""
        from leam_mm.data.perceptual_hash import pdq

        return pdq(self.pixels)

    @property
    def captions(self) -> list[dict[str, Any]]:
        """Texts with language and source."""
        return self.record["captions"]


@dataclass(frozen=True)
class Finding:
    """What a rule found in one sample.

    Args:
        value: What was measured, in a few characters, for the ledger.
        kept: Whether the sample stays.
        reason: Why it does not stay, in words; else empty.
        evidence: What supports the finding: boxes, scores, the key of a duplicate.
        record: Fields to set in the sample's json (``{"pdq": ...}``, ``{"captions": [...]}``).
        pixels: The changed image, (H, W, 3) uint8, for later rules and for the final shard.
        transform: Name of that change, appended to ``transforms``.
    """

    value: str
    kept: bool = True
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    pixels: np.ndarray | None = None
    transform: str = ""


class VettingRule:
    """Judges each sample. Subclasses keep their settings in public attributes of plain types.

    ``name`` is written to the ledger's column ``rule``. Large objects (networks, lists) are opened at first use, in the
    process that uses them, and kept in attributes that begin with an underscore.
    """

    name = "rule"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Return a finding for each sample, in order; rules run in sequence, and later ones see only what stays."""
        raise NotImplementedError

    def setting(self) -> dict[str, Any]:
        """Return all that decides the findings; it is part of the fingerprint of the vetted shards."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"rule": f"{type(self).__module__}.{type(self).__qualname__}", **public}


class DatasetRule(VettingRule):
    """Measures each sample first, and decides when all samples are measured.

    A rule that looks for duplicates sets ``across``: with ``--against`` the samples of the other data sets come before
    our own, with ``"against": True`` in their records. They always stay; if a group of duplicates contains one of them,
    all of our samples in the group must be dropped.
    """

    across = False

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Return (B, D) numbers of one dtype for B samples; D is the same for all calls."""
        raise NotImplementedError

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Return a finding for each of the N samples that the other rules kept, in the order of the shards.

        Args:
            keys: N keys.
            records: N dictionaries with ``uid``, ``url``, ``sha256``, ``width``, ``height``; ``against`` is True for
                samples of other data sets.
            measured: (N, D), the results of ``measure``.
        """
        raise NotImplementedError

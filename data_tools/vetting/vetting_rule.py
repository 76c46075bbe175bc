"""What a vetting rule is: a question asked of samples in final shards, and the finding that answers it.

A rule looks at a few samples at a time, in several processes; a ``DatasetRule`` also sees, once, what it measured
of all samples (duplicates are found only so). Rules are named in a YAML list and built by their constructors.
"""

import io
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 89_000_000


@dataclass
class Sample:
    """A sample as rules see it.

    Args:
        key: Its name in the shards.
        record: Its json.
        extension: Of the image: jpg, png or webp.
        content: The image file, as stored.
        changed: Whether a rule changed ``pixels`` since.
    """

    key: str
    record: dict[str, Any]
    extension: str
    content: bytes
    changed: bool = False

    @cached_property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8, decoded when first asked for; not to be written into."""
        image = Image.open(io.BytesIO(self.content), formats=["JPEG", "PNG", "WEBP"])
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} are more than {MAX_PIXELS} pixels")
        array = np.asarray(image.convert("RGB"))
        array.setflags(write=False)
        return array

    @cached_property
    def pdq(self) -> tuple[np.ndarray, int]:
        """Perceptual hash of the pixels, 32 bytes, and its quality in [0, 100]; several rules want it."""
        from data_tools.vetting.perceptual_hash import pdq

        return pdq(self.pixels)

    @property
    def captions(self) -> list[dict[str, Any]]:
        """Texts with language and source."""
        return self.record["captions"]


@dataclass(frozen=True)
class Finding:
    """What a rule found of one sample.

    Args:
        value: What was measured, in a few characters; it stands in the ledger.
        kept: Whether the sample stays.
        reason: Why not, in words; empty where it stays.
        evidence: What supports the finding: boxes, scores, the other key, the assertion.
        record: Fields that the sample's json gets or replaces (``{"pdq": ...}``, ``{"captions": [...]}``).
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
    """A question asked of every sample. Subclasses keep their settings in public attributes of plain types.

    ``name`` stands in the ledger's column ``rule``. Heavy things (networks, lists) are opened when first used, in the
    process that uses them, and kept in attributes that begin with an underscore.
    """

    name = "rule"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Answer for each sample, in order; rules are asked one after the other, and later ones see only what stays."""
        raise NotImplementedError

    def setting(self) -> dict[str, Any]:
        """All that decides the answers; it goes into the fingerprint of the vetted shards."""
        public = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"rule": f"{type(self).__module__}.{type(self).__qualname__}", **public}


class DatasetRule(VettingRule):
    """A rule that decides when it has seen all samples: each gives a row of numbers first.

    A rule that looks for the same thing in several samples sets ``across``: with ``--against`` the samples of the
    other data sets then come before our own. Their records say ``"against": True``. They stay whatever is answered:
    of a group in which there is one of them, all of ours are to be dropped.
    """

    across = False

    def measure(self, samples: list[Sample]) -> np.ndarray:
        """Give (B, D) numbers of one dtype for B samples; D is the same for all."""
        raise NotImplementedError

    def resolve(self, keys: list[str], records: list[dict[str, Any]], measured: np.ndarray) -> list[Finding]:
        """Answer for all N samples that the other rules kept, in the order of the shards.

        Args:
            keys: N names.
            records: N small dictionaries: ``uid``, ``url``, ``sha256``, ``width``, ``height``; ``against`` is True in
                those of other data sets.
            measured: (N, D), what ``measure`` gave.
        """
        raise NotImplementedError

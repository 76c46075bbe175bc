"""Random numbers of samples in training and sampling: pure functions of (seed, sample's number, purpose).

They depend on no batch, rank, device or restart. New runs draw with Philox 4x32-10, whole batches at a time on their
device. A checkpoint names its stream; a run from before it did resumes, and draws images, with numpy's.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leam_mm.data import philox
from leam_mm.data.sample_order import hashed_key, sample_generator
from leam_mm.errors import UserError

RECORD = "random_stream"  # the entry of a checkpoint's evidence


class RandomStream(ABC):
    """Draws random numbers for the samples of a batch.

    All methods take the seed of the run, the samples' numbers (B,) int64, and the name of the purpose: other purposes
    get independent numbers. Results are on the device of the samples' numbers.
    """

    name: str

    @abstractmethod
    def normal(self, seed: int, index: Tensor, purpose: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise (B, *shape) float32.

        It is float32 in runs of any precision, so that a run in float64 sees the noise of the one that it checks.
        """

    @abstractmethod
    def uniform(self, seed: int, index: Tensor, purpose: str) -> Tensor:
        """Return one number (B,) float32 in (0, 1) for each sample."""

    @abstractmethod
    def subset(self, seed: int, index: Tensor, purpose: str, size: int, kept: int) -> Tensor:
        """Return ``kept`` of the numbers below ``size`` for each sample, (B, kept) int64, ascending in each row.

        All subsets have equal probability.
        """


class PhiloxStream(RandomStream):
    """Philox 4x32-10 for the whole batch at once; see philox.py."""

    name = "philox4x32-10"

    def normal(self, seed: int, index: Tensor, purpose: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise (B, *shape) float32, equal on all devices to rounding."""
        count = int(np.prod(shape, dtype=np.int64))
        return philox.standard_normal(self._key(seed, purpose), index, count).reshape(len(index), *shape)

    def uniform(self, seed: int, index: Tensor, purpose: str) -> Tensor:
        """Return one number (B,) float32 in (0, 1) for each sample, equal on all devices."""
        return philox.uniform(self._key(seed, purpose), index)

    def subset(self, seed: int, index: Tensor, purpose: str, size: int, kept: int) -> Tensor:
        """Return a subset (B, kept) int64 for each sample, equal on all devices."""
        return philox.subset(self._key(seed, purpose), index, size, kept)

    def _key(self, seed: int, purpose: str) -> int:
        return hashed_key(self.name, int(seed), purpose)


class NumpyStream(RandomStream):
    """Numpy's Philox 4x64-10, one generator for each sample: the stream of runs whose checkpoint names none."""

    name = "numpy"

    def normal(self, seed: int, index: Tensor, purpose: str, shape: Sequence[int]) -> Tensor:
        """Return standard normal noise (B, *shape) float32."""
        noise = [
            sample_generator(seed, number, purpose).standard_normal(tuple(shape), dtype=np.float32)
            for number in index.tolist()
        ]
        return torch.from_numpy(np.stack(noise)).to(index.device)

    def uniform(self, seed: int, index: Tensor, purpose: str) -> Tensor:
        """Return one number (B,) float32 in (0, 1) for each sample."""
        numbers = [sample_generator(seed, number, purpose).random() for number in index.tolist()]
        # The open interval: processes apply an inverse normal distribution function.
        return torch.tensor(numbers, dtype=torch.float32).clamp_(1e-7, 1 - 1e-7).to(index.device)

    def subset(self, seed: int, index: Tensor, purpose: str, size: int, kept: int) -> Tensor:
        """Return a subset (B, kept) int64 for each sample."""
        chosen = [
            np.sort(sample_generator(seed, number, purpose).permutation(size)[:kept]) for number in index.tolist()
        ]
        return torch.from_numpy(np.stack(chosen)).to(index.device)


def recorded_stream(evidence: Mapping[str, Any]) -> RandomStream:
    """Return the stream that a checkpoint's evidence names.

    Raises:
        UserError: This version does not know it.
    """
    name = evidence.get(RECORD, NumpyStream.name)
    for stream in (PhiloxStream(), NumpyStream()):
        if stream.name == name:
            return stream
    raise UserError(
        f"the checkpoint draws its noise with the stream {str(name)[:40]!r}, which this version does not have: resume "
        "with the version that wrote it"
    )
